"""Retention: what becomes of runs that have been over for long."""

from triptych.operator.retention.retention import RetentionReport, Retired, remove_old

__all__ = ["RetentionReport", "Retired", "remove_old"]

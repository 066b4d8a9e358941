"""Retention: what becomes of runs that have been over for long."""

from triptych.operator.retention.retention import Report, Retired, remove_old

__all__ = ["Report", "Retired", "remove_old"]

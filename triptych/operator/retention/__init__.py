"""Retention: removes runs that ended long ago."""

from triptych.operator.retention.retention import RetentionReport, Retired, remove_old

__all__ = ["RetentionReport", "Retired", "remove_old"]

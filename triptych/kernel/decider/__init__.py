"""The decider: the loop of the one service that owns state. Read `loop.py`, then `session.py`, then `assembly.py`."""

from triptych.kernel.decider.admission import HEAD, Kind, Limits, Line, Standing, Waiting
from triptych.kernel.decider.batch import FORWARDED
from triptych.kernel.decider.contract import (
    Addressed,
    Arrival,
    Batch,
    Claim,
    Domain,
    Level,
    Notice,
    RejectedRecord,
    Store,
    Submission,
    TaskKey,
    Transition,
    Unread,
)
from triptych.kernel.decider.loop import DeciderLoop
from triptych.kernel.kafka.suspect_records import Reading

__all__ = [
    "FORWARDED",
    "HEAD",
    "Addressed",
    "Arrival",
    "Batch",
    "Claim",
    "DeciderLoop",
    "Domain",
    "Kind",
    "Level",
    "Limits",
    "Line",
    "Notice",
    "Reading",
    "RejectedRecord",
    "Standing",
    "Store",
    "Submission",
    "TaskKey",
    "Transition",
    "Unread",
    "Waiting",
]

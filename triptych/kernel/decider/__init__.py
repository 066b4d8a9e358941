"""The decider: the loop of the one service that owns state. Read `loop.py`, then `session.py`, then `batch.py`."""

from triptych.kernel.decider.admission import HEAD, AdmissionLimits, AdmissionState, LimitKey, QueueKey, WaitingRun
from triptych.kernel.decider.batch import FORWARDED
from triptych.kernel.decider.contract import (
    Batch,
    DeciderStore,
    Domain,
    InboundRecord,
    Level,
    Notice,
    PartitionClaim,
    RejectedRecord,
    RunMessage,
    Submission,
    TaskKey,
    Transition,
    UnreadRecord,
)
from triptych.kernel.decider.loop import DeciderLoop
from triptych.kernel.kafka.suspect_records import RecordsInFlight

__all__ = [
    "FORWARDED",
    "HEAD",
    "AdmissionLimits",
    "AdmissionState",
    "Batch",
    "DeciderLoop",
    "DeciderStore",
    "Domain",
    "InboundRecord",
    "Level",
    "LimitKey",
    "Notice",
    "PartitionClaim",
    "QueueKey",
    "RecordsInFlight",
    "RejectedRecord",
    "RunMessage",
    "Submission",
    "TaskKey",
    "Transition",
    "UnreadRecord",
    "WaitingRun",
]

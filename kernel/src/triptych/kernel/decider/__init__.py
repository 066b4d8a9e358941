"""The decider: the loop of the one service that owns state. Read `loop.py`, then `session.py`, then `assembly.py`."""

from triptych.kernel.decider.contract import (
    Addressed,
    Arrival,
    Batch,
    Claim,
    Domain,
    RejectedRecord,
    Store,
    Transition,
)
from triptych.kernel.decider.loop import DeciderLoop

__all__ = [
    "Addressed",
    "Arrival",
    "Batch",
    "Claim",
    "DeciderLoop",
    "Domain",
    "RejectedRecord",
    "Store",
    "Transition",
]

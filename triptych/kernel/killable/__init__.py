"""Work that cannot be interrupted, done where it can be killed.

An expression or a JSON Schema that may take long runs in a process of its own, with a deadline and a limit of
memory. The caller waits that long at most. Work that is known to be cheap must not come here: it costs a
millisecond more.
"""

from triptych.kernel.killable.pool import OverrunError, WorkFailed, evaluate, is_valid, prepare

__all__ = ["OverrunError", "WorkFailed", "evaluate", "is_valid", "prepare"]

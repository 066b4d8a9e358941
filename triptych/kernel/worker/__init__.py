"""The worker loop: a request becomes a job in Postgres, is executed once, and is answered.

Planner, critic and every tool stand on it. It never retries and never decides: both are the executor's.
"""

from triptych.kernel.worker.contract import JobAttempt, Worker, WorkerConfig
from triptych.kernel.worker.jobs import Connection, JobKey, Jobs
from triptych.kernel.worker.loop import run_worker
from triptych.kernel.worker.outbox import CommitHook, Finished, Outbox

__all__ = [
    "CommitHook",
    "Connection",
    "Finished",
    "JobAttempt",
    "JobKey",
    "Jobs",
    "Outbox",
    "Worker",
    "WorkerConfig",
    "run_worker",
]

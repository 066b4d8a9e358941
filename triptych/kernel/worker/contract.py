"""What a service implements to be a worker, and what it may set."""

from __future__ import annotations

from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from triptych.schemas.base import Answer, Request, Spend
from triptych.schemas.result import ToolError

RequestT = TypeVar("RequestT", bound=Request)


@dataclass(frozen=True, slots=True)
class JobAttempt:
    """Which attempt of the job this is."""

    lease: int
    """The lease under which it runs. Each statement of the worker for this job must name this lease."""
    deliveries: int = 1
    """How often the job was given out; 1 is the first time."""
    taken_over: bool = False
    """Whether another process held the job before. That process may have done the work."""


class Worker(Protocol[RequestT]):
    """One kind of work: a request in, one attempt, an answer out."""

    request_type: type[RequestT]

    def execute(self, request: RequestT, attempt: JobAttempt) -> Coroutine[Any, Any, Answer | None]:
        """Make ONE attempt. Never retries. Cancelled at the request's deadline and at shutdown.

        The answer is made for this request alone: the job runner writes into it who gave it and when. None: the job is
        parked in the table, and its answer comes by another way. Any exception except CancelledError is answered as
        `internal`.
        """
        ...

    def failed(self, request: Request, error: ToolError, spend: Spend) -> Answer:
        """Wrap an error as this worker's kind of answer, to a request or to its withdrawal."""
        ...

    def unstorable(self, request: Request, answer: Answer, message: str) -> Answer:
        """Return the answer that replaces one that cannot be stored: an error, with what the attempt spent.

        If the answer reports a write, what is known of its effect stays known.
        """
        ...

    def may_repeat(self, request: RequestT) -> bool:
        """Return whether a repeat after a crash does no harm, as if the work had never begun.

        If so, and if nothing can be spent, the request is stored together with its answer and not before. Such work
        changes nothing outside, and always has an answer: it is never parked.
        """
        ...


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """Where requests come from, where answers go, and the limits of the loop."""

    request_noun: str
    answer_noun: str
    answer_type: str
    """The CloudEvents type of an answer, for example `triptych.result`."""
    group: str
    """The consumer group, without the topic prefix; the same for all processes of a service."""
    concurrency: int = 16
    """Jobs that this process executes at the same time."""
    waiting_max: int = 2_000
    """Jobs that may wait in this process; beyond that nothing more is taken from Kafka."""
    lease_ms: int = 15_000
    """A process silent for this long loses its jobs."""
    max_deliveries: int = 5
    """A job that was given out this often without an answer is answered `internal`: it kills its worker."""

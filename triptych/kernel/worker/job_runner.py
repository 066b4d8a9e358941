"""The job runner: jobs wait here and are executed, a limited number at the same time.

It makes exactly one attempt at each job. The job always gets an answer in the end, also when the worker fails. It never
writes answers; the outbox does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from datetime import datetime
from typing import Generic, NamedTuple

from triptych.kernel import failpoints, timestamps
from triptych.kernel.concurrency.time_limit import TimeLimit
from triptych.kernel.kafka.cloudevents import utc_now
from triptych.kernel.process.outage import POSTGRES_GONE, Outage, is_refusal
from triptych.kernel.process.service import Service
from triptych.kernel.process.tracing import TraceContext, on_behalf_of
from triptych.kernel.worker.contract import JobAttempt, RequestT, Worker, WorkerConfig
from triptych.kernel.worker.job_queue import JobQueue
from triptych.kernel.worker.jobs import JobKey, Jobs
from triptych.kernel.worker.outbox import Finished, Outbox
from triptych.schemas import codec
from triptych.schemas.base import Answer, Json, Spend
from triptych.schemas.result import ErrorCode, ToolError

SUSPECT_DELIVERIES = 3
"""From so many deliveries on, suspect jobs run one at a time, so that a deadly one does not end others with it."""


class Job(NamedTuple, Generic[RequestT]):
    """A request that waits or is executed."""

    request: RequestT
    attempt: JobAttempt
    traceparent: str | None
    was_started: bool = False
    was_parked: bool = False

    @property
    def about(self) -> dict[str, str | None]:
        """Its fields in a log line."""
        request = self.request
        trace = TraceContext.of_header(self.traceparent.encode()) if self.traceparent else None
        return {
            "run_id": str(request.run_id),
            "task_id": request.task_id,
            "tenant": request.tenant,
            "trace_id": trace.trace_id if trace else None,
            "request_id": request.request_id,
        }


class JobRunner(Generic[RequestT]):
    """Executes jobs for one worker."""

    def __init__(
        self,
        worker: Worker[RequestT],
        config: WorkerConfig,
        jobs: Jobs,
        outbox: Outbox,
        *,
        instance: str,
        service: Service,
    ) -> None:
        self._worker, self._config, self._jobs, self._outbox = worker, config, jobs, outbox
        self._instance, self._log, self._stopping = instance, service.log, service.stopping
        self._waiting: JobQueue[Job[RequestT] | None] = JobQueue()
        self._moved = asyncio.Event()
        self._quarantine = asyncio.Lock()
        self._withdrawn: set[JobKey] = set()
        """Jobs of this process that are answered already, since their runs are over."""
        self._outage = Outage(service.log, "postgres")

    @property
    def room(self) -> int:
        """How many more jobs may wait here; negative after a takeover or a batch went over the limit."""
        return self._config.waiting_max - len(self._waiting)

    async def wait_for_room(self, timeout_s: float) -> bool:
        """Wait until another job may wait here; False when that takes longer than `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                while self.room <= 0:
                    self._moved.clear()
                    await self._moved.wait()
        except TimeoutError:
            return False
        return True

    def put(self, job: Job[RequestT]) -> None:
        """Add a job to the queue."""
        self._waiting.put(job)

    def withdraw(self, keys: Iterable[JobKey]) -> None:
        """Drop jobs of this process that are answered as withdrawn, unless they have begun."""
        self._withdrawn = {key for key in self._withdrawn if self._jobs.holds(key)} | set(keys)

    async def run(self, finish_within_s: float) -> None:
        """Execute jobs until the process stops; then finish what is under way, or cut it off."""
        stopped = asyncio.create_task(self._stopping.wait(), name="job-runner-stop")
        runners = {asyncio.create_task(self._run_jobs(), name="job-runner") for _ in range(self._config.concurrency)}
        try:
            done, _ = await asyncio.wait({stopped, *runners}, return_when=asyncio.FIRST_COMPLETED)
            for failed in done & runners:
                failed.result()
            self._waiting.clear()
            for _ in runners:
                self._waiting.put(None)
            await asyncio.wait(runners, timeout=finish_within_s)
        finally:
            for task in (stopped, *runners):
                task.cancel()
            await asyncio.wait({stopped, *runners}, timeout=1.0)

    async def _run_jobs(self) -> None:
        while (job := await self._waiting.take()) is not None:
            self._moved.set()
            if job.attempt.deliveries >= SUSPECT_DELIVERIES:
                async with self._quarantine:
                    await self._finish(job)
            else:
                await self._finish(job)

    async def _finish(self, job: Job[RequestT]) -> None:
        key = (job.request.run_id, job.request.request_id)
        if key in self._withdrawn:
            self._withdrawn.discard(key)
            return
        await self._do(job)
        self._withdrawn.discard(key)

    async def _do(self, job: Job[RequestT]) -> None:
        timestamps.mark("worker.begun")
        started_at = utc_now()
        answer = self._refusal(job, started_at)
        if answer is None:
            try:
                if self._must_record(job) and not await self._record_start(job):
                    return
            except Exception as error:
                if not is_refusal(error):
                    raise
                answer = self._not_begun(job, error)
            else:
                answer = await self._execute(job, started_at)
        if answer is None:
            self._jobs.let_go((job.request.run_id, job.request.request_id))
            return
        self._outbox.add(self._finished(job, answer, started_at))

    def _finished(self, job: Job[RequestT], answer: Answer, started_at: datetime) -> Finished:
        """Complete an answer and encode it. An error replaces an answer that cannot be encoded."""
        # Only this job has the answer so far. So it is changed in place: a copy takes pydantic longer than making it.
        vars(answer).update(worker=self._instance, started_at=started_at, finished_at=utc_now())
        try:
            encoded = answer.to_bytes()
            codec.check_text(encoded, limits=codec.ANSWER)
            return Finished(job.request, answer, job.traceparent, encoded)
        except codec.InvalidJson as error:
            self._log.error("an answer is not JSON", request_id=job.request.request_id, error=str(error))
            told = self._worker.unstorable(job.request, answer, f"the answer is not JSON: {error}")
            grant = job.request.grant
            spend = Spend(tokens=grant.tokens, usd_micros=grant.usd_micros)
            vars(told).update(worker=self._instance, started_at=started_at, finished_at=utc_now(), spend=spend)
            return Finished(job.request, told, job.traceparent, told.to_bytes())

    def _refusal(self, job: Job[RequestT], now: datetime) -> Answer | None:
        """Return the answer to a job that must not be executed, or None."""
        request, deliveries = job.request, job.attempt.deliveries
        if job.was_parked:
            message = "the upstream took the work on and did not call back in time"
            return self._failed(job, ErrorCode.TIMEOUT, message, spent=True)
        if deliveries > self._config.max_deliveries:
            return self._failed(
                job,
                ErrorCode.INTERNAL,
                f"request {request.request_id} was given out {deliveries - 1} times and its worker died each time; "
                "see the worker's log",
                spent=True,
            )
        if job.was_started and not request.grant.is_free:
            return self._failed(
                job,
                ErrorCode.UNAVAILABLE,
                "the process that worked on this is gone; what it spent is not known and counts as the whole grant",
                spent=True,
            )
        if request.deadline_at <= now:
            return self._failed(
                job, ErrorCode.TIMEOUT, f"the deadline {request.deadline_at:%H:%M:%S} UTC had passed before the start"
            )
        return None

    @staticmethod
    def _must_record(job: Job[RequestT]) -> bool:
        """Return whether the start is written down first: money may be spent, or an earlier process ended badly."""
        return job.attempt.taken_over or not job.request.grant.is_free

    async def _record_start(self, job: Job[RequestT]) -> bool:
        while not self._stopping.is_set():
            try:
                ours = await self._jobs.start((job.request.run_id, job.request.request_id))
            except POSTGRES_GONE as error:
                if is_refusal(error):
                    raise
                await self._outage.wait(error, unless=self._stopping)
            else:
                self._outage.over()
                return ours
        return False

    async def _execute(self, job: Job[RequestT], started_at: datetime) -> Answer | None:
        request = job.request
        left_s = (request.deadline_at - started_at).total_seconds()
        deadline = TimeLimit(left_s)
        try:
            failpoints.hit("worker.before_execute")
            with on_behalf_of(request.run_id, request.tenant, job.traceparent):
                answer = await deadline.hold(self._worker.execute(request, job.attempt))
            failpoints.hit("worker.after_execute")
            timestamps.mark("worker.executed")
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            return self._failed(job, ErrorCode.CANCELLED, "a library cancelled the attempt", spent=True)
        except Exception as error:  # noqa: BLE001 - a worker may raise anything, and each request gets an answer
            if deadline.expired():
                return self._failed(
                    job, ErrorCode.TIMEOUT, f"no answer before the deadline, {left_s:.1f} s after the start", spent=True
                )
            self._log.exception("attempt failed", **job.about)
            # The text of an unforeseen exception can hold anything, secrets too: it stays in the log.
            return self._failed(
                job,
                ErrorCode.INTERNAL,
                f"{type(error).__name__} in the worker; its log has the details under request {request.request_id}",
                spent=True,
            )
        return answer

    def _not_begun(self, job: Job[RequestT], cause: Exception) -> Answer:
        """Return the answer to a job whose start the database refuses to write down."""
        request_id = job.request.request_id
        self._log.error("a start cannot be stored; the job is not done", request_id=request_id, error=repr(cause))
        message = f"the database refuses to note that this begins, so it was not begun: {type(cause).__name__}"
        # What an earlier life has done, this one does not know.
        known: dict[str, Json] = {} if job.attempt.taken_over else {"effect": "none"}
        error = ToolError(code=ErrorCode.INTERNAL, message=message, details=known)
        return self._worker.failed(job.request, error, Spend())

    def _failed(self, job: Job[RequestT], code: ErrorCode, message: str, *, spent: bool = False) -> Answer:
        grant = job.request.grant
        spend = Spend(tokens=grant.tokens, usd_micros=grant.usd_micros) if spent else Spend()
        return self._worker.failed(job.request, ToolError(code=code, message=message), spend)

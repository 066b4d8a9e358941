"""The lease of this process: renew it, and take over what dead processes left behind.

That is their unfinished jobs, their stored answers and their dead letters that were never published.
"""

from __future__ import annotations

import asyncio
from typing import Generic

from pydantic import ValidationError

from triptych.kernel.process.outage import POSTGRES_GONE, Outage, is_refusal
from triptych.kernel.process.service import Service
from triptych.kernel.worker.contract import JobAttempt, RequestT
from triptych.kernel.worker.job_runner import Job, JobRunner
from triptych.kernel.worker.jobs import Jobs, TakenOverJob
from triptych.kernel.worker.outbox import Outbox
from triptych.schemas import codec

TAKEOVER_MAX = 200
DEAD_LETTERS_MAX = 200
LOOP = "lease"


class LeaseRenewer(Generic[RequestT]):
    """Renews the lease of one process and takes over the jobs of expired ones."""

    def __init__(
        self,
        request_type: type[RequestT],
        jobs: Jobs,
        runner: JobRunner[RequestT],
        outbox: Outbox,
        *,
        lease_ms: int,
        service: Service,
    ) -> None:
        self._request_type, self._jobs, self._runner, self._outbox = request_type, jobs, runner, outbox
        self._interval_s = lease_ms / 3_000
        self._health, self._log, self._stopping = service.health, service.log, service.stopping
        self._postgres = Outage(service.log, "postgres")

    async def run(self) -> None:
        """Renew and take over, immediately and then three times a lease, until the process stops."""
        self._health.expect(LOOP, 60.0 + self._interval_s)
        while not self._stopping.is_set():
            self._health.beat(LOOP)
            try:
                await self._jobs.renew()
                await self._take_over()
                await self._take_over_answers()
                self._outbox.publish_dead_letters(await self._jobs.unpublished_dead_letters(DEAD_LETTERS_MAX))
            except Exception as error:
                if is_refusal(error):
                    self._log.error("jobs cannot be taken over: the database refuses one of them", error=repr(error))
                elif not isinstance(error, POSTGRES_GONE):
                    raise
                await self._postgres.wait(error, unless=self._stopping)
                continue
            self._postgres.over()
            try:
                async with asyncio.timeout(self._interval_s):
                    await self._stopping.wait()
            except TimeoutError:
                continue

    async def _take_over(self) -> None:
        while self._runner.room > 0 and not self._stopping.is_set():
            taken = await self._jobs.take_over(TAKEOVER_MAX)
            for job in taken:
                self._give_out(job)
            if taken:
                self._health.count("jobs_taken_over", len(taken))
            if len(taken) < TAKEOVER_MAX:
                return

    async def _take_over_answers(self) -> None:
        while not self._stopping.is_set() and (taken := await self._jobs.take_over_answers()) is not None:
            self._health.count("answers_taken_over", len(taken.answers))
            self._outbox.publish_taken_over(taken)

    def _give_out(self, job: TakenOverJob) -> None:
        if job.answer is not None:
            self._outbox.publish_stored(job.key, job.partition, job.tenant, job.traceparent, job.answer)
            return
        try:
            request = codec.read(self._request_type, job.request or b"", limits=codec.STORED)
        except (codec.InvalidJson, ValidationError) as error:
            # It was valid when it was stored, so another version stored it. The executor's deadline answers.
            self._log.error("stored request cannot be read", request_id=job.request_id, error=str(error))
            return
        attempt = JobAttempt(lease=self._jobs.lease, deliveries=job.deliveries, taken_over=True)
        taken = Job(request, attempt, job.traceparent, was_started=job.was_started, was_parked=job.was_parked)
        self._log.warning("job taken over", **taken.about, deliveries=job.deliveries, was_started=job.was_started)
        self._runner.put(taken)

"""Compose the worker loop: intake, job runner, outbox and lease renewer around one lease."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import asyncpg

from triptych.kernel.concurrency.cancellation import foreign_cancellation
from triptych.kernel.kafka.bus import Kafka
from triptych.kernel.process.outage import POSTGRES_GONE, is_refusal
from triptych.kernel.process.service import Service
from triptych.kernel.process.settings import ServiceSettings
from triptych.kernel.worker.contract import RequestT, Worker, WorkerConfig
from triptych.kernel.worker.intake import Intake
from triptych.kernel.worker.job_runner import JobRunner
from triptych.kernel.worker.jobs import Jobs
from triptych.kernel.worker.lease import LeaseRenewer
from triptych.kernel.worker.outbox import CommitHook, Outbox
from triptych.kernel.worker.unpersisted import UnpersistedRequests
from triptych.kernel.worker.withdrawals import Withdrawals

Beside = Callable[[Jobs, Outbox], Coroutine[Any, Any, None]]

FLUSH_S = 1.0
"""At the end, the last answers get this long to be committed and published."""


async def run_worker(
    service: Service,
    settings: ServiceSettings,
    worker: Worker[RequestT],
    config: WorkerConfig,
    *,
    pool: asyncpg.Pool,
    commit_hook: CommitHook | None = None,
    beside: Beside | None = None,
    kafka: Kafka | None = None,
) -> None:
    """Work until `service.stopping` is set; then finish or hand back, within the shutdown timeout.

    `commit_hook` writes what belongs to the accepted answers, in the same commit. `beside` runs as long as the job
    runner does, and may answer jobs that are parked.
    """

    async def probe_postgres() -> None:
        await pool.fetchval("select 1")

    service.health.depend("postgres", probe_postgres)
    kafka = kafka or Kafka(settings)
    jobs = Jobs(pool, settings.instance, config.lease_ms)
    await jobs.open()
    async with kafka.publisher() as publisher:
        unpersisted = UnpersistedRequests()
        outbox = Outbox(
            service,
            settings,
            config,
            worker,
            jobs=jobs,
            publisher=publisher,
            unpersisted=unpersisted,
            commit_hook=commit_hook,
        )
        runner = JobRunner(worker, config, jobs, outbox, instance=settings.instance, service=service)
        withdrawals = Withdrawals(service, config.request_noun, worker, jobs=jobs, runner=runner, outbox=outbox)
        intake = Intake(
            service,
            settings,
            config,
            worker,
            jobs=jobs,
            runner=runner,
            outbox=outbox,
            unpersisted=unpersisted,
            withdrawals=withdrawals,
            kafka=kafka,
        )
        renewer = LeaseRenewer(worker.request_type, jobs, runner, outbox, lease_ms=config.lease_ms, service=service)
        async with asyncio.TaskGroup() as tasks:
            publishing = tasks.create_task(_fail_if_cancelled(outbox.run()), name="outbox")
            tasks.create_task(_fail_if_cancelled(renewer.run()), name="lease")
            tasks.create_task(_fail_if_cancelled(intake.run()), name="intake")
            aside = (
                tasks.create_task(_fail_if_cancelled(beside(jobs, outbox)), name="beside")
                if beside is not None
                else None
            )
            await runner.run(finish_within_s=max(settings.shutdown_timeout_ms / 1000 - 3.0, 0.1))
            if aside is not None:
                aside.cancel()
                await asyncio.wait({aside})
            outbox.close()
            await asyncio.wait({publishing}, timeout=FLUSH_S)
            publishing.cancel()
        await _hand_back(jobs, service)


async def _hand_back(jobs: Jobs, service: Service) -> None:
    """Give back the lease with its jobs. Without Postgres, the lease expires instead."""
    try:
        await jobs.close()
    except Exception as error:
        if not isinstance(error, POSTGRES_GONE) and not is_refusal(error):
            raise
        service.log.warning("jobs could not be handed back; their lease will expire", error=repr(error))


async def _fail_if_cancelled(part: Coroutine[Any, Any, None]) -> None:
    """End the process when a library cancels a part. A task group would take that part for one that is done."""
    with foreign_cancellation():
        await part

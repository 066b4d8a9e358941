"""The executor's composition root: `python -m triptych.executor`."""

from __future__ import annotations

import asyncio

from triptych.contracts.registry import ContractRegistry
from triptych.executor.intake import Executor
from triptych.executor.rollout import Rollout
from triptych.executor.settings import ExecutorSettings
from triptych.executor.store import ExecutorStore
from triptych.kernel import killable
from triptych.kernel.decider import DeciderLoop
from triptych.kernel.postgres import database
from triptych.kernel.process.service import Service, run
from triptych.kernel.process.settings import load_settings


async def serve(service: Service, settings: ExecutorSettings) -> None:
    """Run the decider loop over the runs of this process's partitions."""
    await asyncio.to_thread(killable.prepare)
    async with (
        await database.connect(settings.postgres.get_secret_value(), settings.instance) as pool,
        ContractRegistry(service, settings) as contracts,
    ):
        store = ExecutorStore(pool, service.log)
        rollout = Rollout(service, store, settings.playbooks)
        await rollout.look()
        executor = Executor(
            rollout.deployments,
            settings.max_active_runs,
            settings.tenant_active_runs,
            settings.input_max_bytes,
            contracts,
            left_out=rollout.left_out,
        )
        await contracts.ready()
        following = asyncio.create_task(rollout.follow(executor), name="playbooks")
        try:
            await DeciderLoop(service, settings, executor, store, pool).run()
        finally:
            following.cancel()


if __name__ == "__main__":
    run("executor", load_settings(ExecutorSettings), serve)

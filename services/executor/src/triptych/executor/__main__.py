"""The executor's composition root: `python -m triptych.executor`."""

from __future__ import annotations

import asyncio

from triptych.executor.deployments import Deployment, load_playbooks, shown
from triptych.executor.intake import Executor
from triptych.executor.settings import ExecutorSettings
from triptych.executor.store import ExecutorStore
from triptych.kernel import database, killable
from triptych.kernel.decider import DeciderLoop
from triptych.kernel.registry import ContractRegistry
from triptych.kernel.service import Service, run
from triptych.kernel.settings import load_settings


async def serve(service: Service, settings: ExecutorSettings) -> None:
    """Run the decider loop over the runs of this process's partitions."""
    # In a thread of its own, for a folder of odd files takes long to read, and this process must stay alive.
    folder = await asyncio.to_thread(load_playbooks, settings.playbooks)
    playbooks = folder.playbooks
    await asyncio.to_thread(killable.prepare)
    for each in folder.left_out:
        service.log.error("playbook left out", playbook=each.name, file=shown(each.file), why=shown(each.why))
        service.health.warn(f"playbook {shown(each.name)}", f"left out: {shown(each.why)}")
    async with (
        await database.connect(settings.postgres.get_secret_value(), settings.instance) as pool,
        ContractRegistry(service, settings) as contracts,
    ):
        store = ExecutorStore(pool, service.log)
        await store.deploy(playbooks)
        service.log.info("playbooks deployed", playbooks=[f"{p.name}@{p.version}" for p in playbooks])
        deployments = {playbook.name: Deployment.of(playbook) for playbook in playbooks}
        executor = Executor(
            deployments,
            settings.max_active_runs,
            settings.tenant_active_runs,
            settings.input_max_bytes,
            contracts,
            left_out={each.name: each for each in folder.left_out},
        )
        await contracts.ready()
        await DeciderLoop(service, settings, executor, store, pool).run()


if __name__ == "__main__":
    run("executor", load_settings(ExecutorSettings), serve)

"""Runs workflows of five activities on Temporal: `client` starts them, the other roles are its workers."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from datetime import timedelta

from hold import STEPS, serve
from temporalio import activity, workflow
from temporalio.api.workflowservice.v1 import RegisterNamespaceRequest
from temporalio.client import Client
from temporalio.common import WorkflowIDReusePolicy
from temporalio.service import RPCError
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

_AT_ONCE = 1_000
_TIMEOUT = timedelta(minutes=1)
_KEPT = timedelta(days=1)
_TRIES = 60


@activity.defn
async def step(value: int) -> int:
    return value


@workflow.defn
class Play:
    """Five activities, one after the other, on the task queue that it is given."""

    @workflow.run
    async def run(self, queue: str) -> list[int]:
        return [
            await workflow.execute_activity(step, 1, task_queue=queue, start_to_close_timeout=_TIMEOUT)
            for _ in range(STEPS)
        ]


async def _client(client: Client, queue: str, steps: str) -> None:
    await _make_namespace(client, queue, steps)

    async def play(key: str) -> object:
        return await client.execute_workflow(
            Play.run, steps, id=key, task_queue=queue, id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE
        )

    await serve(play)


async def _make_namespace(client: Client, queue: str, steps: str) -> None:
    """Register the namespace, and wait until the server's cache of namespaces knows it."""
    request = RegisterNamespaceRequest(namespace=client.namespace)
    request.workflow_execution_retention_period.FromTimedelta(_KEPT)
    with contextlib.suppress(RPCError):  # the other client was faster
        await client.workflow_service.register_namespace(request)
    for _ in range(_TRIES):
        with contextlib.suppress(RPCError):
            await client.start_workflow(Play.run, steps, id=f"first-{queue}", task_queue=queue)
            return
        await asyncio.sleep(1)
    raise RuntimeError(f"the namespace {client.namespace} is not there after {_TRIES} s")


async def _worker(client: Client, queue: str, *, workflows: bool, activities: bool) -> None:
    await Worker(
        client,
        task_queue=queue,
        workflows=[Play] if workflows else [],
        activities=[step] if activities else [],
        max_concurrent_activities=_AT_ONCE,
        max_concurrent_workflow_tasks=_AT_ONCE,
        workflow_runner=UnsandboxedWorkflowRunner(),
    ).run()


async def _main(address: str, role: str, queue: str, steps: str) -> None:
    client = await Client.connect(address)
    if role == "client":
        await _client(client, queue, steps)
    else:
        await _worker(client, queue, workflows=role != "activities", activities=role != "workflows")


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))

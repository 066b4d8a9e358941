"""The task service as an MCP server: five tools with structured results, and progress while a client waits."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import ToolAnnotations
from pydantic import Field, ValidationError

from triptych.client import ClientError
from triptych.operator.mcp.task_service import Playbooks, Started, TaskCancelled, TaskOutcome, TaskService, TaskStatus
from triptych.schemas import codec

WAIT_MAX_S = 600.0

INSTRUCTIONS = (
    "Triptych runs agents. Each playbook is one agent with a goal and a form of input. First list_playbooks, then "
    "start_task, then get_outcome, which waits. A task that needs a person says so; it is then not yours to decide."
)

READS = ToolAnnotations(read_only_hint=True, open_world_hint=False)
STARTS = ToolAnnotations(read_only_hint=False, destructive_hint=False, idempotent_hint=False, open_world_hint=True)

CANCELS = ToolAnnotations(read_only_hint=False, destructive_hint=True, idempotent_hint=True, open_world_hint=False)

TaskId = Annotated[str, Field(description="As start_task has given it.")]


def build(service: TaskService) -> MCPServer[Any]:
    """Build the MCP server of a task service."""
    server: MCPServer[Any] = MCPServer("triptych", instructions=INSTRUCTIONS, subscriptions=False, log_level="WARNING")

    @server.tool(annotations=READS)
    async def list_playbooks() -> Playbooks:
        """List the agents that can be given tasks, each with the JSON Schema of its input."""
        async with _errors_of_tools():
            return await service.playbooks()

    @server.tool(annotations=STARTS)
    async def start_task(
        playbook: Annotated[str, Field(description="The name of a playbook.")],
        input: Annotated[dict[str, Any], Field(description="Fits the playbook's schema of input.")],  # noqa: A002 - the word of the wire
        task_id: Annotated[
            str | None, Field(description="Yours, if a repeated start must not be a second task.", max_length=200)
        ] = None,
    ) -> Started:
        """Start a task and return immediately. Its outcome says how it ended, also when it is refused."""
        async with _errors_of_tools():
            return await service.start(playbook, input, task_id)

    @server.tool(annotations=READS)
    async def task_status(task_id: TaskId) -> TaskStatus:
        """Say where a task stands now: its status, its steps, and what it has cost."""
        async with _errors_of_tools():
            return await service.status(task_id)

    @server.tool(annotations=READS)
    async def get_outcome(
        task_id: TaskId,
        ctx: Context[Any, Any],
        wait_s: Annotated[
            float, Field(ge=0, le=WAIT_MAX_S, description="How many seconds to wait for it at most.")
        ] = 60.0,
    ) -> TaskOutcome:
        """Wait for the outcome of a task, and tell on the way how far it is. `not_yet` means: ask again."""

        async def tell(waited_s: float, how_far: str) -> None:
            await ctx.report_progress(waited_s, message=how_far)

        async with _errors_of_tools():
            return await service.outcome(task_id, wait_s, tell)

    @server.tool(annotations=CANCELS)
    async def cancel_task(
        task_id: TaskId,
        why: Annotated[str, Field(max_length=2_000, description="Kept in the journal of the run.")] = "",
    ) -> TaskCancelled:
        """Cancel a task of yours that is not over. What it has done stays done, and its outcome says `cancelled`."""
        async with _errors_of_tools():
            return await service.cancel(task_id, why)

    return server


@asynccontextmanager
async def _errors_of_tools() -> AsyncIterator[None]:
    """Report errors in the words that the command line uses."""
    try:
        yield
    except (ClientError, codec.InvalidJson) as error:
        raise ToolError(str(error)) from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        raise ToolError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error

"""Calls that a server takes on as a task, by the extension `io.modelcontextprotocol/tasks` of protocol 2026-07-28.

The call waits for its task inside the one attempt, and asks the server at the interval that the server wants. If the
call ends first, at its time limit or by cancellation, the task is cancelled too.
See https://github.com/modelcontextprotocol/ext-tasks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated, Any, Literal

from mcp import MCPError, types
from mcp.client.extension import ClaimContext, ClientExtension, ResultClaim
from mcp.client.session import ClientSession
from pydantic import Field, ValidationError

from triptych.schemas.result import ErrorCode

POLL_MS, POLL_MIN_MS, POLL_MAX_MS = 1_000, 50, 30_000
"""How long to wait between two questions: by default, at least, and at most."""
ERRORS_IN_A_ROW_MAX = 5
"""After so many questions without an answer the task is given up."""
CANCEL_WITHIN_S = 5.0
_FINAL = frozenset({types.INVALID_PARAMS, types.METHOD_NOT_FOUND, types.MISSING_REQUIRED_CLIENT_CAPABILITY})
"""With these errors a server says that it knows no such task, and will not know it later."""


class TaskFailedError(Exception):
    """A task has no result. It may still have taken effect."""

    def __init__(self, task_id: str, code: ErrorCode, why: str, *, asks: bool = False) -> None:
        """`asks`: it wants an answer in the middle of its work."""
        self.task_id, self.code, self.why, self.asks = task_id, code, why, asks
        super().__init__(why)


class _Created(types.Result):
    result_type: Literal["task"] = "task"
    task_id: Annotated[str, Field(min_length=1, max_length=1_000)]
    poll_interval_ms: int | None = None


class _State(types.Result):
    status: Literal["working", "input_required", "completed", "cancelled", "failed"]
    status_message: str | None = None
    poll_interval_ms: int | None = None
    result: dict[str, Any] | None = None
    error: types.ErrorData | None = None


class _Get(types.GetTaskRequest):
    name_param = "taskId"


class _Cancel(types.CancelTaskRequest):
    name_param = "taskId"


class Tasks(ClientExtension):
    """Waits for the tasks of a connection."""

    identifier = "io.modelcontextprotocol/tasks"

    def __init__(self) -> None:
        self._cancelling: set[asyncio.Task[None]] = set()

    def claims(self) -> Sequence[ResultClaim[Any]]:
        """Claim the results of calls that are tasks."""
        return [ResultClaim(result_type="task", model=_Created, resolve=self._result)]

    async def _result(self, created: _Created, context: ClaimContext) -> types.CallToolResult:
        """Return the result of a task, waited for.

        Raises:
            TaskFailedError: it has none.
        """
        is_over = False
        try:
            state = await self._over(created, context.session)
            is_over = state.status != "input_required"
            return _result_of(created.task_id, state)
        finally:
            if not is_over:
                # The end of a call does not wait for that.
                cancelling = asyncio.create_task(_cancel(created.task_id, context.session), name="mcp task cancel")
                self._cancelling.add(cancelling)
                cancelling.add_done_callback(self._cancelling.discard)

    async def _over(self, created: _Created, session: ClientSession) -> _State:
        """Return the state of a task that does not work any more."""
        wait_ms, errors = created.poll_interval_ms, 0
        while True:
            await asyncio.sleep(min(max(wait_ms or POLL_MS, POLL_MIN_MS), POLL_MAX_MS) / 1_000)
            try:
                request = _Get(params=types.GetTaskRequestParams(task_id=created.task_id))
                state = await session.send_request(request, _State)
            except MCPError as error:
                errors += 1
                if error.code in _FINAL:
                    raise TaskFailedError(created.task_id, ErrorCode.CONTRACT_VIOLATION, error.message) from None
                if errors >= ERRORS_IN_A_ROW_MAX:
                    raise TaskFailedError(created.task_id, ErrorCode.UNAVAILABLE, error.message) from None
                continue
            if state.status != "working":
                return state
            wait_ms, errors = state.poll_interval_ms or wait_ms, 0


def _result_of(task_id: str, state: _State) -> types.CallToolResult:
    match state.status:
        case "completed":
            try:
                return types.CallToolResult.model_validate(state.result, by_name=False)
            except ValidationError:
                raise TaskFailedError(task_id, ErrorCode.CONTRACT_VIOLATION, "its result is not MCP") from None
        case "input_required":
            raise TaskFailedError(task_id, ErrorCode.CONTRACT_VIOLATION, "it wants an answer", asks=True)
        case "cancelled":
            raise TaskFailedError(task_id, ErrorCode.CANCELLED, state.status_message or "the server has cancelled it")
        case _:
            why = state.error.message if state.error else state.status_message
            raise TaskFailedError(task_id, ErrorCode.INTERNAL, why or "it failed")


async def _cancel(task_id: str, session: ClientSession) -> None:
    request = _Cancel(params=types.CancelTaskRequestParams(task_id=task_id))
    with suppress(MCPError, RuntimeError, ValidationError, TimeoutError):
        async with asyncio.timeout(CANCEL_WITHIN_S):
            await session.send_request(request, types.EmptyResult)

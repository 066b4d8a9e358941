"""How an operation says that it failed."""

from __future__ import annotations

from triptych.kernel.errors import ConfigurationError
from triptych.schemas.base import Json
from triptych.schemas.result import ErrorCode, Result
from triptych.tools.sdk import refusals

EFFECT = "effect"
NO_EFFECT = "none"
DONE = "done"


class ToolFailure(Exception):
    """Raise it in an operation to answer with an error. The message must hold no secret.

    `undone` says whether it is certain that the call changed nothing. When it is None, the code decides: see
    `refusals.CODES`. `done` says that the upstream has certainly done it, and only its answer is of no use.
    """

    def __init__(
        self,
        code: ErrorCode,
        message: str,
        *,
        retry_after_ms: int | None = None,
        undone: bool | None = None,
        done: bool = False,
        **details: Json,
    ) -> None:
        self.code, self.message, self.retry_after_ms, self.details = code, message, retry_after_ms, details
        self.done = done
        self.undone = refusals.is_refusal_by_code(code) if undone is None else undone
        super().__init__(f"{code}: {message}")

    def result(self, **details: Json) -> Result:
        """Return the result that this failure is answered with."""
        return Result.failed(self.code, self.message, retry_after_ms=self.retry_after_ms, **self.details | details)


class ToolDefinitionError(ConfigurationError):
    """A tool is written in a way that cannot work; found when its module is loaded, not at the first call."""

    def __init__(self, tool: str, place: str, cure: str) -> None:
        self.tool, self.place, self.cure = tool, place, cure
        super().__init__(f"tool {tool}: {place}: {cure}")

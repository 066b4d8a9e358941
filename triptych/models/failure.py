"""The failures of a model call, as one error type with a code from the closed list.

Messages are ours: an endpoint's own words may hold the prompt or a key. So only a short excerpt of the provider's
stated message is kept, with secrets masked.
"""

from __future__ import annotations

import re

from pydantic_ai.exceptions import (
    ModelAPIError,
    ModelConnectionError,
    ModelContextWindowExceededError,
    ModelHTTPError,
    ModelQuotaExceededError,
    ModelRateLimitError,
    ModelRequestTimeout,
    ModelTimeoutError,
    UnexpectedModelBehavior,
)

from triptych.kernel.errors import TriptychError
from triptych.schemas import ErrorCode, Json, Spend, ToolError

MAX_EXCERPT_CHARS = 300
_LOOKED_AT_MAX_CHARS = 4_000
_KEY_LIKE = re.compile(r"\b(?:sk|pk)-[\w*-]{6,}|\bBearer\s+\S+|\b[\w-]{32,}\b")

_STATUS = {
    400: ErrorCode.INVALID_ARGUMENTS,
    401: ErrorCode.UNAUTHENTICATED,
    402: ErrorCode.FORBIDDEN,
    403: ErrorCode.FORBIDDEN,
    404: ErrorCode.INVALID_ARGUMENTS,
    408: ErrorCode.TIMEOUT,
    409: ErrorCode.UNAVAILABLE,
    413: ErrorCode.INVALID_ARGUMENTS,
    422: ErrorCode.INVALID_ARGUMENTS,
    429: ErrorCode.RATE_LIMITED,
}
_GATEWAY_GAVE_UP = frozenset({502, 504})
"""Statuses of a gateway that stopped waiting: the model behind it may have done the work."""
_CURE = {
    ErrorCode.UNAUTHENTICATED: "; check its key (docs/reference/models.md)",
    ErrorCode.FORBIDDEN: "; check what the key may use, and the account's quota",
}


PASSING = frozenset({ErrorCode.RATE_LIMITED, ErrorCode.UNAVAILABLE, ErrorCode.TIMEOUT})
"""Codes that time may cure."""
_NOT_THERE = PASSING | {ErrorCode.UNAUTHENTICATED, ErrorCode.FORBIDDEN}


class ModelFailure(TriptychError):
    """A model call that gave no usable answer: why, when to try again, and what it cost nevertheless."""

    def __init__(
        self,
        code: ErrorCode,
        message: str,
        retry_after_ms: int | None = None,
        spend: Spend | None = None,
        *,
        details: dict[str, Json] | None = None,
    ) -> None:
        self.code, self.message, self.retry_after_ms, self.details = code, message, retry_after_ms, details or {}
        self.spend = spend or Spend()
        super().__init__(f"{code.value}: {message}")

    @property
    def is_elsewhere_worth_a_try(self) -> bool:
        """Whether another model may answer what this one did not: it was not there, and it cost nothing."""
        return self.code in _NOT_THERE and self.spend.tokens == 0 and "model" not in self.details

    def as_error(self) -> ToolError:
        """Return the failure as it travels in an answer."""
        return ToolError(
            code=self.code, message=self.message[:4_000], retry_after_ms=self.retry_after_ms, details=self.details
        )


def from_error(
    error: ModelAPIError | UnexpectedModelBehavior, model: str, *, unknown: Spend, unbilled: Spend
) -> ModelFailure:
    """Turn an error of the provider, or on the way there, into a failure.

    `unknown` is the spend when the request may have been worked on, `unbilled` when it was not.
    """
    match error:
        case ModelConnectionError() if error.phase in {"pool", "connect"}:
            message = f"{model} cannot be reached ({_cause(error)}); check the URL of its endpoint and the network"
            return ModelFailure(ErrorCode.UNAVAILABLE, message, None, unbilled)
        case ModelRequestTimeout() | ModelTimeoutError():
            message = f"{model} did not answer in time; what it cost is not known"
            return ModelFailure(ErrorCode.TIMEOUT, message, None, unknown)
        case ModelConnectionError():
            message = f"the connection to {model} broke ({_cause(error)}); what the call cost is not known"
            return ModelFailure(ErrorCode.UNAVAILABLE, message, None, unknown)
        case ModelHTTPError():
            return _from_status(error, model, unknown if error.status_code in _GATEWAY_GAVE_UP else unbilled)
    message = f"what answered in place of {model} does not speak its API; check the URL of its endpoint"
    return ModelFailure(ErrorCode.UNAVAILABLE, message, None, unknown)


def _from_status(error: ModelHTTPError, model: str, spend: Spend) -> ModelFailure:
    code = _code(error)
    # Endpoints like to echo the key that they refuse.
    said = "" if code is ErrorCode.UNAUTHENTICATED else _excerpt(error)
    message = f"{model} answered HTTP {error.status_code}{said}{_CURE.get(code, '')}"
    retry_after_ms = None if error.retry_after is None else max(0, round(error.retry_after * 1000))
    return ModelFailure(code, message, retry_after_ms, spend, details={"http_status": error.status_code})


def _code(error: ModelHTTPError) -> ErrorCode:
    if isinstance(error, ModelContextWindowExceededError):
        return ErrorCode.INVALID_ARGUMENTS
    if isinstance(error, ModelQuotaExceededError):
        return ErrorCode.FORBIDDEN
    if isinstance(error, ModelRateLimitError):
        return ErrorCode.RATE_LIMITED
    return _STATUS.get(error.status_code, ErrorCode.UNAVAILABLE)


def _cause(error: ModelConnectionError) -> str:
    cause = error.__cause__
    while cause is not None and cause.__cause__ is not None:
        cause = cause.__cause__
    return type(cause or error).__name__


def _excerpt(error: ModelHTTPError) -> str:
    body = error.body
    said = body.get("message") if isinstance(body, dict) else None
    if not isinstance(said, str) or not said.strip():
        return ""
    return f": {_KEY_LIKE.sub('***', ' '.join(said[:_LOOKED_AT_MAX_CHARS].split()))[:MAX_EXCERPT_CHARS]}"

"""The options of a write: how its key is sent, how its result is found, and how a callback completes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import AfterValidator, Field

from triptych.kernel.errors import ConfigurationError
from triptych.playbook import expressions
from triptych.playbook.expressions import ExpressionError
from triptych.schemas.base import Json
from triptych.schemas.result import ErrorCode
from triptych.tools.adapters.rest.endpoint import Endpoint, KeyCarrier, KeyLocation
from triptych.tools.adapters.rest.operations import LOOKUP_ARGUMENTS, LOOKUP_FOUND, Lookup
from triptych.tools.sdk.call import NotYet
from triptych.tools.sdk.failure import ToolFailure
from triptych.tools.sdk.operation import ACCEPT_WITHIN_MS, Completion
from triptych.tools.sdk.source import Options


def _is_condition(expression: str) -> str:
    try:
        expressions.check(expression, frozenset({"body"}))
    except ExpressionError as error:
        raise ValueError(str(error)) from None
    return expression


Success = Annotated[str, AfterValidator(_is_condition)]
"""CEL over `body`: true when a call worked."""


class KeyOption(Options):
    """How the idempotency key is sent: one of these, with a name."""

    header: str | None = None
    query: str | None = None
    field: str | None = None
    """A field of the body."""
    natural: str | None = None
    """Nothing is sent: this argument makes the call recognisable, such as the number of an order."""

    @property
    def carrier(self) -> KeyCarrier | None:
        for place in KeyLocation:
            if (name := getattr(self, place.value)) is not None:
                return KeyCarrier(place, name)
        return None


class LookupOption(Options):
    """How to find the result of a write whose answer was lost."""

    operation: str
    """A read of the same tool, by its name without the tool's."""
    arguments: dict[str, Json] = Field(default_factory=dict)
    """Templates (`${{ ... }}`) see `arguments` of the write and its idempotency `key`."""
    found: str = "result"
    """An expression over `result` of the lookup, `arguments` and `key`: the write's result, or null."""


class CallbackOption(Options):
    """The upstream answers 202 and calls back. Expressions see the `body` of the callback."""

    result: str = "body"
    """The operation's result."""
    pending: str | None = None
    """True: the work goes on, and another callback follows."""
    failed: str | None = None
    """Not null and not false: the work failed; a text is the reason."""
    accept_within_ms: Annotated[int, Field(ge=100, le=600_000)] = ACCEPT_WITHIN_MS
    """The time limit of the request; `timeout_ms` is for the whole then."""


CALLBACK = frozenset({"body"})
"""The variables of what reads a callback."""


def completion_from(stated: CallbackOption, operation: str, key: str) -> Completion:
    """Return how an operation is completed by the callback that an option describes; `key` is the option's.

    Raises:
        ConfigurationError: an expression could never work.
    """
    for name in ("result", "pending", "failed"):
        expression = getattr(stated, name)
        try:
            if expression is not None:
                expressions.check(expression, CALLBACK)
        except ExpressionError as error:
            raise ConfigurationError(f"{key}.{name}: {error}") from None

    async def read(body: Json) -> Json:
        scope = {"body": body}
        try:
            if stated.pending is not None and expressions.evaluate(stated.pending, scope) is True:
                raise NotYet
            why = None if stated.failed is None else expressions.evaluate(stated.failed, scope)
            if why is None or why is False:
                return expressions.evaluate(stated.result, scope)
        except ExpressionError as error:
            raise ToolFailure(
                ErrorCode.CONTRACT_VIOLATION, f"the callback of {operation} cannot be read: {error}"
            ) from error
        reason = why if isinstance(why, str) and why else "it gave no reason"
        raise ToolFailure(ErrorCode.INTERNAL, f"the upstream of {operation} reports a failure: {reason}")

    return Completion(read, stated.accept_within_ms)


def lookup_from(stated: LookupOption, endpoints: Mapping[str, Endpoint], key: str) -> Lookup:
    """Return the lookup that an option describes. `endpoints` are those of the tool, by name; `key` is the option's.

    Raises:
        ConfigurationError: it could never work.
    """
    endpoint = endpoints.get(stated.operation)
    if endpoint is None:
        raise ConfigurationError(f"{key}.operation: there is no {stated.operation} here; include it as well")
    if endpoint.contract.effect.writes:
        raise ConfigurationError(f"{key}.operation: {stated.operation} is not a read, and a lookup must change nothing")
    try:
        for expression in expressions.expressions(stated.arguments):
            expressions.check(expression, LOOKUP_ARGUMENTS)
    except ExpressionError as error:
        raise ConfigurationError(f"{key}.arguments: {error}") from None
    try:
        expressions.check(stated.found, LOOKUP_FOUND)
    except ExpressionError as error:
        raise ConfigurationError(f"{key}.found: {error}") from None
    return Lookup(endpoint, stated.arguments, stated.found)

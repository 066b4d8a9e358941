"""What options say of a write: how its key travels, and how to find out what became of it."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field

from triptych.kernel import expressions
from triptych.kernel.errors import ConfigurationError
from triptych.kernel.expressions import ExpressionError
from triptych.schemas.base import Json
from triptych.schemas.contract import Effect
from triptych.tools.rest.endpoint import Endpoint, KeyCarrier, KeyPlace
from triptych.tools.rest.engine import LOOKUP_ARGUMENTS, LOOKUP_FOUND, Lookup
from triptych.tools.source import Options


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
        for place in KeyPlace:
            if (name := getattr(self, place.value)) is not None:
                return KeyCarrier(place, name)
        return None


class LookupOption(Options):
    """How to find out what became of a write whose answer was lost."""

    operation: str
    """A read of the same tool, by its name without the tool's."""
    arguments: dict[str, Json] = Field(default_factory=dict)
    """Templates (`${{ ... }}`) see `arguments` of the write and its idempotency `key`."""
    found: str = "result"
    """An expression over `result` of the lookup, `arguments` and `key`: the write's result, or null."""


def lookup_of(stated: LookupOption, endpoints: Mapping[str, Endpoint], key: str) -> Lookup:
    """The lookup that an option describes. `endpoints` are those of the tool, by name; `key` is the option's.

    Raises:
        ConfigurationError: it could never work.
    """
    endpoint = endpoints.get(stated.operation)
    if endpoint is None:
        raise ConfigurationError(f"{key}.operation: there is no {stated.operation} here; include it as well")
    if endpoint.contract.effect is not Effect.READ:
        raise ConfigurationError(f"{key}.operation: {stated.operation} is no read, and asking must change nothing")
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

"""The settings that protect a tool's upstream: the table `guard` of a tool in triptych.toml.

It works for any adapter. Where the table has no value, the one of the adapter counts (`Tool(guard=...)`).
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Annotated, Self

from pydantic import AfterValidator, Field, ValidationError

from triptych.kernel.errors import ConfigurationError
from triptych.schemas import codec
from triptych.schemas.base import Json
from triptych.tools.sdk.source import Options

GUARD = "TRIPTYCH_TOOL_GUARD"
"""The variable with the table as JSON."""

_RATE = re.compile(r"(\d{1,7})/(s|min|h|day)")
_UNIT_MS = {"s": 1_000, "min": 60_000, "h": 3_600_000, "day": 86_400_000}
_BURST_SHARE = 10


@dataclass(frozen=True, slots=True)
class BreakerPolicy:
    """When a breaker opens, and for how long."""

    failures: int = 5
    """So many failures in a row open it."""
    open_ms: int = 5_000
    """Then nothing is called for so long, and after that one probe."""


@dataclass(frozen=True, slots=True)
class Rate:
    """The most calls in any span of this length, in all processes together."""

    calls: int
    per_ms: int

    @classmethod
    def of(cls, text: str) -> Self:
        """Parse `100/min`. Units are s, min, h and day. Raises ValueError."""
        found = _RATE.fullmatch(text.replace(" ", ""))
        if found is None or int(found[1]) == 0:
            raise ValueError(f"{text!r} is not a rate: write it as 10/s, 100/min, 1000/h or 5000/day")
        return cls(int(found[1]), _UNIT_MS[found[2]])

    @property
    def burst(self) -> int:
        """Return how many may come together after a pause."""
        return max(1, self.calls // _BURST_SHARE)

    @property
    def interval_ms(self) -> float:
        """Return between two calls after a burst, so that burst and trickle together stay within `calls`."""
        return self.per_ms / (self.calls - self.burst + 1)


def _is_a_rate(text: str) -> str:
    Rate.of(text)
    return text


RateText = Annotated[str, AfterValidator(_is_a_rate)]


class OperationGuard(Options):
    """What spares one operation."""

    rate: Annotated[RateText | None, Field(description="At most so many calls, in all processes, as in `100/min`.")] = (
        None
    )
    concurrency: Annotated[int | None, Field(ge=1, description="The most calls at one time in one process.")] = None


_UNGUARDED = OperationGuard()


class BreakerGuard(Options):
    """When breakers open, and for how long."""

    failures: Annotated[int, Field(ge=1, description="So many failures in a row open one.")] = 5
    open_ms: Annotated[int, Field(ge=1, description="Then nothing is called for so long.")] = 5_000


class ProbeGuard(Options):
    """The call that shows whether the upstream is well, before an agent finds out."""

    operation: Annotated[str | None, Field(description="By its name without the tool's; a read.")] = None
    arguments: dict[str, Json] = Field(default_factory=dict)
    every_s: Annotated[int, Field(ge=0, description="0: never.")] = 60


class Guard(OperationGuard):
    """The whole table. Its own rate and concurrency are those of the upstream: of all operations together."""

    breaker: BreakerGuard | None = None
    """When the breaker opens and closes; None leaves that to the adapter."""
    probe: ProbeGuard = ProbeGuard()
    """The call that shows whether the upstream is well."""
    refresh_every_s: Annotated[
        int, Field(ge=0, description="How often the contracts are compared with their source; 0: never.")
    ] = 3_600
    operations: dict[str, OperationGuard] = Field(default_factory=dict)
    """By the operation's own name, what differs for it."""

    def of(self, operation: str) -> OperationGuard:
        """Return the guard of `tool.operation` alone."""
        return self.operations.get(operation.partition(".")[2], _UNGUARDED) if self.operations else _UNGUARDED

    def overridden(self) -> Guard:
        """Return this table with the values of the environment in place of its own, field by field.

        Raises:
            ConfigurationError: a key is not known, or a value has not its form.
        """
        text = os.environ.get(GUARD, "{}")
        try:
            return Guard.model_validate({**self.model_dump(exclude_unset=True), **codec.decode(text)})
        except codec.InvalidJson as error:
            raise ConfigurationError(f"{GUARD}: {error}") from None
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            key = ".".join(str(part) for part in ("guard", *first["loc"]))
            raise ConfigurationError(f"{key}: {first['msg']}; known are {', '.join(Guard.model_fields)}") from None

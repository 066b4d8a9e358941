"""What a model call costs, in whole millionths of a US dollar, rounded up.

A price is either given in the settings or known to genai-prices. A model without a price is refused when the process
starts: a budget in dollars cannot be kept without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from typing import Protocol

from genai_prices import calc_price
from genai_prices.types import AbstractUsage
from pydantic_ai.usage import RequestUsage

from triptych.kernel.errors import ConfigurationError

_ONE = Decimal(1)
_MICROS = Decimal(1_000_000)


class Price(Protocol):
    """The price of one model."""

    def micros(self, usage: RequestUsage) -> int:
        """Return what this usage costs. Raises ValueError for an impossible usage."""
        ...


@dataclass(frozen=True, slots=True)
class GivenPrice:
    """A price from the settings: US dollars for a million tokens, which is millionths of one for each."""

    tokens_in: Decimal
    tokens_out: Decimal
    tokens_cached: Decimal
    """For those of the tokens in that the provider had in its cache."""

    @classmethod
    def of(cls, tokens_in: float, tokens_out: float, tokens_cached: float | None = None) -> GivenPrice:
        cached = tokens_in if tokens_cached is None else tokens_cached
        return cls(Decimal(str(tokens_in)), Decimal(str(tokens_out)), Decimal(str(cached)))

    def micros(self, usage: RequestUsage) -> int:
        fresh = usage.input_tokens - usage.cache_read_tokens
        if fresh < 0:
            raise ValueError(f"{usage.cache_read_tokens} of {usage.input_tokens} tokens in are said to be cached")
        cost = self.tokens_in * fresh + self.tokens_cached * usage.cache_read_tokens
        cost += self.tokens_out * usage.output_tokens
        return int(cost.to_integral_value(ROUND_CEILING))


@dataclass(frozen=True, slots=True)
class ListedPrice:
    """A price that genai-prices knows, with its tiers and its discount for cached tokens."""

    model: str
    provider: str | None

    def micros(self, usage: AbstractUsage) -> int:
        cost = calc_price(usage, self.model, provider_id=self.provider).total_price
        return int((cost * _MICROS).quantize(_ONE, ROUND_CEILING))


def price_of(
    name: str, *, model: str, provider: str | None, given: Mapping[str, tuple[float, ...]], is_listed: bool
) -> Price:
    """Return the price of a configured model. `name` is as configured, `model` as its provider calls it.

    `is_listed` says whether the public price lists apply: they do not at a private endpoint.

    Raises:
        ConfigurationError: the price is not known.
    """
    if name in given:
        return GivenPrice.of(*given[name])
    listed = ListedPrice(model, provider)
    try:
        if is_listed:
            listed.micros(RequestUsage(input_tokens=1, output_tokens=1))
            return listed
    except LookupError:
        pass
    raise ConfigurationError(
        f"TRIPTYCH_MODEL_PRICES: the price of {name} is not known. Set it in US dollars for a million tokens in "
        f'and out, for example {{"{name}": [0.5, 1.5]}}, or [0, 0] for a model of your own'
    )

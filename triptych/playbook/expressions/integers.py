"""Integers beyond 64 bits within CEL, which would make doubles of them, and so equal numbers of different ones.

While an expression runs, such an integer is an object that only equality can look into. So it is passed on
exactly, and an expression that counts with it or compares it by size fails instead of being wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from triptych.schemas import Json, codec

HINT = "; integers beyond 64 bits can be passed on and compared for equality, and nothing else"
_NAME = "integer beyond 64 bits"
_LEAST, _MOST = -(2**63), 2**64 - 1


def hidden(variables: dict[str, Json]) -> dict[str, Json]:
    """Return the variables as CEL may see them: unchanged where all integers fit."""
    if codec.fits_64_bits(variables):
        return variables
    return {name: _hidden(each) for name, each in variables.items()}


def restored(value: dict[str, Any]) -> int | None:
    """Return the integer that an object in a result represents, or None."""
    return int(value[_NAME]) if value.keys() == {_NAME} else None


def _hidden(value: Any) -> Any:
    match value:
        case bool():
            return value
        case int() if not _LEAST <= value <= _MOST:
            return {_NAME: str(value)}
        case Mapping():
            return {name: _hidden(each) for name, each in value.items()}
        case list() | tuple():
            return [_hidden(each) for each in value]
        case _:
            return value

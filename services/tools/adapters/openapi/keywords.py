"""Read keywords of a schema that documents write in several forms, or wrongly."""

from __future__ import annotations

from typing import Final

from triptych.schemas.base import Json

BRANCHES: Final = ("anyOf", "oneOf")
"""The keywords that list the branches of a choice."""


def listed(schema: dict[str, Json], keyword: str) -> list[Json]:
    """Return the list of a keyword; an empty one if the keyword has no list."""
    found = schema.get(keyword)
    return found if isinstance(found, list) else []


def types_of(schema: dict[str, Json]) -> list[Json]:
    """Return the types that a schema itself allows; none where it does not speak of types."""
    stated = schema.get("type", [])
    return stated if isinstance(stated, list) else [stated]

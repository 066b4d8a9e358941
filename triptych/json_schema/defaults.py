"""Defaults of a schema, put where a value says nothing.

They are looked for where it is certain that the schema speaks of the value: `properties`, `items`, `prefixItems`,
`additionalProperties`, `allOf` and `$ref` within the schema. A default is put in as it is, and nothing into it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from triptych.json_schema.pointer import referred
from triptych.schemas import Json

_REFERENCES_MAX: Final = 8
"""So many may follow one another; more are a circle."""


def with_defaults(schema: Mapping[str, Json], value: dict[str, Json]) -> dict[str, Json]:
    """`value` with the defaults of its schema."""
    filled: dict[str, Json] = _Defaults(schema).filled(schema, value)
    return filled


class _Defaults:
    def __init__(self, root: Mapping[str, Json]) -> None:
        self._root = root

    def filled(self, schema: Json, value: Json) -> Json:
        for part in self._parts(schema, _REFERENCES_MAX):
            match value:
                case dict():
                    value = self._object(part, value)
                case list():
                    value = self._list(part, value)
        return value

    def _object(self, schema: Mapping[str, Json], value: dict[str, Json]) -> dict[str, Json]:
        properties: Mapping[str, Json] = _object(schema.get("properties"))
        others = None if "patternProperties" in schema else schema.get("additionalProperties")
        found = {name: self.filled(properties.get(name, others), item) for name, item in value.items()}
        for name, inner in properties.items():
            if name not in value:
                stated = [part["default"] for part in self._parts(inner, _REFERENCES_MAX) if "default" in part]
                if stated:
                    found[name] = stated[0]
        return found

    def _list(self, schema: Mapping[str, Json], value: list[Json]) -> list[Json]:
        first = schema.get("prefixItems")
        of_place = first if isinstance(first, list) else []
        others = schema.get("items")
        return [
            self.filled(of_place[index] if index < len(of_place) else others, item) for index, item in enumerate(value)
        ]

    def _parts(self, schema: Json, references_left: int) -> Iterator[Mapping[str, Any]]:
        """Yield the schema itself and all that hold together with it."""
        if not isinstance(schema, Mapping):
            return
        yield schema
        for part in _list(schema.get("allOf")):
            yield from self._parts(part, references_left - 1) if references_left else ()
        reference = schema.get("$ref")
        if isinstance(reference, str) and references_left:
            yield from self._parts(referred(self._root, reference), references_left - 1)


def _object(value: Json) -> Mapping[str, Json]:
    return value if isinstance(value, Mapping) else {}


def _list(value: Json) -> list[Json]:
    return value if isinstance(value, list) else []

"""Decide which objects of a request take only the properties that the document names.

In JSON Schema an object may have any property that the schema does not forbid, and documents rarely forbid any. Models
invent properties. So arguments are closed where the document names the properties.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Final

from triptych.schemas.base import Json
from triptych.tools.adapters.openapi.document import OpenApiDocument, UnresolvedError
from triptych.tools.adapters.openapi.keywords import BRANCHES, listed, types_of

_SPOKEN: Final = frozenset(
    {"additionalProperties", "patternProperties", "unevaluatedProperties", "propertyNames", "if", "dependentSchemas"}
)
"""Where one of these stands, the author has said what else there may be, or says it in a way not looked into here."""
_SAYS_NOTHING: Final = frozenset({"title", "description", "deprecated", "default", "example", "nullable"})
_DEPTH_MAX: Final = 20


class _Object(Enum):
    NONE = auto()
    """The schema is not of an object, or says nothing of properties."""
    NAMED = auto()
    """Its properties are named."""
    ANY = auto()
    """It takes any property, on purpose as far as one can tell."""


def is_closed(document: OpenApiDocument, schema: Json, *, is_composed: bool) -> bool:
    """Return whether a value of this schema, where it is an object, has only properties that the schema names.

    `is_composed`: several parts name properties, and a part that allows no others speaks for all of them.
    """
    look = _Look(document, is_composed=is_composed)
    kind = look.at(schema, 0, alternative=True)
    # A document that requires what it does not name has forgotten to name it.
    return kind is _Object.NAMED and look.required <= look.named


class _Look:
    """One look at all that is said of a value."""

    def __init__(self, document: OpenApiDocument, *, is_composed: bool) -> None:
        self._document, self._is_composed = document, is_composed
        self.named: set[str] = set()
        self.required: set[str] = set()
        self._open: set[str] = set()

    def at(self, schema: Json, depth: int, *, alternative: bool) -> _Object:
        """`alternative`: nothing else says of the same value what properties it has."""
        if not isinstance(schema, dict) or depth > _DEPTH_MAX or self._is_spoken_of(schema):
            return _Object.ANY
        if alternative and "discriminator" in schema and not schema.keys() & {"anyOf", "oneOf"}:
            return _Object.ANY  # what is named elsewhere as a kind of it has more properties
        found = self._own(schema)
        if isinstance(schema.get("$ref"), str):
            found.append(self._referred(schema["$ref"], depth, alternative=alternative))
        found += [self.at(each, depth + 1, alternative=False) for each in listed(schema, "allOf")]
        alone = alternative and _Object.NAMED not in found
        for word in BRANCHES:
            found += [self.at(each, depth + 1, alternative=alone) for each in listed(schema, word)]
        if _Object.ANY in found:
            return _Object.ANY
        if _Object.NAMED in found:
            return _Object.NAMED
        is_free = "object" in types_of(schema) if "type" in schema else not found and schema.keys() <= _SAYS_NOTHING
        return _Object.ANY if is_free and alternative else _Object.NONE

    def _referred(self, reference: str, depth: int, *, alternative: bool) -> _Object:
        if reference in self._open:
            return _Object.NONE  # a kind is built on the base that lists it
        self._open.add(reference)
        try:
            return self.at(self._document.at(reference), depth + 1, alternative=alternative)
        except UnresolvedError:
            return _Object.ANY
        finally:
            self._open.discard(reference)

    def _is_spoken_of(self, schema: dict[str, Json]) -> bool:
        spoken = schema.keys() & _SPOKEN
        if self._is_composed and schema.get("additionalProperties") is False:
            spoken -= {"additionalProperties"}
        return bool(spoken)

    def _own(self, schema: dict[str, Json]) -> list[_Object]:
        properties = schema.get("properties")
        self.named.update(properties if isinstance(properties, dict) else ())
        self.required.update(str(each) for each in listed(schema, "required"))
        return [_Object.NAMED] if properties else []

"""The examples that a document gives of its own values, and the names in them.

They are evidence of what an API takes: what they show is tried against the schemas that are made of the same document.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from triptych.schemas.base import Json
from triptych.tools.adapters.openapi.document import OpenApiDocument, UnresolvedError

_TRIED_MAX: Final = 20
"""Of one value; a document may have hundreds."""


def examples_of(document: OpenApiDocument, stated: Json) -> list[tuple[str, Json]]:
    """Return the examples beside a schema, of a parameter or a media type, each with its name in the document."""
    return list(_examples(document, stated))[:_TRIED_MAX]


def _examples(document: OpenApiDocument, stated: Json) -> Iterator[tuple[str, Json]]:
    if not isinstance(stated, dict):
        return
    if "example" in stated:
        yield "example", stated["example"]
    named = stated.get("examples")
    for name, example in named.items() if isinstance(named, dict) else ():
        try:
            whole = document.resolved(example)
        except UnresolvedError:
            continue
        if "value" in whole:
            yield f"examples.{name}", whole["value"]
    schema = stated.get("schema")
    if isinstance(schema, dict) and "example" in schema:
        yield "schema.example", schema["example"]
    listed = schema.get("examples") if isinstance(schema, dict) else None
    for place, example in enumerate(listed if isinstance(listed, list) else ()):
        yield f"schema.examples[{place}]", example


def objects_in(values: list[Json]) -> set[frozenset[str]]:
    """Return the names that the objects in some values have, each object's together."""
    found: set[frozenset[str]] = set()
    waiting = list(values)
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            found.add(frozenset(value))
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)
    return found


def names_that_are(document: OpenApiDocument, word: str) -> frozenset[str]:
    """Return the names of all properties that a document declares as `readOnly` or the like."""
    found: set[str] = set()
    waiting: list[Json] = [document.content]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            properties = node.get("properties")
            if isinstance(properties, dict):
                found.update(name for name, each in properties.items() if _declares(document, each, word))
            waiting.extend(node.values())
        elif isinstance(node, list):
            waiting.extend(node)
    return frozenset(found)


def _declares(document: OpenApiDocument, schema: Json, word: str) -> bool:
    if not isinstance(schema, dict):
        return False
    try:
        return schema.get(word) is True or document.resolved(schema).get(word) is True
    except UnresolvedError:
        return False

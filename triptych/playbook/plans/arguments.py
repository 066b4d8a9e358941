"""Whether the arguments of a step fit the contract of its operation, before any of them is known.

The value of a template is not known yet, so it fits everywhere. Everything else is checked against the JSON Schema.
Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from triptych.contracts.compiled_contract import CompiledContract
from triptych.playbook import expressions
from triptych.playbook.diagnostic import Mistake, Place, did_you_mean
from triptych.schemas import HANDOFF, Json

SCHEMA_ERRORS_MAX = 100
"""So many are looked at; those that a template may still mend are not told."""

_SEE = {
    False: "See the operation's schema of arguments",
    True: "See `handoffs`, and the `input` of the other playbook",
}
_ABOUT_THE_SHAPE = frozenset(
    {
        "additionalProperties",
        "dependentRequired",
        "maxItems",
        "maxProperties",
        "minItems",
        "minProperties",
        "propertyNames",
        "required",
        "type",
    }
)
"""Keywords whose verdict on an object or list does not hang on the values inside it."""


def schema_errors(arguments: Mapping[str, Json], offer: CompiledContract) -> Iterator[Mistake]:
    """Find what does not fit, at its place in the arguments."""
    known = _closed_names(offer.contract.arguments)
    unknown = set() if known is None else set(arguments) - known
    for name in sorted(unknown):
        yield (name,), f"the operation has no argument `{name}`", _suggestion(name, known or set())
    is_handoff = offer.contract.operation == HANDOFF
    unknowable = dict(_templated(arguments, ()))
    for path, message, keyword in offer.arguments.schema_errors(dict(arguments), SCHEMA_ERRORS_MAX):
        if unknown and not path and keyword == "additionalProperties":
            continue
        if not _hangs_on(path, keyword, unknowable):
            yield path, message, _SEE[is_handoff]


def _closed_names(schema: Mapping[str, Json]) -> set[str] | None:
    """List the names that a schema of arguments knows, or None when it allows others."""
    is_open = bool(schema.get("additionalProperties", "properties" not in schema)) or "patternProperties" in schema
    return None if is_open else set(schema.get("properties", {}))


def _suggestion(name: str, known: set[str]) -> str:
    names = f"Use {', '.join(f'`{other}`' for other in sorted(known))}" if known else "It has none; remove it"
    return did_you_mean(name, known) or names


def _hangs_on(path: Place, keyword: str, unknowable: Mapping[Place, bool]) -> bool:
    """Tell whether a verdict may change once the templates have been replaced."""
    for place, is_text in unknowable.items():
        if path[: len(place)] == place:
            # The verdict is on the template itself. A template inside a longer text gives a text.
            return not (is_text and path == place and keyword == "type")
        if place[: len(path)] == path and keyword not in _ABOUT_THE_SHAPE:
            return True
    return False


def _templated(value: Json, path: Place) -> Iterator[tuple[Place, bool]]:
    """Find the places of templates, and whether each is certain to become a text."""
    if isinstance(value, str):
        if expressions.has_templates(value):
            yield path, not expressions.is_reference(value)
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from _templated(item, (*path, name))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _templated(item, (*path, index))

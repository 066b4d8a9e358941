"""A schema that values can be held to, and what is wrong with those that do not fit.

The validator collects every mistake before it tells the first, with all branches of `anyOf`: a list of 300,000
wrong items became gigabytes. So its messages are asked for only where little can be wrong. In a large value the
place is looked for with checks that only say yes or no, and small parts are explained.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import islice
from typing import Final, NamedTuple

import jsonschema_rs

from triptych.json_schema.patterns import LIMITS, OPTIONS
from triptych.json_schema.structure import InvalidSchemaError, Node, Place, Structure
from triptych.kernel import killable
from triptych.schemas import Json
from triptych.schemas.codec import InvalidJson, encode

MAX_UNITS: Final = 2_000_000
"""Work of one check, in units of at most 25 ns. What may take more is done where it can be killed."""
CHECK_MAX_S: Final = 0.12
MAX_PROBLEMS: Final = 5
MESSAGE_MAX_CHARS: Final = 300
_EXPLAINED_MAX_UNITS: Final = 20_000
"""Up to here the validator explains itself, which costs it some fifty times as much as the check."""
_EXPLAINED_MAX_VALUES: Final = 2_000
_CHARS_OF_A_VALUE: Final = 64
_CACHED: Final = 512
_SEARCH_MAX_VALUES: Final = 300_000
_ROOT: Final = "triptych:schema"
_NAMES: Final = ("properties", "patternProperties")
_WITHOUT_PARTS: Final = frozenset(
    {
        "const", "dependentRequired", "enum", "exclusiveMaximum", "exclusiveMinimum", "maxItems", "maxLength",
        "maxProperties", "maximum", "minItems", "minLength", "minProperties", "minimum", "multipleOf", "pattern",
        "required", "type", "uniqueItems",
    }
)  # fmt: skip

Levels = list[tuple[int, int]]


class SchemaError(NamedTuple):
    """One thing that is wrong with a value, and where."""

    place: Place
    message: str
    keyword: str
    """The word of the schema that says so."""


class JsonSchema:
    """A compiled schema. Values of any size can be held to it: those that would cost too much do not fit."""

    def __init__(self, schema: Json) -> None:
        """Use `of`, which compiles the same schema once."""
        self._schema = schema
        self._structure = Structure(schema)
        self._validator = _compiled(schema)
        self._parts: dict[Place, jsonschema_rs.Draft202012Validator | None] = {(): self._validator}

    @classmethod
    def of(cls, schema: Json) -> JsonSchema:
        """Compile a schema, or find it compiled.

        Raises:
            InvalidSchemaError: it is not a JSON Schema, refers to another, or is beyond the limits.
        """
        return _cached(_Written(schema))

    def is_valid(self, value: Json) -> bool:
        """Return whether a value fits. One that would cost too much to check does not."""
        try:
            return self._fits(value, _levels(value))
        except (killable.OverrunError, ValueError):
            return False

    def schema_errors(self, value: Json, at_most: int = MAX_PROBLEMS) -> list[SchemaError]:
        """Return the first errors of a value; none where it fits."""
        levels = _levels(value)
        try:
            if self._fits(value, levels):
                return []
            if self._is_costly(levels):
                return [SchemaError((), "it does not fit its schema; it is too large to say where", "")]
            searches = max(3, _SEARCH_MAX_VALUES // sum(count for count, _ in levels))
            return list(islice(self._search(self._structure.root, value, (), searches), at_most))
        except killable.OverrunError as error:
            return [SchemaError((), f"it is too large to be checked: {error}; send less, or use a simpler schema", "")]
        except ValueError as error:
            return [SchemaError((), _cut(f"it is not JSON: {error}"), "")]

    def _fits(self, value: Json, levels: Levels) -> bool:
        if not self._is_costly(levels):
            return self._validator.is_valid(value)
        try:
            return killable.is_valid(self._schema, value, LIMITS, CHECK_MAX_S)
        except killable.WorkFailed as error:
            raise ValueError(error.message) from None

    def _is_costly(self, levels: Levels) -> bool:
        """Return whether it cannot be shown that a check is quick."""
        return self._structure.cost(self._structure.root, levels) > MAX_UNITS

    def _is_small(self, node: Node, levels: Levels) -> bool:
        size = sum(values + characters // _CHARS_OF_A_VALUE for values, characters in levels)
        return size <= _EXPLAINED_MAX_VALUES and self._structure.cost(node, levels) <= _EXPLAINED_MAX_UNITS

    def _search(self, node: Node, value: Json, place: Place, searches: int) -> Iterator[SchemaError]:
        """Yield the errors of a value that does not fit a part of the schema."""
        validator = self._part(node)
        if validator is None or self._is_small(node, _levels(value)):
            yield from _explained(validator, value, place)
            return
        is_found = False
        for error in _own(node, value, place):
            is_found = True
            yield error
        if searches > 0:
            for other, part, inner in _inside(node, value):
                if (inside := self._part(other)) is not None and not inside.is_valid(part):
                    is_found = True
                    yield from self._search(other, part, (*place, *inner), searches - 1)
        if not is_found:
            yield SchemaError(place, "it does not fit the schema here", "")

    def _part(self, node: Node) -> jsonschema_rs.Draft202012Validator | None:
        """Return a validator of one part alone; None if a part cannot be validated alone."""
        if node.place not in self._parts:
            pointer = "".join(f"/{str(part).replace('~', '~0').replace('/', '~1')}" for part in node.place)
            try:
                registry = jsonschema_rs.Registry([(_ROOT, self._schema)])
                self._parts[node.place] = _compiled({"$ref": f"{_ROOT}#{pointer}"}, registry)
            except (InvalidSchemaError, ValueError, jsonschema_rs.ReferencingError):
                self._parts[node.place] = None
        return self._parts[node.place]


def describe_errors(errors: Iterable[SchemaError], root: str) -> str:
    """Mistakes in one line, each with its place: `arguments.items[3].price: ...`."""
    shown = [f"{path_of(each.place, root)}: {each.message}" for each in islice(errors, MAX_PROBLEMS + 1)]
    if len(shown) > MAX_PROBLEMS:
        shown[MAX_PROBLEMS:] = ["and more"]
    return "; ".join(shown)


def path_of(place: Place, root: str = "") -> str:
    """Return a place as people write it: `items[3].price`, after `root` if it is given."""
    path = root + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    return path if root else path.removeprefix(".")


class _Written:
    """A schema as the key of a cache: by what it says."""

    __slots__ = ("digest", "schema")

    def __init__(self, schema: Json) -> None:
        self.schema = schema
        try:
            self.digest = hashlib.sha256(encode(schema)).digest()
        except InvalidJson as error:
            raise InvalidSchemaError((), f"the schema is not JSON: {error}") from None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Written) and other.digest == self.digest

    def __hash__(self) -> int:
        return hash(self.digest)


@lru_cache(maxsize=_CACHED)
def _cached(written: _Written) -> JsonSchema:
    return JsonSchema(written.schema)


def _compiled(schema: Json, registry: jsonschema_rs.Registry | None = None) -> jsonschema_rs.Draft202012Validator:
    try:
        return jsonschema_rs.Draft202012Validator(schema, registry=registry, pattern_options=OPTIONS, offline=True)
    except jsonschema_rs.ValidationError as error:
        place = tuple(error.instance_path)
        raise InvalidSchemaError(place, _cut(error.message)) from None
    except (ValueError, jsonschema_rs.ReferencingError) as error:
        raise InvalidSchemaError((), _cut(str(error))) from None


def _levels(value: Json) -> Levels:
    """Count the values at each depth, and their characters of text and of names."""
    levels: Levels = []
    level: list[Json] = [value]
    keys = 0
    while level:
        characters, keys = keys, 0
        below: list[Json] = []
        for item in level:
            if isinstance(item, str):
                characters += len(item)
            elif isinstance(item, dict):
                keys += sum(map(len, item))
                below.extend(item.values())
            elif isinstance(item, list | tuple):
                below.extend(item)
        levels.append((len(level), characters))
        level = below
    return levels


def _explained(
    validator: jsonschema_rs.Draft202012Validator | None, value: Json, place: Place
) -> Iterator[SchemaError]:
    if validator is None:
        yield SchemaError(place, "it does not fit the schema here", "")
        return
    for error in validator.iter_errors(value):
        yield SchemaError(
            (*place, *error.instance_path), _cut(error.message), str(error.schema_path[-1]) if error.schema_path else ""
        )


def _own(node: Node, value: Json, place: Place) -> Iterator[SchemaError]:
    """Yield the errors of keywords that apply no other parts. The validator's own words would copy the value."""
    if not isinstance(node.schema, dict):
        return
    for word, stated in node.schema.items():
        words = {word: stated}
        if word == "additionalProperties" and stated is False:
            words |= {names: dict.fromkeys(node.schema.get(names, {}), True) for names in _NAMES}
        elif word not in _WITHOUT_PARTS:
            continue
        if not jsonschema_rs.Draft202012Validator(words, pattern_options=OPTIONS, offline=True).is_valid(value):
            yield SchemaError(place, _cut(f"it does not satisfy `{word}`: {encode(stated).decode()}"), word)


def _inside(node: Node, value: Json) -> Iterator[tuple[Node, Json, Place]]:
    """Yield the parts whose errors are errors of the whole, with the values that they apply to."""
    if not isinstance(node.schema, dict):
        return
    for other in node.must:
        yield other, value, ()
    if isinstance(value, dict):
        # Which names a pattern takes is not repeated here; without patterns the rest is known.
        word = "" if "patternProperties" in node.schema else "additionalProperties"
        rest = [other for other in node.each if other.place[len(node.place) :] == (word,)]
        for name, item in value.items():
            named = node.named.get(name)
            for other in [named] if named is not None else rest:
                yield other, item, (name,)
    elif isinstance(value, list | tuple):
        rest = [other for other in node.each if other.place[len(node.place) :] == ("items",)]
        for number, item in enumerate(value):
            for other in [node.placed[number]] if number < len(node.placed) else rest:
                yield other, item, (number,)


def _cut(message: str) -> str:
    """Leave out the middle of a long message: it begins with the value, and ends with what is wrong with it."""
    if len(message) <= MESSAGE_MAX_CHARS:
        return message
    half = MESSAGE_MAX_CHARS // 2
    return f"{message[: half - 3]} … {message[-half:]}"

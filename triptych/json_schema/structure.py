"""The parts of a schema, how they apply each other, and what they cost at most.

A schema of a few lines can apply itself a million times to one value: `allOf` with the same reference twice, and
so on twenty levels down. How often each part can meet one value follows from the references alone, for a value at
each depth. So the cost of a check is bounded before it begins: by sums over this table, never by trying.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple
from urllib.parse import urldefrag, urljoin

from triptych.json_schema.patterns import check_pattern
from triptych.json_schema.pointer import names_of
from triptych.kernel.errors import TriptychError
from triptych.schemas import Json

SCHEMA_MAX_VALUES: Final = 50_000
SCHEMA_MAX_DEPTH: Final = 100
PARTS_MAX: Final = 10_000
PATTERNS_MAX: Final = 256
PATTERNS_MAX_BYTES: Final = 16 * 1_048_576
VALUE_MAX_UNITS: Final = 200_000
"""Work on a single value, without those inside it. A unit is 25 ns or less."""
COMPILED_AGAIN_MAX: Final = 30_000
"""Parts that the validator compiles once more, for what `unevaluatedProperties` and `unevaluatedItems` look at."""
_BASE_UNITS: Final = 2
_CHARS_PER_UNIT: Final = 10
_COMPARISON_UNITS: Final = 6
_HASH_UNITS: Final = 4
_UNEVALUATED_SHARE: Final = 4
_ENDLESS: Final = 1e15
_LEVELS_MAX: Final = 32
"""Deeper than this nothing is known of a schema whose cost still grows from level to level."""

_LISTS: Final = ("allOf", "anyOf", "oneOf")
_SINGLES: Final = ("not", "if", "then", "else")
_MAPS: Final = ("dependentSchemas", "dependencies")
_EACH_CHILD: Final = (
    "additionalProperties",
    "unevaluatedProperties",
    "propertyNames",
    "items",
    "additionalItems",
    "contains",
    "unevaluatedItems",
)
_COMPARED: Final = ("enum", "const", "dependentRequired")
_REFERENCES: Final = ("$ref", "$dynamicRef")
_UNEVALUATED: Final = ("unevaluatedProperties", "unevaluatedItems")

Place = tuple[str | int, ...]


class InvalidSchemaError(TriptychError):
    """A schema cannot be used: it is not one, it refers to something outside of it, or a check costs too much."""

    def __init__(self, place: Place, message: str) -> None:
        self.place, self.message = place, message
        at = "".join(f"/{part}" for part in place)
        super().__init__(f"at #{at}: {message}" if at else message)


@dataclass(slots=True, eq=False)
class Node:
    """One part of a schema that is a schema."""

    place: Place
    schema: dict[str, Json] | bool
    index: int
    must: list[Node] = field(default_factory=list)
    """Parts of `same` that must hold: `allOf` and `$ref`."""
    same: list[Node] = field(default_factory=list)
    """Parts that apply to the same value."""
    named: dict[str, Node] = field(default_factory=dict)
    """Parts for the child of a name. A child has one name, so one of them at most."""
    placed: list[Node] = field(default_factory=list)
    """Parts for the child at a place, one at most."""
    each: list[Node] = field(default_factory=list)
    """Parts for any child."""
    units: int = _BASE_UNITS
    units_per_char: float = 1 / _CHARS_PER_UNIT
    key_units_per_char: float = 0.0
    units_below: int = 0
    """For every value below, at any depth."""

    @property
    def looks_at_the_rest(self) -> bool:
        """Whether it says something of what no other part has evaluated."""
        return isinstance(self.schema, dict) and not self.schema.keys().isdisjoint(_UNEVALUATED)

    def again(self, *, as_filter: bool) -> Iterator[tuple[Node, bool]]:
        """Yield the parts that are compiled again where nothing is kept: each whole, or as a filter of evaluation."""
        inline = [other for other in self.same if other.place[: len(self.place)] == self.place]
        children = [*self.placed, *self.each]
        if not as_filter:
            children += self.named.values()
        yield from ((other, False) for other in (*inline, *children))
        if as_filter:
            yield from ((other, True) for other in self.same)
        elif self.looks_at_the_rest:
            yield self, True


class Level(NamedTuple):
    """What each part costs at most, by its index: for one value, and for each character of its text or of its name."""

    units: array[float]
    units_per_char: array[float]


class Structure:
    """The graph of a schema's parts. What is built here is within all limits."""

    def __init__(self, schema: Json) -> None:
        """Raises InvalidSchemaError."""
        if not isinstance(schema, dict | bool):
            raise InvalidSchemaError((), "a schema is an object, or true or false")
        self._root = schema
        self._targets: dict[str, tuple[Place, str, Json]] = {}
        self._dynamic: dict[str, list[str]] = {}
        self._index(schema)
        self._nodes: dict[Place, Node] = {}
        self._patterns = self._patterns_bytes = 0
        self.root = self._build()
        self._order = _ordered(self.root, self._nodes.values())
        self._levels: list[Level] = []
        self._is_settled = False
        self._refuse_explosion()
        self._refuse_recompilation()

    def cost(self, node: Node, levels: Iterable[tuple[int, int]]) -> float:
        """Return the work of checking a value against a part, given its values and characters at each depth."""
        units = 0.0
        for depth, (values, characters) in enumerate(levels):
            level = self._level(depth)
            units += values * level.units[node.index] + characters * level.units_per_char[node.index]
        return units

    def _level(self, depth: int) -> Level:
        """Return what each part costs at most, so many levels below the value that the part is applied to."""
        levels = self._levels
        while len(levels) <= depth and not self._is_settled:
            levels.append(self._next_level(levels[-1] if levels else None))
            self._is_settled = len(levels) > 1 and levels[-1] == levels[-2]
            if len(levels) == _LEVELS_MAX and not self._is_settled:
                endless = array("d", [_ENDLESS]) * len(self._order)
                levels.append(Level(endless, endless))
                self._is_settled = True
        return levels[min(depth, len(levels) - 1)]

    def _next_level(self, above: Level | None) -> Level:
        units, per_char = (array("d", bytes(8 * len(self._order))) for _ in range(2))
        for node in self._order:
            own, own_per_char = (node.units, node.units_per_char) if above is None else _below(node, above)
            for other in node.same:
                own += units[other.index]
                own_per_char += per_char[other.index]
            units[node.index], per_char[node.index] = min(own, _ENDLESS), min(own_per_char, _ENDLESS)
        return Level(units, per_char)

    def _refuse_explosion(self) -> None:
        paths: dict[int, int] = {}
        for node in self._order:
            count = 1 + sum(paths[other.index] for other in node.same)
            if node.looks_at_the_rest:
                # The validator compiles once more what could have evaluated, and asks it for each child.
                count = min(2 * count, int(_ENDLESS))
                node.units += count * count // _UNEVALUATED_SHARE
            paths[node.index] = min(count, int(_ENDLESS))
        for node in self._order:
            if (units := self._level(0).units[node.index]) > VALUE_MAX_UNITS:
                raise InvalidSchemaError(
                    node.place,
                    f"checking one value may take {units:.0f} units of work, and {VALUE_MAX_UNITS} are the most; refer "
                    "to fewer schemas in `allOf`, `anyOf` and `oneOf`",
                )

    def _refuse_recompilation(self) -> None:
        """Refuse schemas with `unevaluatedProperties` at every level: the validator compiles each way down alone."""
        count = 0
        for root in self._order:
            path: set[tuple[int, bool]] = set()
            pending = [(root, True, True)] if root.looks_at_the_rest else []
            while pending:
                node, as_filter, is_entered = pending.pop()
                if not is_entered:
                    path.discard((node.index, as_filter))
                    continue
                count += 1
                if count > COMPILED_AGAIN_MAX:
                    message = (
                        f"compiling it takes more than {COMPILED_AGAIN_MAX} parts once more; say "
                        "`unevaluatedProperties` and `unevaluatedItems` at fewer levels, or refer to fewer schemas"
                    )
                    raise InvalidSchemaError(root.place, message)
                if (node.index, as_filter) not in path:
                    path.add((node.index, as_filter))
                    pending.append((node, as_filter, False))
                    pending.extend((other, how, True) for other, how in node.again(as_filter=as_filter))

    def _index(self, schema: Json) -> None:
        """Count the values, and note where `$id` and the anchors stand."""
        count = 0
        pending: list[tuple[Json, Place, str]] = [(schema, (), "")]
        self._targets[""] = ((), "", schema)
        while pending:
            value, place, base = pending.pop()
            count += 1
            if count > SCHEMA_MAX_VALUES or len(place) > SCHEMA_MAX_DEPTH:
                limit = f"more than {SCHEMA_MAX_VALUES} values or {SCHEMA_MAX_DEPTH} levels"
                raise InvalidSchemaError(place[:5], f"the schema has {limit}; use a smaller one")
            if isinstance(value, dict):
                base = self._noted(value, place, base)
                pending.extend((item, (*place, name), base) for name, item in value.items())
            elif isinstance(value, list | tuple):
                pending.extend((item, (*place, index), base) for index, item in enumerate(value))

    def _noted(self, value: dict[str, Json], place: Place, base: str) -> str:
        if isinstance(own := value.get("$id"), str):
            base = urldefrag(urljoin(base, own)).url
            self._targets.setdefault(base, (place, base, value))
        for word in ("$anchor", "$dynamicAnchor"):
            if isinstance(anchor := value.get(word), str):
                self._targets.setdefault(f"{base}#{anchor}", (place, base, value))
                if word == "$dynamicAnchor":
                    self._dynamic.setdefault(anchor, []).append(f"{base}#{anchor}")
        return base

    def _build(self) -> Node:
        """Follow everything that the root applies."""
        pending: list[tuple[Node, str]] = []

        def found(schema: Json, place: Place, base: str) -> Node:
            if place not in self._nodes:
                if not isinstance(schema, dict | bool):
                    raise InvalidSchemaError(place, "a schema is an object, or true or false")
                if len(self._nodes) == PARTS_MAX:
                    raise InvalidSchemaError(place, f"the schema has more than {PARTS_MAX} parts; use a smaller one")
                self._nodes[place] = Node(place, schema, len(self._nodes))
                pending.append((self._nodes[place], base))
            return self._nodes[place]

        root = found(self._root, (), "")
        while pending:
            node, base = pending.pop()
            if not isinstance(node.schema, dict):
                continue
            if isinstance(own := node.schema.get("$id"), str):
                base = urldefrag(urljoin(base, own)).url
            for kind, schema, place, its_base in self._parts(node, base):
                _join(node, kind, place, found(schema, place, its_base))
            self._weigh(node)
        return root

    def _parts(self, node: Node, base: str) -> Iterator[tuple[str, Json, Place, str]]:
        """Yield the parts that a part applies: how, and their places."""
        schema = node.schema
        assert isinstance(schema, dict)  # noqa: S101 - the caller looked
        for word in _REFERENCES:
            if isinstance(reference := schema.get(word), str):
                for schema_of, place, its_base in self._resolved(node.place, reference, base, dynamic=word != "$ref"):
                    yield "same" if word != "$ref" else "must", schema_of, place, its_base
        for kind, part, inside in (*_listed(schema), *_mapped(schema)):
            yield kind, part, (*node.place, *inside), base

    def _resolved(self, at: Place, reference: str, base: str, *, dynamic: bool) -> Iterator[tuple[Json, Place, str]]:
        """Yield what a reference may mean; for a dynamic one every anchor of its name."""
        whole = urljoin(base, reference) if base else reference
        url, fragment = urldefrag(whole)
        names = [f"{url}#{fragment}"] if fragment and not fragment.startswith("/") else []
        if dynamic:
            names += self._dynamic.get(fragment, [])
        targets = [self._targets[name] for name in dict.fromkeys(names) if name in self._targets]
        if not names and url in self._targets:
            place, its_base, schema = self._targets[url]
            targets = list(_at(schema, place, its_base, fragment))
        if not targets:
            raise InvalidSchemaError(
                at, f"it refers to {reference[:200]}, which is not in this schema; nothing is fetched, so write it out"
            )
        yield from ((schema, place, its_base) for place, its_base, schema in targets)

    def _weigh(self, node: Node) -> None:
        """Weigh the keywords of one part, apart from the parts that they apply."""
        schema = node.schema
        assert isinstance(schema, dict)  # noqa: S101 - the caller looked
        node.units += len(schema) + len(node.named) + sum(_size(schema[word]) for word in _COMPARED if word in schema)
        if isinstance(names := schema.get("required"), list | tuple):
            node.units += len(names)
        if schema.get("uniqueItems") is True:
            node.units_below += _HASH_UNITS
        if isinstance(pattern := schema.get("pattern"), str):
            node.units_per_char += self._pattern((*node.place, "pattern"), pattern)
        if isinstance(named := schema.get("patternProperties"), dict):
            node.key_units_per_char += sum(
                self._pattern((*node.place, "patternProperties"), pattern) for pattern in named
            )

    def _pattern(self, place: Place, pattern: str) -> int:
        try:
            cost = check_pattern(pattern)
        except ValueError as error:
            raise InvalidSchemaError(place, str(error)) from None
        self._patterns += 1
        self._patterns_bytes += cost.size_bytes
        if self._patterns > PATTERNS_MAX or self._patterns_bytes > PATTERNS_MAX_BYTES:
            limit = f"more than {PATTERNS_MAX} patterns, or {PATTERNS_MAX_BYTES} bytes of them compiled"
            raise InvalidSchemaError(place, f"the schema has {limit}; use fewer or simpler ones")
        return cost.units_per_char


def _join(node: Node, kind: str, place: Place, other: Node) -> None:
    match kind:
        case "same" | "must":
            node.same.append(other)
            if kind == "must":
                node.must.append(other)
        case "named":
            node.named[str(place[-1])] = other
        case "placed":
            node.placed.append(other)
        case _:
            node.each.append(other)


def _listed(schema: dict[str, Json]) -> Iterator[tuple[str, Json, Place]]:
    for word in (*_LISTS, "prefixItems"):
        if isinstance(parts := schema.get(word), list | tuple):
            kind = {"prefixItems": "placed", "allOf": "must"}.get(word, "same")
            yield from ((kind, part, (word, number)) for number, part in enumerate(parts))


def _mapped(schema: dict[str, Json]) -> Iterator[tuple[str, Json, Place]]:
    for word in (*_SINGLES, *_EACH_CHILD):
        if isinstance(part := schema.get(word), dict | bool):
            yield "same" if word in _SINGLES else "each", part, (word,)
    for word in ("properties", "patternProperties", *_MAPS):
        if isinstance(parts := schema.get(word), dict):
            kind = {"properties": "named", "patternProperties": "each"}.get(word, "same")
            yield from ((kind, part, (word, name)) for name, part in parts.items() if isinstance(part, dict | bool))


def _at(schema: Json, place: Place, base: str, pointer: str) -> Iterator[tuple[Place, str, Json]]:
    """Yield the part at a JSON pointer, if it exists."""
    for name in names_of(pointer):
        if isinstance(schema, dict) and name in schema:
            schema, place = schema[name], (*place, name)
        elif isinstance(schema, list | tuple) and name.isdecimal() and len(name) < 6 and int(name) < len(schema):  # noqa: PLR2004 - more than a schema has
            schema, place = schema[int(name)], (*place, int(name))
        else:
            return
        if isinstance(schema, dict) and isinstance(own := schema.get("$id"), str):
            base = urldefrag(urljoin(base, own)).url
    yield place, base, schema


def _ordered(root: Node, nodes: Iterable[Node]) -> Sequence[Node]:
    """Order every part after those that it applies to the same value. Raises InvalidSchemaError for a circle."""
    done: dict[int, bool] = {}
    order: list[Node] = []
    for first in (root, *nodes):
        pending = [(first, iter(first.same))] if id(first) not in done else []
        done.setdefault(id(first), False)
        while pending:
            node, rest = pending[-1]
            other = next(rest, None)
            if other is None:
                pending.pop()
                if not done[id(node)]:
                    done[id(node)] = True
                    order.append(node)
            elif id(other) not in done:
                done[id(other)] = False
                pending.append((other, iter(other.same)))
            elif not done[id(other)]:
                raise InvalidSchemaError(other.place, "it applies itself to the same value for ever; break the circle")
    return order


def _below(node: Node, above: Level) -> tuple[float, float]:
    """Return what a part causes at a value one level further down."""
    one = [other.index for other in (*node.named.values(), *node.placed)]
    all_of = [other.index for other in node.each]
    units = max((above.units[index] for index in one), default=0.0) + sum(above.units[index] for index in all_of)
    per_char = max((above.units_per_char[index] for index in one), default=0.0)
    per_char += sum(above.units_per_char[index] for index in all_of)
    return units + node.units_below, per_char + node.key_units_per_char


def _size(value: Json) -> int:
    """Return how many values to compare with. Text and numbers are looked up, everything else is compared."""
    if isinstance(value, dict):
        return _COMPARISON_UNITS * (1 + sum(_size(item) for item in value.values()))
    if isinstance(value, list | tuple):
        return _COMPARISON_UNITS + sum(_size(item) for item in value)
    return 1

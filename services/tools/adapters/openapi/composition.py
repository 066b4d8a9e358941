"""What the parts of a composed schema say together of one object: its own words, `$ref`, `allOf` and the branches.

A document hides a property in one part and requires it in another, or describes it in both. Each part alone would be
translated to something that no value can be, so what the parts know of each other is found out first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from triptych.schemas.base import Json
from triptych.tools.adapters.openapi.document import OpenApiDocument, UnresolvedError
from triptych.tools.adapters.openapi.keywords import BRANCHES, listed

_PARTS_MAX: Final = 200
"""More parts than this are not looked into; what they say holds as it stands."""


Evidence = frozenset[frozenset[str]]
"""The names of objects that a document shows, each object's together."""


@dataclass(frozen=True, slots=True)
class Composition:
    """What is said of an object around one of its parts."""

    optional: frozenset[str] = frozenset()
    """Properties that do not travel in this direction, so that no part may require them."""
    firm: frozenset[str] = frozenset()
    """Those of `optional` that hold for every branch."""
    kept: frozenset[str] = frozenset()
    """Those of `optional` that another part requires: a caller may give them."""
    shared: frozenset[str] = frozenset()
    """Properties that several parts describe, so that no part may close them alone."""
    is_composed: bool = False
    """Several parts name properties, so that no part alone may exclude others."""
    kinds: frozenset[str] = frozenset()
    """References to what is built on it. Where it lists them as its kinds, it is itself without that list."""

    @property
    def told(self) -> str:
        """Return what it says, in the same words whenever it says the same."""
        lists = (self.optional, self.firm, self.kept, self.shared)
        return f"{[sorted(each) for each in lists]} {self.is_composed}" + "".join(
            f" {each}" for each in sorted(self.kinds)
        )

    @property
    def around_a_branch(self) -> Composition:
        """Return what holds in each branch: what other branches hide does not concern it."""
        return Composition(self.firm, self.firm, self.kept, self.shared, self.is_composed, self.kinds)


ALONE: Final = Composition()


class Composer:
    """Looks at compositions, for one direction of travel: `hides` is `readOnly` in requests, `writeOnly` in answers."""

    def __init__(self, document: OpenApiDocument, hides: str, evidence: Evidence = frozenset()) -> None:
        """`evidence`: objects with properties that callers give anyway, as the document's own examples show."""
        self._document, self._hides, self._evidence = document, hides, evidence
        self._known: dict[int, Composition] = {}
        self._known_hidden: dict[int, set[str]] = {}

    def of(self, schema: Json, around: Composition = ALONE) -> Composition:
        """Return what the parts of a schema, and what stands around it, say together."""
        if around is not ALONE:
            return self._composition_of(schema, around)
        if id(schema) not in self._known:
            self._known[id(schema)] = self._composition_of(schema, around)
        return self._known[id(schema)]

    def _composition_of(self, schema: Json, around: Composition) -> Composition:
        own, branches = self.parts(schema), list(self._branch_parts(schema))
        names = Counter(name for part in own for name in _properties(part))
        in_branches = {name for part in branches for name in _properties(part)}
        firm = around.firm | {name for part in own for name in self._hidden(part)}
        optional = firm | around.optional | {name for part in branches for name in self._hidden(part)}
        apart = {name for part in (*own, *branches) for name in _required(part) if name not in self._hidden(part)}
        shared = {name for name, count in names.items() if count > 1 or name in in_branches}
        speaking = sum(1 for part in own if _properties(part)) + any(_properties(part) for part in branches)
        return Composition(
            optional=frozenset(optional),
            firm=frozenset(firm),
            kept=around.kept | (optional & (apart | self._shown([*own, *branches], optional))),
            shared=around.shared | shared,
            is_composed=around.is_composed or speaking > 1,
            kinds=around.kinds,
        )

    def within(self, around: Composition, target: Json) -> Composition:
        """Return what of a composition matters to a part of it that stands elsewhere; `ALONE` where nothing does.

        A part that is used in several compositions is so translated once for each that asks something else of it.
        """
        alone = self.of(target)
        parts = [*self.parts(target), *self._branch_parts(target)]
        required = {name for part in parts for name in _required(part)}
        hidden = {name for part in parts for name in self._hidden(part)}
        named = {name for part in parts for name in _properties(part)}
        is_closed = around.is_composed and any(part.get("additionalProperties") is False for part in parts)
        return Composition(
            optional=(around.optional & required) - alone.optional,
            firm=(around.firm & required) - alone.firm,
            kept=(around.kept & hidden) - alone.kept,
            shared=(around.shared & named) - alone.shared,
            is_composed=is_closed and not alone.is_composed,
            kinds=around.kinds if around.kinds & self._kindslisted(target) else frozenset(),
        )

    def lists_a_kind(self, branches: list[Json], composition: Composition) -> bool:
        """Return whether a choice of a base lists what is built on it: then it says nothing of that."""
        return any(isinstance(each, dict) and each.get("$ref") in composition.kinds for each in branches)

    def _kindslisted(self, schema: Json) -> set[str]:
        return {
            each["$ref"]
            for part in self.parts(schema)
            for word in BRANCHES
            for each in listed(part, word)
            if isinstance(each, dict) and isinstance(each.get("$ref"), str)
        }

    def _shown(self, parts: list[dict[str, Json]], hidden: frozenset[str]) -> set[str]:
        """Return the properties of an object that examples of it have."""
        if not self._evidence:
            return set()
        named = {name for part in parts for name in _properties(part)}
        needed = {name for part in parts for name in _required(part)} - hidden
        return {name for names in self._evidence if needed <= names <= named for name in names}

    def _hidden(self, part: dict[str, Json]) -> set[str]:
        """Return the properties of one part that do not travel in this direction."""
        if id(part) not in self._known_hidden:
            self._known_hidden[id(part)] = {name for name, schema in _properties(part).items() if self.hides(schema)}
        return self._known_hidden[id(part)]

    def hides(self, schema: Json) -> bool:
        """Return whether a property of this schema does not travel in this direction."""
        return any(part.get(self._hides) is True for part in self.parts(schema))

    def parts(self, schema: Json) -> list[dict[str, Json]]:
        """Return a schema, what it refers to, and what its `allOf` lists."""
        found: list[dict[str, Json]] = []
        waiting: list[Json] = [schema]
        seen: set[int] = set()
        while waiting and len(found) < _PARTS_MAX:
            part = waiting.pop()
            if not isinstance(part, dict) or id(part) in seen:
                continue
            seen.add(id(part))
            found.append(part)
            waiting.extend(listed(part, "allOf"))
            if isinstance(part.get("$ref"), str):
                try:
                    waiting.append(self._document.at(part["$ref"]))
                except UnresolvedError:
                    continue  # the translation reports it
        return found

    def _branch_parts(self, schema: Json) -> Iterator[dict[str, Json]]:
        waiting = [each for part in self.parts(schema) for word in BRANCHES for each in listed(part, word)]
        seen: set[int] = set()
        while waiting and len(seen) < _PARTS_MAX:
            branch = waiting.pop()
            if id(branch) in seen:
                continue
            seen.add(id(branch))
            for part in self.parts(branch):
                yield part
                waiting.extend(each for word in BRANCHES for each in listed(part, word))


def selected_by(composer: Composer, schema: dict[str, Json], branches: list[Json]) -> dict[int, list[Json]]:
    """Return the values of the discriminator's property that select each branch of a choice, by its place.

    A branch that nothing is mapped to has none here: documents leave out the mapping and mean many things by it.
    """
    stated = schema.get("discriminator")
    if not isinstance(stated, dict) or not isinstance(stated.get("propertyName"), str):
        return {}
    mapping = stated.get("mapping")
    by_target: dict[str, list[Json]] = {}
    for value, target in mapping.items() if isinstance(mapping, dict) else ():
        by_target.setdefault(_component(str(target)), []).append(value)
    found: dict[int, list[Json]] = {}
    for place, branch in enumerate(branches):
        reference = branch.get("$ref") if isinstance(branch, dict) else None
        mapped = by_target.get(_component(str(reference)), [])
        own = _values_of(composer, composer.parts(branch), stated["propertyName"])
        values = mapped if own is None else [value for value in mapped if value in own]
        if values and values != own:
            found[place] = values
    return found


def exclude_each_other(composer: Composer, branches: list[Json]) -> bool:
    """Return whether a value of one branch is, in its plainest form, no value of another.

    `oneOf` takes nothing that fits two of its branches, so what many documents mean by it is `anyOf`.
    """
    looks = [_Plainest(composer, branch) for branch in branches]
    return not any(one.fits(other) for one in looks for other in looks if one is not other)


class _Plainest:
    """What the plainest value of a branch is like: no more than what must be there."""

    def __init__(self, composer: Composer, branch: Json) -> None:
        parts = composer.parts(branch)
        self._composer, self._parts = composer, parts
        self._known_allowed: dict[str, list[Json] | None] = {}
        self.kinds = _kinds(parts)
        self.required = {name for part in parts for name in _required(part)}
        self.named = {name for part in parts for name in _properties(part)}
        self.is_closed = any(part.get("additionalProperties") is False for part in parts)
        self.values = _allowed_values(parts)
        self._has_more = any(part.keys() & _TELLING for part in parts)

    def fits(self, other: _Plainest) -> bool:
        """Return whether this value may also fit the other branch. Keywords that are not evaluated may exclude it."""
        if self._has_more or other._has_more:
            return False
        if not (self.kinds & other.kinds) or not _overlap(self.values, other.values):
            return False
        if not other.required <= self.required or (other.is_closed and not self.required <= other.named):
            return False
        return all(_overlap(self._allowed(name), other._allowed(name)) for name in self.required)

    def _allowed(self, name: str) -> list[Json] | None:
        """Return the values that it allows for a property. They are compared with those of each other branch."""
        if name not in self._known_allowed:
            self._known_allowed[name] = _values_of(self._composer, self._parts, name)
        return self._known_allowed[name]


_TELLING: Final = frozenset({"anyOf", "contains", "if", "minItems", "minProperties", "not", "oneOf", "pattern"})
"""What may tell branches apart beside types, values and names."""
_ALL_KINDS: Final = frozenset({"array", "boolean", "integer", "null", "number", "object", "string"})


def _kinds(parts: list[dict[str, Json]]) -> set[str]:
    """Return the types that a value may have."""
    kinds = set(_ALL_KINDS)
    for part in parts:
        stated = part.get("type", "object" if "properties" in part else None)
        if stated is not None:
            named = {str(each) for each in (stated if isinstance(stated, list) else [stated])}
            kinds &= named | ({"integer"} if "number" in named else set())
    return kinds | ({"null"} if any(part.get("nullable") is True for part in parts) else set())


def _overlap(one: list[Json] | None, other: list[Json] | None) -> bool:
    """Return whether two lists of allowed values have one in common; None allows any."""
    return one is None or other is None or any(value in other for value in one)


def _values_of(composer: Composer, parts: list[dict[str, Json]], name: str) -> list[Json] | None:
    """Return the values that the parts of a branch allow for a property; None where they say nothing of them."""
    schemas = [_properties(part)[name] for part in parts if name in _properties(part)]
    return _allowed_values([said for schema in schemas for said in composer.parts(schema)])


def _allowed_values(parts: list[dict[str, Json]]) -> list[Json] | None:
    for part in parts:
        if "const" in part:
            return [part["const"]]
        if isinstance(part.get("enum"), list):
            return list(part["enum"])
    return None


def _component(reference: str) -> str:
    """Return what a reference or a bare name of a mapping speaks of."""
    return reference.rpartition("/")[2]


def _properties(part: dict[str, Json]) -> dict[str, Json]:
    stated = part.get("properties")
    return stated if isinstance(stated, dict) else {}


def _required(part: dict[str, Json]) -> list[str]:
    return [name for name in listed(part, "required") if isinstance(name, str)]

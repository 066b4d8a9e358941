"""Compare two versions of a tool's contracts: what broke, what only has other words, and what is new. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from triptych.schemas import codec
from triptych.schemas.base import Json
from triptych.schemas.compatibility import breaks
from triptych.schemas.contract import Contract

if TYPE_CHECKING:
    from triptych.tools.sdk.operation import Operation

QUOTED_MAX_CHARS = 200
_WORDS = frozenset({"$comment", "default", "description", "examples", "title"})
_NAMED = frozenset({"$defs", "definitions", "dependentSchemas", "patternProperties", "properties"})

_Place = tuple[str, ...]
"""The way to a word from the contract on: `("arguments", "properties", "id", "title")`."""


class Change(StrEnum):
    GONE = "gone"
    BREAKING = "breaking"
    COMPATIBLE = "compatible"
    NEW = "new"


@dataclass(frozen=True, slots=True)
class Difference:
    """One operation that is not what it was."""

    operation: str
    change: Change
    details: tuple[str, ...] = ()

    @property
    def breaks(self) -> bool:
        return self.change in {Change.GONE, Change.BREAKING}

    def __str__(self) -> str:
        return "; ".join(self.details) or f"it is {self.change.value}"


def compare(accepted: Mapping[str, Operation], now: Mapping[str, Operation]) -> list[Difference]:
    """Return what has changed between two sets of operations, by name."""
    found = []
    for name in sorted(accepted.keys() | now.keys()):
        before, after = accepted.get(name), now.get(name)
        if after is None:
            found.append(Difference(name, Change.GONE, ("the source does not offer it any more",)))
        elif before is None:
            found.append(Difference(name, Change.NEW))
        elif (before.contract, before.facts) != (after.contract, after.facts):
            broken = tuple(unaccepted_changes(before, after))
            told = broken or rewordings(before.contract, after.contract)
            found.append(Difference(name, Change.BREAKING if broken else Change.COMPATIBLE, told))
    return found


def unaccepted_changes(old: Operation, new: Operation) -> list[str]:
    """Return the changes that a person must accept: breaking changes of the contract, and every changed fact."""
    moved = [
        f"{name}: it was {value} and is {new.facts.get(name, 'gone')}"
        for name, value in old.facts.items()
        if new.facts.get(name) != value
    ]
    return [*moved, *breaking_changes(old.contract, new.contract)]


def rewordings(old: Contract, new: Contract) -> tuple[str, ...]:
    """Return the texts that have changed, of the operation and within its schemas. Models read them too."""
    before, after = ({"description": each.description} | texts_in_schemas(each) for each in (old, new))
    return tuple(
        f"{place}: it was {quoted(before.get(place, ''))} and is {quoted(after.get(place, ''))}"
        for place in dict.fromkeys((*before, *after))
        if before.get(place) != after.get(place)
    )


def texts_in_schemas(contract: Contract) -> dict[str, str]:
    """Return what the schemas of a contract say in words, by its place."""
    return {
        ".".join(place): word if isinstance(word, str) else codec.encode_text(word)
        for place, word in _texts_of(contract).items()
    }


def with_texts_of(accepted: Contract, now: Contract) -> Contract:
    """`now` in the words of `accepted`: what is new in its schemas has none."""
    words = _texts_of(accepted)
    reworded = now.model_copy(update={"description": accepted.description}, deep=True)
    for place, schema in _schemas_of(reworded):
        for name in sorted(_WORDS):
            schema.pop(name, None)
            if (*place, name) in words:
                schema[name] = words[*place, name]
    return reworded


def _texts_of(contract: Contract) -> dict[_Place, Json]:
    return {
        (*place, name): value
        for place, schema in _schemas_of(contract)
        for name, value in schema.items()
        if name in _WORDS
    }


def _schemas_of(contract: Contract) -> Iterator[tuple[_Place, dict[str, Json]]]:
    """Yield the schemas of a contract and all that are within them, by their place."""
    yield from _schemas_in(contract.arguments, ("arguments",))
    yield from _schemas_in(contract.result, ("result",))


def _schemas_in(node: Json, place: _Place, *, is_schema: bool = True) -> Iterator[tuple[_Place, dict[str, Json]]]:
    """Go down a schema. `properties` and its like hold names and not keywords; words hold no schemas."""
    match node:
        case dict():
            if is_schema:
                yield place, node
            for name, value in node.items():
                if not (is_schema and name in _WORDS):
                    yield from _schemas_in(value, (*place, name), is_schema=not is_schema or name not in _NAMED)
        case list():
            for number, item in enumerate(node):
                yield from _schemas_in(item, (*place, str(number)))


def quoted(text: str) -> str:
    """Somebody else's words, on one line and not too many of them."""
    line = " ".join(text.split())
    return repr(line if len(line) <= QUOTED_MAX_CHARS else f"{line[:QUOTED_MAX_CHARS]}...")


def breaking_changes(old: Contract, new: Contract) -> list[str]:
    """Return what breaks calls that were planned under `old` when the upstream works as `new` says."""
    told = [] if old.effect is new.effect else [f"the effect was {old.effect.value} and is {new.effect.value}"]
    for part, before, after in (("arguments", old.arguments, new.arguments), ("result", old.result, new.result)):
        if before == after:
            continue
        try:
            told += [f"{part}: {each}" for each in breaks(before, after)]
        except (KeyError, TypeError, AttributeError):
            told.append(f"{part}: the schema has changed in a way that cannot be compared")
    return told

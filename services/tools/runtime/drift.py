"""Drift: what a tool's source offers now, held against the contracts that were accepted.

What changed compatibly is taken over and announced. What broke is quarantined: its calls are refused, with the
difference, until somebody accepts it. What is new is not offered: nobody has allowed it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from triptych.kernel.errors import TriptychError
from triptych.kernel.process.log import Logger
from triptych.schemas import codec
from triptych.schemas.base import Json
from triptych.schemas.compatibility import breaks
from triptych.schemas.contract import Contract
from triptych.tools.runtime.status_board import Alerts

if TYPE_CHECKING:
    from triptych.tools.sdk.contract_origin import Origin
    from triptych.tools.sdk.operation import Operation
    from triptych.tools.sdk.tool import Tool

KIND = "drift"
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
    """What has changed between two sets of operations, by name."""
    found = []
    for name in sorted(accepted.keys() | now.keys()):
        before, after = accepted.get(name), now.get(name)
        if after is None:
            found.append(Difference(name, Change.GONE, ("the source does not offer it any more",)))
        elif before is None:
            found.append(Difference(name, Change.NEW))
        elif (before.contract, before.facts) != (after.contract, after.facts):
            broken = tuple(changes(before, after))
            told = broken or rewordings(before.contract, after.contract)
            found.append(Difference(name, Change.BREAKING if broken else Change.COMPATIBLE, told))
    return found


def changes(old: Operation, new: Operation) -> list[str]:
    """What a refresh may not change unasked: all that breaks the contract, and every fact beside it."""
    moved = [
        f"{name}: it was {value} and is {new.facts.get(name, 'gone')}"
        for name, value in old.facts.items()
        if new.facts.get(name) != value
    ]
    return [*moved, *differences(old.contract, new.contract)]


def rewordings(old: Contract, new: Contract) -> tuple[str, ...]:
    """What is said otherwise than before: of the operation, and within its schemas, where a model reads it as well."""
    before, after = ({"description": each.description} | words_in_schemas(each) for each in (old, new))
    return tuple(
        f"{place}: it was {quoted(before.get(place, ''))} and is {quoted(after.get(place, ''))}"
        for place in dict.fromkeys((*before, *after))
        if before.get(place) != after.get(place)
    )


def words_in_schemas(contract: Contract) -> dict[str, str]:
    """What the schemas of a contract say in words, by its place."""
    return {
        ".".join(place): word if isinstance(word, str) else codec.encode_text(word)
        for place, word in _words_of(contract).items()
    }


def in_words_of(accepted: Contract, now: Contract) -> Contract:
    """`now` in the words of `accepted`: what is new in its schemas has none."""
    words = _words_of(accepted)
    reworded = now.model_copy(update={"description": accepted.description}, deep=True)
    for place, schema in _schemas_of(reworded):
        for name in sorted(_WORDS):
            schema.pop(name, None)
            if (*place, name) in words:
                schema[name] = words[*place, name]
    return reworded


def _words_of(contract: Contract) -> dict[_Place, Json]:
    return {
        (*place, name): value
        for place, schema in _schemas_of(contract)
        for name, value in schema.items()
        if name in _WORDS
    }


def _schemas_of(contract: Contract) -> Iterator[tuple[_Place, dict[str, Json]]]:
    """The schemas of a contract and all that are within them, by their place."""
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


def differences(old: Contract, new: Contract) -> list[str]:
    """What breaks those who planned under `old` when the upstream works as `new` says; empty when nothing does."""
    told = [] if old.effect is new.effect else [f"the effect was {old.effect.value} and is {new.effect.value}"]
    for part, before, after in (("arguments", old.arguments, new.arguments), ("result", old.result, new.result)):
        if before == after:
            continue
        try:
            told += [f"{part}: {each}" for each in breaks(before, after)]
        except (KeyError, TypeError, AttributeError):
            told.append(f"{part}: the schema has changed in a way that cannot be compared")
    return told


def _accepted(origin: Origin) -> Tool:
    return origin.build(origin.file.read_bytes())


class Watch:
    """Compares on a schedule, and whenever somebody asks."""

    def __init__(self, tool: Tool, every_s: int, alerts: Alerts, log: Logger) -> None:
        self._tool, self._every_s, self._alerts, self._log = tool, every_s, alerts, log
        self._accepted: Mapping[str, Operation] = dict(tool.operations)
        self._told: dict[str, str] = {}

    async def run(self) -> None:
        """Compare at once, and then on schedule, until cancelled."""
        if self._tool.origin is not None and self._tool.origin.is_watched:
            await self._hear()
        while self._tool.origin is not None and self._every_s:
            await self.look()
            await asyncio.sleep(self._every_s)

    async def _hear(self) -> None:
        """Tell what the adapter itself has found, whenever it has looked."""
        while True:
            self._tool.compared.clear()
            self._tell()
            await self._tool.compared.wait()

    def _tell(self) -> None:
        found = self._tool.reworded | self._tool.quarantined
        for name, what in found.items():
            if self._told.get(name) != what:
                self._alerts.open(name, KIND, what)
        self._alerts.close_others(KIND, found)
        self._told = found

    async def look(self) -> None:
        """Compare once. A source that does not answer changes nothing; the probe is there to tell."""
        origin = self._tool.origin
        if origin is None:
            return
        if origin.is_watched:
            if origin.reload is not None:
                await self._reload(origin, origin.reload)
            return
        try:
            # Built in a thread, for a document may be large, and calls go on meanwhile.
            accepted = await asyncio.to_thread(_accepted, origin)
            now = await asyncio.to_thread(origin.build, await origin.fetch())
        except (TriptychError, OSError) as error:
            self._log.warning("the contracts could not be compared with their source", error=str(error))
            return
        except Exception:  # noqa: BLE001
            # Somebody else writes the document, and nobody waits for this task: it must not end.
            self._log.exception("the contracts could not be compared with their source")
            return
        self._take_over(accepted)
        found = {each.operation: each for each in compare(self._tool.operations, now.operations)}
        for name in tuple(self._tool.operations):
            self._settle(name, found.get(name), now.operations.get(name))
        self._alerts.close_others(KIND, self._tool.quarantined)
        if new := sorted(name for name, each in found.items() if each.change is Change.NEW):
            self._log.info("the source offers more than was accepted", operations=new)

    async def _reload(self, origin: Origin, reload: Callable[[bytes], None]) -> None:
        """Let the adapter take over what somebody has accepted since it read the file."""
        try:
            reload(await asyncio.to_thread(origin.file.read_bytes))
        except (TriptychError, OSError, ValueError) as error:
            self._log.warning("what was accepted cannot be read", file=str(origin.file), error=str(error))

    def _take_over(self, accepted: Tool) -> None:
        """What somebody has accepted since this process was started."""
        for name, operation in accepted.operations.items():
            before = self._accepted.get(name)
            if before is not None and name in self._tool.operations and changes(before, operation):
                self._tool.operations[name] = operation
                self._tool.changed.set()
                self._log.info("an accepted contract was taken over", operation=name)
        self._accepted = accepted.operations

    def _settle(self, name: str, difference: Difference | None, now: Operation | None) -> None:
        if difference is not None and difference.breaks:
            self._tool.quarantined[name] = str(difference)
            self._alerts.open(name, KIND, str(difference))
            return
        self._tool.quarantined.pop(name, None)
        if difference is not None and now is not None:
            self._tool.replace(now)
            self._log.info("a compatible change of a contract was taken over", operation=name)

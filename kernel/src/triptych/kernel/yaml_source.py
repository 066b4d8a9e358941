"""YAML that remembers where each value stands, so that an error can name its line and column.

It gives plain JSON values only: what JSON cannot say (dates, tags, keys that are no text) is an error
here, and never a surprise later. It must never build a Python object from a tag.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.scalarbool import ScalarBoolean

from triptych.schemas import Json

Path = tuple[str | int, ...]

MAX_BYTES = 1_048_576
MAX_DEPTH = 64
MAX_NODES = 100_000
"""Counted after aliases are expanded, so that a few nested aliases cannot fill the memory."""


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """Where something stands in a file. Both count from 1, as editors do."""

    line: int
    column: int


START = Position(1, 1)


class YamlProblem(Exception):
    """The text is not YAML, or says something that JSON cannot say."""

    def __init__(self, position: Position, path: Path, message: str, cure: str) -> None:
        self.position, self.path, self.message, self.cure = position, path, message, cure
        super().__init__(f"{position.line}:{position.column}: {message}. {cure}")


@dataclass(frozen=True, slots=True)
class Document:
    """A parsed file: its value, and where each part of it begins."""

    value: Json
    positions: dict[Path, Position]

    def find(self, path: Path) -> Path:
        """The part of `path` that exists here. Names that are not in the text (union tags) are left out."""
        found: Path = ()
        for part in path:
            if (*found, part) in self.positions:
                found = (*found, part)
        return found

    def position(self, path: Path) -> Position:
        """Where the nearest existing part of `path` begins."""
        return self.positions[self.find(path)]


def parse(text: str) -> Document:
    """Parse one YAML document.

    Raises:
        YamlProblem: with the position, the message and the cure.
    """
    if len(text.encode()) > MAX_BYTES:
        raise YamlProblem(START, (), f"the file is larger than {MAX_BYTES} bytes", "Split it")
    try:
        loaded = YAML(typ="rt", pure=True).load(text)
    except DuplicateKeyError as error:
        name = str(error.problem).partition('"')[2].partition('"')[0]
        raise YamlProblem(_mark(error), (), f"the key `{name}` stands here twice", "Keep one of the two") from error
    except MarkedYAMLError as error:
        context = f" {error.context}" if error.context else ""
        raise YamlProblem(_mark(error), (), f"this is not YAML: {error.problem}{context}", "Mend the syntax") from error
    except (YAMLError, ValueError, RecursionError) as error:
        raise YamlProblem(START, (), f"this is not YAML: {error}", "Mend the syntax") from error
    positions: dict[Path, Position] = {(): START}
    return Document(_Plain(positions).convert(loaded, (), START), positions)


def _mark(error: MarkedYAMLError) -> Position:
    mark = error.problem_mark or error.context_mark
    return Position(mark.line + 1, mark.column + 1) if mark else START


class _Plain:
    """Turns ruamel's round-trip values into plain ones and notes where each of them stands."""

    def __init__(self, positions: dict[Path, Position]) -> None:
        self._positions = positions
        self._nodes = 0

    def convert(self, value: Any, path: Path, position: Position) -> Json:  # noqa: PLR0911 - one for each kind of value
        self._positions[path] = position
        self._nodes += 1
        if self._nodes > MAX_NODES or len(path) > MAX_DEPTH:
            limit = f"more than {MAX_NODES} values or {MAX_DEPTH} levels"
            raise YamlProblem(position, path, f"the document has {limit}", "Use fewer aliases, or split it")
        match value:
            case CommentedMap():
                return {
                    str(key): self.convert(item, (*path, key), at) for key, item, at in _entries(value, path, position)
                }
            case CommentedSeq():
                return [
                    self.convert(item, (*path, index), _at(value, index, position)) for index, item in enumerate(value)
                ]
            case ScalarBoolean():
                return bool(value)
            case None | bool():
                return value
            case int():
                return int(value)
            case float():
                return float(value)
            case str():
                return str(value)
        kind = type(value).__name__
        raise YamlProblem(position, path, f"a value of kind {kind} has no form in JSON", "Put it in quotes")


def _entries(mapping: CommentedMap, path: Path, position: Position) -> Iterator[tuple[str, Any, Position]]:
    for key, item in mapping.items():
        at = _at(mapping, key, position)
        if not isinstance(key, str):
            raise YamlProblem(at, path, f"the key {key!r} is not text", "Put it in quotes")
        yield key, item, at


def _at(container: CommentedMap | CommentedSeq, key: str | int, otherwise: Position) -> Position:
    """Where an entry begins; what came in by a merge key stands where its container does."""
    place = (container.lc.data or {}).get(key)
    return Position(place[0] + 1, place[1] + 1) if place else otherwise

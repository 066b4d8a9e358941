"""YAML that remembers the position of each value, so that an error can name its line and column.

It gives plain JSON values only: what JSON cannot say (dates, tags, keys that are not text) is an error
here, and never a surprise later. It must never build a Python object from a tag.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.constructor import DuplicateKeyError, RoundTripConstructor
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.scalarbool import ScalarBoolean

from triptych.schemas import Json

Path = tuple[str | int, ...]

MAX_BYTES = 131_072
"""The parser takes some 60 µs for each byte."""
MAX_DEPTH = 64
MAX_BRACKETS = 200
"""Brackets inside each other in the text, with those in strings; the parser takes the square of them."""
MAX_NODES = 100_000
"""Counted after aliases are expanded, so that a few nested aliases cannot fill the memory."""


_BRACKET = re.compile(r"[\[\]{}]")


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """A position in a file. Line and column count from 1, as in editors."""

    line: int
    column: int


START = Position(1, 1)


class YamlError(Exception):
    """The text is not YAML, or says something that JSON cannot say."""

    def __init__(self, position: Position, path: Path, message: str, cure: str) -> None:
        self.position, self.path, self.message, self.cure = position, path, message, cure
        super().__init__(f"{position.line}:{position.column}: {message}. {cure}")


@dataclass(frozen=True, slots=True)
class YamlSource:
    """A parsed file: its value, and where each part of it begins."""

    value: Json
    positions: dict[Path, Position]

    def find(self, path: Path) -> Path:
        """Return the part of `path` that exists here, without names that are not in the text (union tags)."""
        found: Path = ()
        for part in path:
            if (*found, part) in self.positions:
                found = (*found, part)
        return found

    def position(self, path: Path) -> Position:
        """Return where the nearest existing part of `path` begins."""
        return self.positions[self.find(path)]


def parse(text: str) -> YamlSource:
    """Parse one YAML document.

    Raises:
        YamlError: with the position, the message and the cure.
    """
    if len(text.encode(errors="surrogatepass")) > MAX_BYTES:
        raise YamlError(START, (), f"the file is larger than {MAX_BYTES} bytes", "Split it")
    _refuse_brackets(text)
    yaml = YAML(typ="rt", pure=True)
    yaml.Constructor = _Constructor
    try:
        loaded = yaml.load(text)
    except _Unreadable as error:
        message = f"this value cannot be read: {error.message[:200]}"
        raise YamlError(error.position, (), message, "Write another value, or put it in quotes") from error
    except DuplicateKeyError as error:
        name = str(error.problem).partition('"')[2].partition('"')[0]
        raise YamlError(_mark(error), (), f"the key `{name}` is here twice", "Keep one of the two") from error
    except MarkedYAMLError as error:
        context = f" {error.context}" if error.context else ""
        raise YamlError(_mark(error), (), f"this is not YAML: {error.problem}{context}", "Mend the syntax") from error
    except RecursionError as error:
        raise YamlError(START, (), f"the document has more than {MAX_DEPTH} levels", "Use fewer levels") from error
    except Exception as error:  # the library raises much, and and in each case the text is not YAML
        raise YamlError(START, (), f"this is not YAML: {str(error)[:200]}", "Mend the syntax") from error
    positions: dict[Path, Position] = {(): START}
    return YamlSource(_Plain(positions).convert(loaded, (), START), positions)


def load_text(path: FilePath) -> str:
    """Read a regular file of UTF-8 text, without waiting for a writer.

    Raises:
        YamlError: it is something else, or too large.
    """
    try:
        # Reading a pipe without a writer would never return, and a device has no end.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise YamlError(START, (), "this is not a file", "Give a UTF-8 YAML file")
            raw = file.read(MAX_BYTES + 1)
        if len(raw) > MAX_BYTES:
            raise YamlError(START, (), f"the file is larger than {MAX_BYTES} bytes", "Split it")
        return raw.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        message = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise YamlError(START, (), f"the file cannot be read: {message}", "Give a UTF-8 YAML file") from error


class _Unreadable(Exception):
    """A value that the library takes for a number or a date, and cannot read."""

    def __init__(self, position: Position, message: str) -> None:
        self.position, self.message = position, message
        super().__init__(message)


class _Constructor(RoundTripConstructor):
    """Says where a value stands that cannot be read; the library does not."""

    def construct_object(self, node: Any, deep: bool = False) -> Any:  # noqa: FBT001, FBT002 - the library's signature
        try:
            return super().construct_object(node, deep)
        except (ValueError, OverflowError, LookupError, TypeError, AttributeError) as error:
            position = Position(node.start_mark.line + 1, node.start_mark.column + 1)
            raise _Unreadable(position, str(error)) from error


def _refuse_brackets(text: str) -> None:
    depth = 0
    for number, line in enumerate(text.splitlines(), 1):
        for place in _BRACKET.finditer(line):
            depth += 1 if place[0] in "[{" else -1
            if depth > MAX_BRACKETS:
                message = f"there are more than {MAX_BRACKETS} brackets inside each other"
                raise YamlError(Position(number, place.start() + 1), (), message, "Use fewer levels")
        depth = max(depth, 0)


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
            raise YamlError(position, path, f"the document has {limit}", "Use fewer aliases, or split it")
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
                return _text(value, path, position)
        kind = type(value).__name__
        raise YamlError(position, path, f"a value of kind {kind} has no form in JSON", "Put it in quotes")


def _text(value: str, path: Path, position: Position) -> str:
    if "\0" in value:
        raise YamlError(position, path, "the text holds a NUL character, which Postgres cannot store", "Leave it out")
    return str(value)


def _entries(mapping: CommentedMap, path: Path, position: Position) -> Iterator[tuple[str, Any, Position]]:
    for key, item in mapping.items():
        at = _at(mapping, key, position)
        if not isinstance(key, str):
            raise YamlError(at, path, f"the key {key!r} is not text", "Put it in quotes")
        yield _text(key, path, at), item, at


def _at(container: CommentedMap | CommentedSeq, key: str | int, otherwise: Position) -> Position:
    """Find where an entry begins. For what came in by a merge key, that is where its container begins."""
    place = (container.lc.data or {}).get(key)
    return Position(place[0] + 1, place[1] + 1) if place else otherwise

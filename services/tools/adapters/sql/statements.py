"""Statements in a .sql file: one block is one operation, with a header in YAML and parameters by name.

A parameter becomes a parameter of the prepared statement, `$1`, `$2` and so on. No value is ever written
into the text of a statement.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from triptych.kernel.errors import ConfigurationError
from triptych.playbook import yaml_source
from triptych.playbook.yaml_source import YamlError
from triptych.schemas.base import Json
from triptych.schemas.contract import Effect

FROM_THE_CALL = frozenset({"call_tenant", "call_principal", "call_run_id", "call_idempotency_key"})
"""What a statement may use without declaring it: the runtime fills it in, and no model can choose it."""

_BLOCK = re.compile(r"^-- name: *(\S+) *$", re.MULTILINE)
_HEADER = re.compile(r"\s*/\*(.*?)\*/", re.DOTALL)
_PARTS = re.compile(
    r"""
      '(?:[^']|'')*'                      # a text; one with backslash escapes is refused below
    | "(?:[^"]|"")*"                      # a quoted name
    | --[^\n]*                            # a comment
    | /\*.*?\*/                           # another
    | \$(?P<tag>[A-Za-z_]*)\$.*?\$(?P=tag)\$  # a dollar-quoted text
    | ::                                  # a cast
    | :(?P<parameter>[a-z_][a-z0-9_]*)
    | (?P<escapes>\b[eE](?='))
    | (?P<position>\$[0-9]+)
    """,
    re.DOTALL | re.VERBOSE,
)


class Repeat(StrEnum):
    """Why a write that is attempted again takes effect once."""

    LEDGER = "ledger"
    """The key is stored in the ledger table of the same database, in the same transaction."""
    NATURAL_KEY = "natural_key"
    """The statement itself changes nothing the second time, for example by `on conflict do nothing`."""
    NEVER = "never"
    """It does not. After a crash in the middle a person decides."""


class Header(BaseModel):
    """The header before a statement."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    description: Annotated[str, Field(min_length=1, description="What the planner reads.")]
    effect: Literal["read", "write"]
    repeat: Literal["ledger", "natural_key", "never"] | None = None
    version: str = "1"
    timeout_ms: Annotated[int, Field(ge=100, le=590_000)] = 5_000
    max_rows: Annotated[int, Field(ge=1, le=10_000)] = 200
    parameters: dict[Annotated[str, StringConstraints(pattern=r"^[a-z_][a-z0-9_]{0,62}$")], dict[str, Json] | None] = {}

    @model_validator(mode="after")
    def _repeat_belongs_to_a_write(self) -> Header:
        if (self.effect == "write") != (self.repeat is not None):
            raise ValueError("a write says `repeat: ledger`, `natural_key` or `never`; a read says nothing of it")
        return self


@dataclass(frozen=True, slots=True)
class Statement:
    """One operation."""

    name: str
    header: Header
    text: str
    """With `$1`, `$2`, ... where the file has names."""
    parameters: tuple[str, ...]
    """The names of `$1`, `$2`, ..."""

    @property
    def repeat(self) -> Repeat | None:
        return None if self.header.repeat is None else Repeat(self.header.repeat)

    @property
    def effect(self) -> Effect:
        match self.repeat:
            case None:
                return Effect.READ
            case Repeat.NEVER:
                return Effect.ONCE
            case Repeat.LEDGER | Repeat.NATURAL_KEY:
                return Effect.IDEMPOTENT


class StatementError(ConfigurationError):
    """A statement cannot be offered as it is."""

    def __init__(self, file: Path, statement: str, problem: str, cure: str) -> None:
        self.file, self.statement, self.problem, self.cure = file, statement, problem, cure
        super().__init__(f"{file}: {statement}: {problem}. {cure}")


def read_statements(file: Path) -> tuple[Statement, ...]:
    """Return the statements of a file, in order.

    Raises:
        StatementError: with the block and what is wrong with it.
    """
    try:
        blocks = _BLOCK.split(file.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise StatementError(file, "the file", f"it cannot be read: {error}", "Give a UTF-8 file") from error
    names = blocks[1::2]
    if not names:
        raise StatementError(file, "the file", "it holds no statement", "Begin each with a line `-- name: find_orders`")
    for name in names:
        if not re.fullmatch(r"[a-z][a-z0-9_]{0,62}", name) or names.count(name) > 1:
            raise StatementError(file, name, "the name is taken or cannot be used", "Use a-z, 0-9 and _, and each once")
    return tuple(_statement(file, name, block) for name, block in zip(names, blocks[2::2], strict=True))


def _statement(file: Path, name: str, block: str) -> Statement:
    header_text = _HEADER.match(block)
    if header_text is None:
        raise StatementError(file, name, "it has no header", "Put `/* description: ..., effect: read */` in front")
    try:
        header = Header.model_validate(yaml_source.parse(header_text[1]).value)
    except YamlError as error:
        raise StatementError(
            file, name, f"line {error.position.line} of its header: {error.message}", error.cure
        ) from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the header"
        raise StatementError(file, name, f"{where}: {first['msg']}", "See docs/reference/adapters.md") from error
    parameters: list[str] = []
    text = "".join(_numbered(file, name, block[header_text.end() :].strip().rstrip(";"), parameters)).strip()
    declared = set(header.parameters)
    if clash := declared & FROM_THE_CALL:
        raise StatementError(file, name, f"{_listed(clash)} come from the call", "Do not declare them")
    if unknown := set(parameters) - declared - FROM_THE_CALL:
        raise StatementError(file, name, f"it uses {_listed(unknown)}", "Declare them under `parameters`")
    if unused := declared - set(parameters):
        raise StatementError(file, name, f"it declares {_listed(unused)} and does not use it", "Leave it out")
    return Statement(name, header, text, tuple(parameters))


def _numbered(file: Path, statement: str, text: str, parameters: list[str]) -> Iterator[str]:
    """Yield the text with numbers for names, which are collected in `parameters`."""
    end = 0
    for part in _PARTS.finditer(text):
        if part["escapes"] or part["position"]:
            raise StatementError(file, statement, f"it has {part[0]}", "Write texts without E, and parameters as :name")
        if name := part["parameter"]:
            if name not in parameters:
                parameters.append(name)
            yield text[end : part.start()]
            yield f"${parameters.index(name) + 1}"
            end = part.end()
    yield text[end:]


def _listed(names: set[str]) -> str:
    return ", ".join(f":{name}" for name in sorted(names))

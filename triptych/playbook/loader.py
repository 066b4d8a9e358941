"""Playbooks from YAML files, each mistake with its line and column. Nothing here may ask the network."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from triptych.kernel.errors import TriptychError
from triptych.playbook import yaml_source
from triptych.playbook.checker import check_playbook
from triptych.playbook.diagnostic import Diagnostic, dotted
from triptych.playbook.fields import field_diagnostics
from triptych.schemas import Playbook, codec


@dataclass(frozen=True, slots=True)
class LocatedDiagnostic:
    """A mistake and its position in the file; line and column count from 1."""

    file: Path
    line: int
    column: int
    path: str
    message: str
    cure: str

    def __str__(self) -> str:
        where = f"{self.path}: " if self.path else ""
        end = "" if self.cure.endswith("?") else "."
        return f"{self.file}:{self.line}:{self.column}: {where}{self.message}. {self.cure}{end}"


class PlaybookErrors(TriptychError):
    """A playbook file cannot be used. `problems` holds everything found wrong, in the order of the file."""

    def __init__(self, problems: Iterable[LocatedDiagnostic]) -> None:
        self.problems = tuple(sorted(problems, key=lambda problem: (problem.file, problem.line, problem.column)))
        super().__init__("\n".join(str(problem) for problem in self.problems))


def load_playbook(path: Path, tools: Collection[str] | None = None) -> Playbook:
    """Read and check one playbook. With `tools`, the names of all tools that there are, it may use no others.

    Raises:
        PlaybookErrors: with every mistake, each with its line.
    """
    try:
        text = yaml_source.load_text(path)
    except yaml_source.YamlError as error:
        raise _unreadable(path, error) from error
    return parse_playbook(text, path, tools)


def parse_playbook(text: str, file: Path, tools: Collection[str] | None = None) -> Playbook:
    """Read and check a text that is already here; `file` is only named in errors.

    Raises:
        PlaybookErrors: with every mistake, each with its line.
    """
    try:
        document = yaml_source.parse(text)
    except yaml_source.YamlError as error:
        raise _unreadable(file, error) from error
    try:
        playbook = codec.read(Playbook, codec.encode(document.value, limits=codec.VALUE))
    except codec.InvalidJson as error:
        found = [Diagnostic(error.path, error.reason, "Write a value that JSON can say")]
    except ValidationError as error:
        found = field_diagnostics(error.errors(include_url=False, include_input=False))
    else:
        found = list(check_playbook(playbook, tools=tools))
        if not found:
            return playbook
    raise PlaybookErrors(_located(each, document, file) for each in found)


def locate(found: Iterable[Diagnostic], path: Path) -> list[LocatedDiagnostic]:
    """Find the lines of mistakes in a playbook that was read from this file."""
    document = yaml_source.parse(yaml_source.load_text(path))
    return [_located(each, document, path) for each in found]


def _unreadable(file: Path, error: yaml_source.YamlError) -> PlaybookErrors:
    at = error.position
    return PlaybookErrors([LocatedDiagnostic(file, at.line, at.column, dotted(error.path), error.message, error.cure)])


def _located(found: Diagnostic, document: yaml_source.YamlSource, file: Path) -> LocatedDiagnostic:
    at = document.position(found.place)
    path = dotted(document.find(found.place))
    return LocatedDiagnostic(file, at.line, at.column, path, found.message, found.cure)

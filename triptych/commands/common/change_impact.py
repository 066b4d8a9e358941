"""Tells what a change of files affects: the configuration, the playbooks or some tools. Reads only where files are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from triptych.embedded.config import StackConfig

_IGNORED_SUFFIXES = frozenset({".pyc", ".log", ".tmp", ".new"})


@dataclass(frozen=True, slots=True)
class ChangeImpact:
    """What a change of files affects."""

    config: bool = False
    playbooks: tuple[Path, ...] = ()
    """The playbooks that have changed."""
    tools: frozenset[str] = field(default_factory=frozenset)

    def __bool__(self) -> bool:
        return self.config or bool(self.playbooks) or bool(self.tools)


@dataclass(frozen=True, slots=True)
class WatchedFiles:
    """The files that a configuration is made of: what `triptych dev` watches."""

    file: Path
    playbooks: Path
    tools: Mapping[str, tuple[Path, ...]]
    """For each tool its folder and the files that its options name."""

    @classmethod
    def of(cls, config: StackConfig) -> WatchedFiles:
        table = config.table
        return cls(
            file=config.file,
            playbooks=(config.directory / table.playbooks).resolve(),
            tools={
                name: tuple(path.resolve() for path in _paths(config.directory, tool.path, tool.options))
                for name, tool in table.tools.items()
            },
        )

    def impact(self, changed: Iterable[Path]) -> ChangeImpact:
        """Return what a set of changed files affects."""
        files = [path for path in changed if not self._is_noise(path)]
        return ChangeImpact(
            config=self.file in files,
            playbooks=tuple(sorted(each for each in files if each.parent == self.playbooks and each.suffix == ".yaml")),
            tools=frozenset(name for name, paths in self.tools.items() if any(_is_in(each, paths) for each in files)),
        )

    def folders(self) -> set[Path]:
        """Return the folders to watch, each by itself: a file that is replaced is seen only in its folder."""
        found = {self.file.parent, self.playbooks}
        for path in (path for paths in self.tools.values() for path in paths):
            found.update(_folders(path) if path.is_dir() else [path.parent])
        return {folder for folder in found if folder.is_dir()}

    def _is_noise(self, path: Path) -> bool:
        below = path.relative_to(self.file.parent) if path.is_relative_to(self.file.parent) else path
        hidden = any(part.startswith(".") or part == "__pycache__" for part in below.parts)
        return hidden or path.suffix in _IGNORED_SUFFIXES or path.name.startswith("test_")


def _paths(directory: Path, own: str | None, options: Mapping[str, Any]) -> Iterator[Path]:
    if own is not None:
        yield directory / own
    for text in _texts(options):
        if "\n" not in text and (named := directory / text).exists() and named != directory:
            yield named


def _texts(value: Any) -> Iterator[str]:
    match value:
        case str():
            yield value
        case Mapping():
            for each in value.values():
                yield from _texts(each)
        case list() | tuple():
            for each in value:
                yield from _texts(each)


def _is_in(file: Path, paths: Iterable[Path]) -> bool:
    return any(file == path or path in file.parents for path in paths)


def _folders(root: Path) -> Iterator[Path]:
    yield root
    for child in sorted(root.iterdir()):
        if child.is_dir() and not child.name.startswith(".") and child.name != "__pycache__":
            yield from _folders(child)

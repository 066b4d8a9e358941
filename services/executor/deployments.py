"""The playbooks of a folder, from which this process offers some to new tasks.

Runs that began with an earlier version go on with that version, which the database keeps.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from triptych.json_schema import JsonSchema
from triptych.kernel.errors import ConfigurationError
from triptych.playbook.loader import PlaybookErrors, load_playbook
from triptych.playbook.yaml_source import YamlError, load_text
from triptych.schemas import Playbook

_SHOWN_MAX_CHARS = 2_000
_NAME = re.compile(r"^name:[ ]{0,8}[\"']?([a-z][a-z0-9_-]{0,62})\b", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Deployment:
    """A playbook that new tasks may name, with its input schema compiled."""

    playbook: Playbook
    input_schema: JsonSchema

    @classmethod
    def of(cls, playbook: Playbook) -> Deployment:
        """Compile a playbook's input schema."""
        return cls(playbook, JsonSchema.of(playbook.input))


@dataclass(frozen=True, slots=True)
class InvalidPlaybook:
    """A file of the folder that cannot run as a playbook, and why."""

    name: str
    """Of the playbook that it would be, as far as that can be told."""
    file: Path
    why: str

    @property
    def public_reason(self) -> str:
        """Why, for people who send tasks: without the folders of this machine."""
        return shown(self.why.replace(f"{self.file.parent}/", ""))


@dataclass(frozen=True, slots=True)
class PlaybookFolder:
    """What a folder of playbooks holds. A file that cannot be used does not keep the others from running."""

    playbooks: list[Playbook]
    left_out: list[InvalidPlaybook]


def load_playbooks(folder: Path) -> PlaybookFolder:
    """Read all playbooks of a folder, `*.yaml`, each checked by itself.

    Raises:
        ConfigurationError: the folder has no such file.
    """
    found: dict[str, list[tuple[Path, Playbook]]] = {}
    left_out: list[InvalidPlaybook] = []
    paths = sorted(folder.glob("*.yaml"))
    for path in paths:
        try:
            playbook = load_playbook(path)
        except PlaybookErrors as error:
            left_out.append(InvalidPlaybook(_name_of(path), path, str(error)))
        except Exception as error:  # noqa: BLE001 - an unforeseen fault of a file must not stop the others
            left_out.append(InvalidPlaybook(_name_of(path), path, f"{path}: {type(error).__name__}: {error}"))
        else:
            found.setdefault(playbook.name, []).append((path, playbook))
    for name, files in found.items():
        if len(files) > 1:
            both = " and ".join(str(path) for path, _ in files)
            left_out += [InvalidPlaybook(name, path, f"{both} both define `{name}`. Rename one.") for path, _ in files]
    unique = [files[0] for files in found.values() if len(files) == 1]
    known = found.keys() | {each.name for each in left_out}
    left_out += [InvalidPlaybook(book.name, path, why) for path, book in unique if (why := _strange(path, book, known))]
    if not paths:
        raise ConfigurationError(f"TRIPTYCH_PLAYBOOKS: {folder.resolve()} holds no *.yaml; point it at your playbooks")
    names = {each.name for each in left_out}
    return PlaybookFolder([book for _, book in unique if book.name not in names], left_out)


def shown(text: object) -> str:
    """Make a text printable for every reader; the name of a file may be any bytes."""
    return str(text).encode(errors="backslashreplace").decode()[:_SHOWN_MAX_CHARS]


def _strange(path: Path, playbook: Playbook, known: Collection[str]) -> str | None:
    """Return which handoffs of a playbook are not in the folder."""
    strange = ", ".join(sorted(set(playbook.handoffs) - set(known)))
    return f"{path}: handoffs: the folder has no playbook {strange}. Add it, or take it out." if strange else None


def _name_of(path: Path) -> str:
    """Return the name that a file gives its playbook, or else its own."""
    try:
        named = _NAME.search(load_text(path))
    except YamlError:
        named = None
    return named[1] if named else path.stem

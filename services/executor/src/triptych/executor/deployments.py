"""The playbooks that this process offers to new tasks, read from a folder when it starts.

Runs that began with an earlier version go on with that version, which the database keeps.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from triptych.kernel.errors import ConfigurationError
from triptych.kernel.json_schema import JsonSchema
from triptych.kernel.playbooks import PlaybookErrors, load_playbook
from triptych.schemas import Playbook


@dataclass(frozen=True, slots=True)
class Deployment:
    """A playbook that new tasks may name, with its input schema compiled."""

    playbook: Playbook
    input_schema: JsonSchema

    @classmethod
    def of(cls, playbook: Playbook) -> Deployment:
        """Compile a playbook's input schema."""
        return cls(playbook, JsonSchema.of(playbook.input))


def load_playbooks(folder: Path) -> list[Playbook]:
    """All playbooks of a folder, `*.yaml`.

    Raises:
        ConfigurationError: the folder has none, one does not pass its checks, or two have the same name.
    """
    files: dict[str, Path] = {}
    playbooks: list[Playbook] = []
    for path in sorted(folder.glob("*.yaml")):
        try:
            playbook = load_playbook(path)
        except PlaybookErrors as error:
            raise ConfigurationError(str(error)) from error
        if playbook.name in files:
            both = f"{files[playbook.name]} and {path}"
            raise ConfigurationError(f"TRIPTYCH_PLAYBOOKS: {both} both define {playbook.name!r}; rename one")
        files[playbook.name] = path
        playbooks.append(playbook)
    for playbook in playbooks:
        if strange := sorted(set(playbook.handoffs) - files.keys()):
            raise ConfigurationError(
                f"TRIPTYCH_PLAYBOOKS: {files[playbook.name]} hands over to {', '.join(strange)}, "
                f"of which {folder.resolve()} has no playbook"
            )
    if not playbooks:
        raise ConfigurationError(f"TRIPTYCH_PLAYBOOKS: {folder.resolve()} holds no *.yaml; point it at your playbooks")
    return playbooks

"""How large a task may be, told from its bytes before anything of it is read."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict

from triptych.executor.unreadable import Sender, sender_of
from triptych.schemas import TASK_MAX_BYTES, Playbook, codec

HEAD_BYTES = 65_536
"""So much of a task that is too large is read first, to learn whose it is."""
_ENVELOPE_BYTES = 4_096
"""What a structured CloudEvent adds to its data, at most, besides base64."""


class TaskSizes:
    """The limits of all playbooks of a process, in bytes."""

    def __init__(self, default: int, playbooks: Mapping[str, Playbook]) -> None:
        self._default = default
        self._own = {
            name: playbook.limits.input_bytes
            for name, playbook in playbooks.items()
            if playbook.limits and playbook.limits.input_bytes
        }
        self._largest = max((default, *self._own.values()))

    def of(self, playbook: object) -> int:
        """Return the limit of a playbook; for an unknown playbook, the largest limit of all."""
        return self._own.get(playbook, self._default) if isinstance(playbook, str) else self._largest

    def may_be_read(self, body: bytes) -> bool:
        """Return whether any playbook allows a task of this size."""
        return len(body) <= self._largest

    def may_be_unpacked(self, record_value: bytes) -> bool:
        """Return whether a record of this size can hold a task of an allowed size, in any mode of CloudEvents."""
        return len(record_value) <= self._largest * 4 // 3 + _ENVELOPE_BYTES


class _Names(BaseModel):
    """The fields of a task that say whose it is; all others are skipped, and no objects are made of them."""

    model_config = ConfigDict(extra="ignore")

    task_id: str = ""
    tenant: str = ""
    playbook: str = ""


def sender(body: bytes) -> Sender:
    """Return who sent a task that is too large, as far as a cheap look finds it.

    The names may stand before or behind the input. Beyond 1 MiB only the first 64 KiB are looked at.
    """
    told = sender_of(body[:HEAD_BYTES]) or Sender()
    if told.task_id or len(body) > TASK_MAX_BYTES:
        return told
    try:
        names = codec.read(_Names, body)
    except ValueError:
        return told
    return Sender(names.task_id, names.tenant, names.playbook)

"""The data directory: where everything of one stack lies, and how its small files are read and written.

Files that others read are replaced atomically. The directory is open to its owner alone.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import string
from dataclasses import dataclass
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path
from typing import Any

from triptych.embedded.errors import NoDirectoryError
from triptych.kernel.process.log_file import open_log
from triptych.schemas import codec

_LOG_KEEP_BYTES = 16 * 1024
_STARTS = b'{"event":"process starts","timestamp":'
_LETTERS_AND_DIGITS = string.ascii_letters + string.digits
_SECRET_CHARS = 32


@dataclass(frozen=True, slots=True)
class Layout:
    """The paths of one stack."""

    root: Path

    @classmethod
    def existing(cls, root: Path) -> Layout:
        """Return the layout of a directory to look at. It makes nothing, since the name may be a mistake."""
        return cls(root.expanduser().resolve())

    @classmethod
    def at(cls, root: Path) -> Layout:
        """Make the directory if need be and give its layout. Raises NoDirectoryError."""
        layout = cls.existing(root)
        directory = layout.root
        try:
            # A directory that holds other files as well stays as it is; what is ours in it is closed in any case.
            ours = not layout.root.exists() or layout.secrets.exists() or not any(layout.root.iterdir())
            for directory in (layout.root, layout.logs, layout.secrets, layout.kafka):
                directory.mkdir(parents=True, exist_ok=True)
                if ours or directory != layout.root:
                    directory.chmod(0o700)
        except OSError as error:
            raise NoDirectoryError(directory, error) from error
        return layout

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def secrets(self) -> Path:
        return self.root / "secrets"

    @property
    def postgres(self) -> Path:
        return self.root / "postgres"

    @property
    def kafka(self) -> Path:
        return self.root / "kafka"

    @property
    def scale(self) -> Path:
        """How many processes of each service somebody has asked for."""
        return self.root / "scale.json"

    def read_scale(self) -> dict[str, int]:
        """Return what `triptych scale` has said, by service."""
        return codec.decode(self.scale.read_bytes()) if self.scale.exists() else {}

    def log(self, name: str) -> Path:
        return self.logs / f"{name}.log"

    def secret(self, name: str) -> str:
        """Return the secret of this name, which is made at its first use."""
        path = self.secrets / name
        if not path.exists():
            write_atomically(path, new_secret(), mode=0o600)
        return path.read_text()


def new_secret() -> str:
    """32 letters and digits: they mean the same in a URL, in a shell, and in base64, where they are 24 bytes."""
    return "".join(secrets.choice(_LETTERS_AND_DIGITS) for _ in range(_SECRET_CHARS))


def write_atomically(path: Path, text: str, *, mode: int = 0o644) -> None:
    """Replace a file so that a reader sees the old content or the new, never a part."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def write_json(path: Path, value: Any, *, mode: int = 0o644) -> None:
    write_atomically(path, codec.encode(value, indent=True).decode(), mode=mode)


def last_lines(log: Path, count: int = 12) -> str:
    """Return the end of a log since the process was last started, for people."""
    if not log.exists():
        return "(no log)"
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _LOG_KEEP_BYTES))
        _, marked, since = file.read().rpartition(_STARTS)
    if marked:
        since = since.partition(b"\n")[2]
    lines = since.decode(errors="replace").splitlines()
    return "\n".join(lines[-count:]) or "(the log is empty)"


def begin_log(log: Path) -> FileIO:
    """Open the log for a new start, after a line that marks the end of the start before."""
    file = os.fdopen(open_log(log), "ab", buffering=0)
    with contextlib.suppress(OSError):  # the new process may be the one that makes room on a full disk
        file.write(_STARTS + codec.encode(datetime.now(UTC).isoformat()) + b"}\n")
    return file

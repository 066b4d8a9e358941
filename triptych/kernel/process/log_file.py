"""The file that a process logs to: it goes on after a restart, and is shifted to NAME.log.1 when it is too large.

A process of ours shifts its own file (`LogFile`), and loses no line. The supervisor copies and empties the file of
another program (`cut`): a line that is written in that moment may be lost.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import threading
from pathlib import Path

MAX_BYTES = 10 * 1_048_576
KEPT = 5
"""So many older files stay: NAME.log.1 is the newest of them."""
_OUTPUT, _ERRORS = 1, 2


def open_log(path: Path, max_bytes: int = MAX_BYTES) -> int:
    """Open a descriptor that appends to a log. A log that is too large is shifted first."""
    if path.exists() and path.stat().st_size > max_bytes:
        _shift(path)
        path.replace(_older(path, 1))
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)


def cut(path: Path, max_bytes: int = MAX_BYTES) -> None:
    """Copy a log that is too large aside and empty it. Its writer appends, so it goes on at the beginning."""
    if not path.exists() or path.stat().st_size <= max_bytes:
        return
    draft = path.with_name(f"{path.name}.draft")
    try:
        shutil.copyfile(path, draft)
    except OSError:  # the disk is full: the log stays as it is until there is room
        draft.unlink(missing_ok=True)
        return
    _shift(path)
    draft.replace(_older(path, 1))
    os.truncate(path, 0)


def _shift(path: Path) -> None:
    """Make room for a NAME.log.1."""
    for number in range(KEPT, 1, -1):
        if (newer := _older(path, number - 1)).exists():
            newer.replace(_older(path, number))


def _older(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}")


class LogFile:
    """Standard output and standard error of this process, as a file of bounded size. Written to by many threads."""

    def __init__(self, path: Path, max_bytes: int) -> None:
        """Send all that the process, or a library in C, writes from here on to the file."""
        self._path, self._max_bytes = path, max_bytes
        self._lock = threading.Lock()
        self._begin()

    def write(self, text: str) -> int:
        """Write a text, which may be a line or a part of one. A full disk costs lines, and never the process."""
        with self._lock, contextlib.suppress(OSError):
            sys.stderr.write(text)
            if text.endswith("\n"):
                sys.stderr.flush()
                if os.fstat(_ERRORS).st_size > self._max_bytes:
                    self._begin()
        return len(text)

    def flush(self) -> None:
        """Do nothing: each line is written immediately."""

    def _begin(self) -> None:
        try:
            descriptor = open_log(self._path, self._max_bytes)
        except OSError:  # the disk is full, or the folder is gone: it is better to go on in the file there is
            return
        os.dup2(descriptor, _OUTPUT)
        os.dup2(descriptor, _ERRORS)
        os.close(descriptor)

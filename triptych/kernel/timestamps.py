"""Time stamps: when this process passed the places of its loop, for `make bench-waterfall`.

`mark` costs one comparison until `enable` has been called. The clock is monotonic, and on Linux all processes of a
machine share it. A service must not depend on this module for its work.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TextIO

_BUFFER_BYTES = 1_048_576
"""So much is kept in memory, since a write in the middle of a step would be part of it."""

_file: TextIO | None = None


def enable(file: Path) -> None:
    """Write the time stamps of this process to a file from now on: one line each, nanoseconds and place."""
    global _file  # noqa: PLW0603 - a place must fit in any line of any module, so it cannot be passed in
    file.parent.mkdir(parents=True, exist_ok=True)
    _file = file.open("a", _BUFFER_BYTES, "utf-8")


def close() -> None:
    """Write what is in memory."""
    global _file
    file, _file = _file, None
    if file is not None:
        file.close()


def mark(place: str) -> None:
    """Note that this place is passed now."""
    if _file is not None:
        _file.write(f"{time.monotonic_ns()} {place}\n")

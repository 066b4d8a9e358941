"""The history: one JSON object a line for everything that was injected and everything that was observed."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


class History:
    """Writes the history of one run. Lines are numbered from 1, as editors do."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("w", encoding="utf-8", buffering=1)
        self._began = time.monotonic()
        self.lines = 0

    def write(self, event: str, **details: Any) -> int:
        """Write one line and give its number."""
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        since = round(time.monotonic() - self._began, 3)
        self._file.write(json.dumps({"at": at, "s": since, "event": event, **details}) + "\n")
        self.lines += 1
        return self.lines

    def close(self) -> None:
        self._file.close()


@contextmanager
def recording(path: Path) -> Iterator[History]:
    """Open a history in `path`, and close it at the end."""
    history = History(path)
    try:
        yield history
    finally:
        history.close()

"""How the command line speaks: answers on standard output, everything said on the way on standard error."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

from pydantic import BaseModel
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from triptych.kernel.process.terminal_text import CONTROL, on_one_line, visible
from triptych.schemas import codec

_FILE_WIDTH = 160
"""A file or a pipe has no width of its own; what is written there is read by eye or by grep."""


class SafeConsole(Console):
    """A console that shows control characters as escapes, since others have chosen many of the names it shows."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render as rich does. All that rich writes to the terminal comes through here."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)


_out_width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else _FILE_WIDTH
out = SafeConsole(highlight=False, width=_out_width)
err = SafeConsole(stderr=True, highlight=False)

NARROW = 120
"""Below this many columns a table shows what a person needs first, and each figure of that whole."""

STYLES = {
    "succeeded": "green",
    "escalated": "yellow",
    "rejected": "magenta",
    "failed": "red",
    "cancelled": "dim",
    "running": "cyan",
    "planning": "cyan",
    "reviewing": "cyan",
    "undoing": "cyan",
    "retrying": "yellow",
    "skipped": "dim",
    "waiting": "dim",
    "queued": "dim",
}
"""The colour of a status, the same wherever it is shown."""


def is_narrow(needed: int = NARROW) -> bool:
    """Return whether the terminal has less than `needed` columns."""
    return out.width < needed


def print_json(value: Any) -> None:
    """Print a JSON value on one line of standard output, for every width of the terminal."""
    out.file.write(_text(value) + "\n")
    out.file.flush()


def print_error(value: Any) -> None:
    """Print a JSON value on one line of standard error."""
    err.file.write(_text(value) + "\n")
    err.file.flush()


def _text(value: Any) -> str:
    """Encode as JSON with escapes for control characters, which JSON has only within strings."""
    text = codec.encode(value, limits=codec.STORED, default=_encode).decode()
    return CONTROL.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    return f"\\u{ord(found[0]):04x}"


def name_text(name: str) -> Text:
    """Show a name that a client chose on one line."""
    return Text(on_one_line(name))


def _encode(value: object) -> bytes:
    if isinstance(value, BaseModel):
        return value.model_dump_json(exclude_none=True).encode()
    raise TypeError(f"{type(value).__name__} has no JSON form")


def status_text(status: str) -> Text:
    return Text(status, style=STYLES.get(status, ""))


def usd(micros: int) -> str:
    """Money as people read it; small amounts keep the digits that matter."""
    dollars = micros / 1_000_000
    return f"${dollars:.2f}" if dollars >= 1 or micros == 0 else f"${dollars:.4f}"


_DAY_MS = 86_400_000
_LONGEST_MS = 36_500 * _DAY_MS
"""An upstream may ask for any wait, also for one that `timedelta` cannot hold."""


def duration(ms: float) -> str:
    """Write a span of time with about three digits."""
    if ms < 1_000:  # noqa: PLR2004 - a second
        return f"{ms:.0f} ms"
    if ms < 60_000:  # noqa: PLR2004 - a minute
        return f"{ms / 1000:.1f} s"
    if ms > _LONGEST_MS:
        return f"more than {_LONGEST_MS // _DAY_MS:,} days"
    return str(timedelta(seconds=round(ms / 1000)))


def local_time(at: datetime) -> str:
    return at.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def compact(value: Any, width: int | None) -> str:
    """Write a JSON value on one line, cut at `width` characters if one is given."""
    text = _text(value)
    return text if width is None or len(text) <= width else f"{text[: width - 1]}…"

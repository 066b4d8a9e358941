"""Texts that others chose, made safe for a terminal: what would control it is shown as an escape."""

from __future__ import annotations

import re

CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)
"""C0 except tab and line feed, DEL, C1, what turns the direction of text, and halves of surrogate pairs."""


def visible(text: str) -> str:
    """Return the text with an escape for each character that a terminal would obey; line ends and tabs stay."""
    return text if text.isascii() and text.isprintable() else CONTROL.sub(_escaped, text)


def on_one_line(text: str) -> str:
    """Return the same, with an escape also for each character that would begin another line or column."""
    shown = visible(text)
    return shown.replace("\n", r"\n").replace("\t", r"\t")


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code <= 0xFF else f"\\u{code:04x}"  # noqa: PLR2004 - a byte

"""Changes triptych.toml as a person would: comments and order stay, and nothing is written that does not load.

The new block is put in as text, since parsers that keep comments give those between two tables to the first one. The
result is then compared with what was meant.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import tomlkit
from tomlkit.items import Table

from triptych.embedded.config import StackConfig
from triptych.embedded.errors import ConfigInvalidError

_HEADER = re.compile(r"^\s*\[+\s*([^\]#]+?)\s*\]+\s*(?:#.*)?$")


def add_tool(file: Path, name: str, table: dict[str, Any], *, replace: bool = False) -> None:
    """Add `[tools.NAME]`; with `replace` it takes the place of the one that is there. What is None is left out.

    Raises:
        ConfigInvalidError: the file cannot be read, has a tool of this name, or would be invalid with it.
    """
    StackConfig.load(file)
    before = file.read_text("utf-8")
    meant = tomllib.loads(before)
    if name in meant.get("tools", {}) and not replace:
        raise ConfigInvalidError(
            file, f"tools.{name}", "a tool of this name is there already", "Choose another --name, or say --replace."
        )
    # What the new table does not speak of, such as `env`, stays as it was.
    content = {**meant.setdefault("tools", {}).get(name, {}), **_without_none(table)}
    meant["tools"][name] = content
    block = tomlkit.dumps({"tools": {name: _table(content)}}).strip()
    after = _placed(before, name, block)
    if tomllib.loads(after) != meant:
        raise ConfigInvalidError(
            file, f"tools.{name}", "the file is written in a way that this command does not understand",
            f"Put this in by hand:\n{block}",
        )  # fmt: skip
    _write(file, after)
    try:
        StackConfig.load(file)
    except ConfigInvalidError:
        _write(file, before)
        raise


def _without_none(table: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _without_none(value) if isinstance(value, dict) else value
        for key, value in table.items()
        if value is not None
    }


def _table(content: dict[str, Any]) -> Table:
    """Plain values first, then the tables below, as TOML is read most easily."""
    table = tomlkit.table()
    for key, value in sorted(content.items(), key=lambda item: isinstance(item[1], dict)):
        table.add(key, _table(value) if isinstance(value, dict) else value)
    return table


def _placed(text: str, name: str, block: str) -> str:
    """Put the block in the place of the tool, else after the last tool, else at the end."""
    lines = text.splitlines()
    headers = [(number, found[1]) for number, line in enumerate(lines) if (found := _HEADER.match(line))]
    own = [number for number, header in headers if header == f"tools.{name}" or header.startswith(f"tools.{name}.")]
    tools = [number for number, header in headers if header.startswith("tools.")]
    last = max(own or tools, default=None)
    if last is None:
        return f"{text.rstrip()}\n\n{block}\n" if text.strip() else f"{block}\n"
    end = _end_of_block(lines, last, min((number for number, _ in headers if number > last), default=len(lines)))
    start = min(own) if own else end
    kept = [*lines[:start], *([] if own else [""]), *block.splitlines(), *lines[end:]]
    return "\n".join(kept) + "\n"


def _end_of_block(lines: list[str], start: int, next_header: int) -> int:
    """Return the line after a block. Comments before the next header belong to that header."""
    end = next_header
    while end > start + 1 and (not lines[end - 1].strip() or lines[end - 1].lstrip().startswith("#")):
        end -= 1
    return end


def _write(file: Path, text: str) -> None:
    """Write all of it or nothing."""
    written = file.with_suffix(f"{file.suffix}.new")
    written.write_text(text, "utf-8")
    written.replace(file)

"""Writes the JSON Schema of every message to files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from triptych.commands.common.output import out, print_json
from triptych.schemas import codec
from triptych.schemas.export import json_schemas


def write_schemas(directory: Path) -> list[Path]:
    """Write one file for each message, and remove files of messages that no longer exist."""
    directory.mkdir(parents=True, exist_ok=True)
    written = [write_file(directory / f"{name}.json", schema) for name, schema in json_schemas().items()]
    for stale in set(directory.glob("*.json")) - set(written):
        stale.unlink()
    return written


def write_file(path: Path, value: Any) -> Path:
    path.write_bytes(codec.encode(value, indent=True, sort_keys=True))
    return path


def report(written: list[Path], *, as_json: bool) -> None:
    if as_json:
        print_json({"files": [str(path) for path in written]})
        return
    for path in written:
        out.print(str(path), soft_wrap=True)

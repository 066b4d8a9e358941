"""`triptych schemas`: the wire contract as files, and the snapshot that later changes are held against."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from ruamel.yaml import YAML

from triptych import __version__
from triptych.commands.common.options import AsJson
from triptych.commands.common.output import out, print_json
from triptych.schemas import codec
from triptych.schemas.export import asyncapi, json_schemas

app = typer.Typer(help="The wire contract: JSON Schema and AsyncAPI.", no_args_is_help=True)

SNAPSHOT = Path("schemas/compat")


@app.command()
def export(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Where to write; it is created.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Write the JSON Schema of every message, and asyncapi.json and asyncapi.yaml."""
    written = write_schemas(directory / "json-schema")
    document = asyncapi(__version__)
    written.append(_write(directory / "asyncapi.json", document))
    with (directory / "asyncapi.yaml").open("w", encoding="utf-8") as file:
        YAML(typ="safe", pure=True).dump(codec.decode(codec.encode(document)), file)
    written.append(directory / "asyncapi.yaml")
    _report(written, as_json=as_json)


@app.command()
def accept(
    *, directory: Annotated[Path, typer.Option("--dir", help="The snapshot.")] = SNAPSHOT, as_json: AsJson = False
) -> None:
    """Take today's schemas as the version that changes must stay compatible with."""
    _report(write_schemas(directory), as_json=as_json)


def write_schemas(directory: Path) -> list[Path]:
    """Write one file for each message, and remove files of messages that are no more."""
    directory.mkdir(parents=True, exist_ok=True)
    written = [_write(directory / f"{name}.json", schema) for name, schema in json_schemas().items()]
    for stale in set(directory.glob("*.json")) - set(written):
        stale.unlink()
    return written


def _write(path: Path, value: Any) -> Path:
    path.write_bytes(codec.encode(value, indent=True, sort_keys=True))
    return path


def _report(written: list[Path], *, as_json: bool) -> None:
    if as_json:
        print_json({"files": [str(path) for path in written]})
        return
    for path in written:
        out.print(str(path), soft_wrap=True)

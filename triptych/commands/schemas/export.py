"""`triptych schemas export`: the wire contract as files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from ruamel.yaml import YAML

from triptych import __version__
from triptych.commands.common.options import AsJson
from triptych.commands.common.schema_files import report, write_file, write_schemas
from triptych.schemas import codec
from triptych.schemas.export import asyncapi


def export(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Where to write; it is created.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Write the JSON Schema of every message, and asyncapi.json and asyncapi.yaml."""
    written = write_schemas(directory / "json-schema")
    document = asyncapi(__version__)
    written.append(write_file(directory / "asyncapi.json", document))
    with (directory / "asyncapi.yaml").open("w", encoding="utf-8") as file:
        YAML(typ="safe", pure=True).dump(codec.decode(codec.encode(document)), file)
    written.append(directory / "asyncapi.yaml")
    report(written, as_json=as_json)

"""The options that the commands of `triptych tools` share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ConfigFile = Annotated[Path, typer.Option("--config", metavar="FILE", help="The triptych.toml.")]
DEFAULT_CONFIG = Path("triptych.toml")
Name = Annotated[str, typer.Option("--name", help="The tool's name, as playbooks will use it.")]
Replace = Annotated[bool, typer.Option("--replace", help="Take the place of the tool of this name.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only report; write nothing.")]

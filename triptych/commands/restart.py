"""`triptych restart`: restart the processes of a service one after the other."""

from __future__ import annotations

from typing import Annotated

import typer

from triptych.commands.common.options import DEFAULT_DATA, AsJson, DataDir
from triptych.commands.common.output import print_json
from triptych.commands.common.stack import roll
from triptych.embedded.control import ask
from triptych.embedded.layout import Layout


def restart(
    service: Annotated[str, typer.Argument(help="A service, a tool or one of [processes]: `executor`, `kb`.")],
    *,
    data: DataDir = DEFAULT_DATA,
    as_json: AsJson = False,
) -> None:
    """Restart the processes of a service one after the other, each when the one before is ready."""
    layout = Layout.existing(data)
    names = ask(layout, {"do": "processes", "service": service})["processes"]
    roll(layout, names)
    if as_json:
        print_json({"service": service, "processes": names})

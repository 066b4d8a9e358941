"""`triptych scale`: how many processes of a service run."""

from __future__ import annotations

from typing import Annotated

import typer

from triptych.commands.common.options import DEFAULT_DATA, AsJson, DataDir
from triptych.commands.common.output import err, print_json
from triptych.commands.common.stack import follow
from triptych.embedded.control import ask
from triptych.embedded.layout import Layout


def scale(
    service: Annotated[str, typer.Argument(help="A service or tool, for example `executor` or `kb`.")],
    count: Annotated[int, typer.Argument(metavar="N", help="How many processes of it.")],
    *,
    data: DataDir = DEFAULT_DATA,
    as_json: AsJson = False,
) -> None:
    """Run N processes of a service, also after the next start."""
    layout = Layout.existing(data)
    names = ask(layout, {"do": "scale", "service": service, "count": count})["processes"]
    follow(lambda: ask(layout, {"do": "status"}), frozenset(names))
    if as_json:
        print_json({"service": service, "processes": names})
    else:
        err.print(f"{service} runs as {', '.join(names)}.")

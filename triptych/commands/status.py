"""`triptych status`: every process of the embedded stack, and why it last ended."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from triptych.commands.common.options import DEFAULT_DATA, AsJson, DataDir
from triptych.commands.common.output import out, print_json
from triptych.embedded.control import ask
from triptych.embedded.errors import NotRunningError, SupervisorGoneError
from triptych.embedded.layout import Layout
from triptych.embedded.orphans import names_of_orphans

_COLOURS = {"ready": "green", "starting": "yellow", "unready": "yellow", "backoff": "red", "stopped": "dim"}


def status(*, data: DataDir = DEFAULT_DATA, as_json: AsJson = False) -> None:
    """Show every process of the stack: how it is, and why it last ended."""
    layout = Layout.existing(data)
    try:
        answer = ask(layout, {"do": "status"})
    except NotRunningError:
        if orphans := names_of_orphans(layout.root):
            raise SupervisorGoneError(layout.root, orphans) from None
        raise
    if as_json:
        print_json(answer)
        return
    table = Table(box=None, header_style="bold")
    for column in ("process", "pid", "state", "up", "restarts", "health", "last ended"):
        table.add_column(column)
    for process in answer["processes"]:
        table.add_row(
            process["name"],
            str(process["pid"] or ""),
            f"[{_COLOURS[process['state']]}]{process['state']}[/]",
            _uptime(process["uptime_s"]),
            str(process["restarts"]),
            escape(process["detail"]),
            escape(process["last_error"].partition("\n")[0]),
        )
    out.print(table)
    for process in answer["processes"]:
        if process["does_not_start"]:
            out.print(f"\n[red]{process['name']} does not start:[/] {escape(process['last_error'])}", soft_wrap=True)


def _uptime(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"  # noqa: PLR2004

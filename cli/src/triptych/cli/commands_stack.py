"""`triptych up`, `down`, `status` and `scale`: the embedded stack from the command line.

They start, ask and show; what they ask is done by the supervisor.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from triptych.cli.stack.config import StackConfig
from triptych.cli.stack.control import ask
from triptych.cli.stack.errors import NotRunningError, ProcessFailedError, StackError, StartError
from triptych.cli.stack.layout import Layout, last_lines, rotate
from triptych.cli.stack.options import Options
from triptych.cli.stack.orphans import stop_orphans

DataOption = Annotated[Path, typer.Option("--data", help="The data directory of the stack.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]

_UP_TIMEOUT_S = 300.0
_DOWN_TIMEOUT_S = 60.0
_INTERVAL_S = 0.15
_COLOURS = {"ready": "green", "starting": "yellow", "unready": "yellow", "backoff": "red", "stopped": "dim"}


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    for command in (up, down, status, scale):
        app.command()(command)


def up(  # noqa: PLR0917 (options of a command line)
    data: DataOption = Path(".triptych"),
    prefix: Annotated[str, typer.Option(help="Topics are PREFIX.noun.", envvar="TRIPTYCH_TOPIC_PREFIX")] = "triptych",
    kafka: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="A Kafka of yours instead.")] = None,
    postgres: Annotated[str | None, typer.Option(metavar="DSN", help="A Postgres of yours; an owner's DSN.")] = None,
    config: Annotated[Path, typer.Option(help="Which processes make the stack.")] = Path("triptych.toml"),
    playbooks: Annotated[Path | None, typer.Option(help="The directory of playbooks.")] = None,
    as_json: JsonOption = False,  # noqa: FBT002 (an option of a command line is a keyword)
) -> None:
    """Start Postgres, Kafka and every service, and return when all are ready."""
    console = Console(stderr=True)
    with _told(console):
        layout = Layout.at(data)
        if running := _running(layout):
            console.print(f"A stack is running already in {layout.root} (supervisor {running['pid']}).")
        else:
            StackConfig.load(config)
            options = Options(
                data=layout.root,
                topic_prefix=prefix,
                config=config.resolve(),
                kafka=kafka,
                postgres=postgres,
                playbooks=playbooks.resolve() if playbooks else None,
            )
            supervisor = _start_supervisor(layout, options)
            _wait_until_ready(console, layout, supervisor)
        stack = json.loads((layout.root / "stack.json").read_text())
    if as_json:
        typer.echo(json.dumps(stack))
    else:
        console.print(f"Kafka [bold]{stack['kafka']}[/], topics [bold]{stack['topic_prefix']}.*[/], data {layout.root}")
        console.print("Next: `triptych submit`, `triptych status`, `triptych down`.")


def down(data: DataOption = Path(".triptych")) -> None:
    """Stop the services, then Kafka, then Postgres."""
    console = Console(stderr=True)
    with _told(console):
        layout = Layout.at(data)
        try:
            supervisor = psutil.Process(ask(layout, {"do": "stop"})["pid"])
        except (NotRunningError, psutil.NoSuchProcess):
            orphans = stop_orphans(layout.root)
            (layout.root / "stack.json").unlink(missing_ok=True)
            left = f"; stopped what was left of it: {', '.join(orphans)}" if orphans else ""
            console.print(f"No stack is running in {layout.root}{left}.")
            return
        with console.status("stopping"):
            supervisor.wait(_DOWN_TIMEOUT_S)
        console.print(f"Stopped. The data stays in {layout.root}.")


def status(data: DataOption = Path(".triptych"), as_json: JsonOption = False) -> None:  # noqa: FBT002
    """Show every process of the stack: how it is, and why it last ended."""
    console = Console()
    with _told(Console(stderr=True)):
        answer = ask(Layout.at(data), {"do": "status"})
    if as_json:
        typer.echo(json.dumps(answer))
        return
    table = Table(box=None, header_style="bold")
    for column in ("process", "pid", "state", "up", "restarts", "health", "last error"):
        table.add_column(column)
    for process in answer["processes"]:
        colour = _COLOURS[process["state"]]
        table.add_row(
            process["name"],
            str(process["pid"] or ""),
            f"[{colour}]{process['state']}[/]",
            _duration(process["uptime_s"]),
            str(process["restarts"]),
            escape(process["detail"] or process["health_url"] or ""),
            escape(process["last_error"]),
        )
    console.print(table)


def scale(
    service: Annotated[str, typer.Argument(help="A service or tool, for example `executor` or `kb`.")],
    count: Annotated[int, typer.Argument(metavar="N", help="How many processes of it.")],
    data: DataOption = Path(".triptych"),
    as_json: JsonOption = False,  # noqa: FBT002
) -> None:
    """Run N processes of a service."""
    console = Console(stderr=True)
    with _told(console):
        layout = Layout.at(data)
        names = set(ask(layout, {"do": "scale", "service": service, "count": count})["processes"])
        _follow(console, lambda: ask(layout, {"do": "status"}), names)
    if as_json:
        typer.echo(json.dumps({"service": service, "processes": sorted(names)}))
    else:
        console.print(f"{service} runs as {', '.join(sorted(names))}.")


def _running(layout: Layout) -> dict[str, Any] | None:
    try:
        return ask(layout, {"do": "status"})
    except NotRunningError:
        return None


def _start_supervisor(layout: Layout, options: Options) -> subprocess.Popen[bytes]:
    """Start the supervisor as a process that outlives this one."""
    with rotate(layout.log("supervisor")) as log:
        supervisor = subprocess.Popen(
            [sys.executable, "-m", "triptych.cli.stack.supervisor"],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        if supervisor.stdin is not None:
            supervisor.stdin.write(options.model_dump_json().encode())
            supervisor.stdin.close()
    return supervisor


def _wait_until_ready(console: Console, layout: Layout, supervisor: subprocess.Popen[bytes]) -> None:
    def poll() -> dict[str, Any] | None:
        if supervisor.poll() is not None:
            log = layout.log("supervisor")
            raise ProcessFailedError("supervisor", f"ended with code {supervisor.returncode}", log, last_lines(log))
        return _running(layout)

    answer = _follow(console, poll)
    if answer["database_created"]:
        console.print("The database was created.")


def _follow(
    console: Console, poll: Callable[[], dict[str, Any] | None], names: set[str] | None = None
) -> dict[str, Any]:
    """Show progress until the stack, or those processes of it, are ready. Raises StackError when one does not start."""
    began = time.monotonic()
    shown: set[str] = set()
    with console.status("starting") as spinner:
        while time.monotonic() - began < _UP_TIMEOUT_S:
            answer = poll()
            if answer is None:
                time.sleep(_INTERVAL_S)
                continue
            if answer["failure"]:
                raise StartError(answer["failure"])
            processes = [each for each in answer["processes"] if names is None or each["name"] in names]
            for process in processes:
                if process["state"] == "ready" and process["name"] not in shown:
                    shown.add(process["name"])
                    console.print(f"[green]✓[/] {process['name']} [dim]{time.monotonic() - began:.1f} s[/]")
            failed = [process for process in processes if process["does_not_start"]]
            if failed:
                raise StartError("\n".join(f"{each['name']} does not start: {each['last_error']}" for each in failed))
            if answer["ready"] or (names is not None and names <= shown):
                return answer
            spinner.update(answer["doing"] or "starting")
            time.sleep(_INTERVAL_S)
    raise StartError(f"not everything was ready after {_UP_TIMEOUT_S:.0f} s")


@contextmanager
def _told(console: Console) -> Iterator[None]:
    """Tell a person what went wrong, and end with code 1."""
    try:
        yield
    except StackError as error:
        console.print(f"[red]{escape(str(error))}[/]", highlight=False)
        raise typer.Exit(1) from None
    except psutil.TimeoutExpired:
        console.print(f"[red]The supervisor has not ended after {_DOWN_TIMEOUT_S:.0f} s; see its log.[/]")
        raise typer.Exit(1) from None


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"  # noqa: PLR2004

"""Starts, follows and stops the embedded stack for the commands that need it: `up`, `dev`, `demo`, `scale`, `restart`.

It asks the supervisor, which does the work, and shows what the supervisor answers.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from triptych.commands.common.output import err
from triptych.embedded.config import StackConfig
from triptych.embedded.control import ask
from triptych.embedded.errors import (
    NoRoomError,
    NotRunningError,
    ProcessFailedError,
    StartError,
    StillStoppingError,
)
from triptych.embedded.layout import Layout, begin_log, last_lines
from triptych.embedded.options import StackOptions
from triptych.embedded.orphans import alive_after, stop_orphans
from triptych.embedded.postgres import owner_at
from triptych.schemas import codec

_CONSEQUENCES = {
    "executor": "unless one runs elsewhere, no task becomes a run",
    "planner": "unless one runs elsewhere, no run gets a plan, and each waits until its time is over",
}
"""What a stack without this service does not do."""
_UP_TIMEOUT_S = 300.0
_DOWN_TIMEOUT_S = 60.0
_INTERVAL_S = 0.15

Status = dict[str, Any]


def start(layout: Layout, options: StackOptions) -> dict[str, Any]:
    """Start a stack, or let the one that runs there take over what has changed; wait until all of it is ready.

    Gives what stack.json says.

    Raises:
        StartError: something does not start, or not in time.
        ConfigInvalidError: the configuration cannot be used.
        MissingExtraError: an extra of the package is not installed.
        DsnInvalidError: `postgres` is not a DSN.
    """
    if options.postgres is not None:
        owner_at(options.postgres)  # what Postgres' client says of one that it cannot read may hold the password
    from triptych.embedded.extras import require_extras  # noqa: PLC0415 - the tools' SDK is slow to import

    require_extras(options, StackConfig.load(options.config))
    if running := _running(layout):
        err.print(f"A stack is running already in {layout.root} (supervisor {running['pid']}).")
        follow(lambda: _running(layout), frozenset(), until="started")
        told = {"options": codec.decode(options.model_dump_json()), "environment": _environment()}
        apply(layout, ask(layout, {"do": "configure", **told}))
        follow(lambda: _running(layout))
    else:
        supervisor = _start_supervisor(layout, options)
        if follow(lambda: _still_there(layout, supervisor))["database_created"]:
            err.print(f"The database {options.topic_prefix} was created.")
    for problem in (*missing_services(options), *playbook_problems(options)):
        err.print(problem, style="yellow", markup=False, soft_wrap=True)
    stack: dict[str, Any] = codec.decode((layout.root / "stack.json").read_bytes())
    return stack


def missing_services(options: StackOptions) -> Iterator[str]:
    """Say what a stack without executor or planner does not do. It is a warning, since they may run elsewhere."""
    config = StackConfig.load(options.config)
    modules = {service.module for service in config.table.services.values()}
    for name, consequence in _CONSEQUENCES.items():
        if f"triptych.{name}" not in modules:
            yield f"{config.file} starts no {name}: {consequence}. Add [services.{name}] as `triptych init` writes it."


def playbook_problems(options: StackOptions) -> Iterator[str]:
    """Yield what is wrong with the playbooks of a stack. The executor leaves them out, and only its log says so."""
    # CEL takes a third of a second to import, and most commands do not need it.
    from triptych.playbook.loader import PlaybookErrors, load_playbook  # noqa: PLC0415

    config = StackConfig.load(options.config)
    for file in sorted((options.playbooks or config.directory / config.table.playbooks).glob("*.yaml")):
        try:
            load_playbook(file, config.table.tools)
        except PlaybookErrors as error:
            yield str(error)


def apply(layout: Layout, changes: dict[str, Any]) -> None:
    """Say what the stack has taken over, and restart what has changed, one process after the other."""
    for name in changes["added"]:
        err.print(f"{name}: added")
    for name in changes["removed"]:
        err.print(f"{name}: removed")
    for name in changes["grown"]:
        err.print(f"{name}: partitions added, as many as other topics of the executor have")
    for name in changes["changed"]:
        err.print(f"{name}: changed; it is restarted")
    if changes["needs_up"]:
        options = ", ".join(f"--{name.removeprefix('topic_')}" for name in changes["needs_up"])
        err.print(f"{options}: as before, until `triptych down` and `triptych up`", style="yellow")
    roll(layout, changes["changed"])


def roll(layout: Layout, processes: list[str]) -> None:
    """Restart processes one after the other, each when the one before is ready again.

    Raises:
        StartError: one of them does not start; those after it go on as they were.
    """
    for number, name in enumerate(processes, start=1):
        ask(layout, {"do": "restart", "process": name})
        try:
            follow(lambda: ask(layout, {"do": "status"}), frozenset({name}))
        except StartError as error:
            untouched = ", ".join(processes[number:])
            raise StartError(f"{error.why}\nNot restarted: {untouched}" if untouched else error.why) from error


def stop(root: Path) -> str | None:
    """Stop the stack in `root`, or what is left of it, and say so; None when there was nothing to stop.

    Raises:
        StillStoppingError: it takes longer than a minute.
    """
    layout = Layout.existing(root)
    try:
        supervisor = psutil.Process(ask(layout, {"do": "stop"})["pid"])
    except (NotRunningError, psutil.NoSuchProcess):
        orphans = stop_orphans(root)
        if (file := root / "stack.json").exists():
            file.unlink()
        return f"No stack is running in {root}; stopped what was left of it: {', '.join(orphans)}." if orphans else None
    with err.status("stopping"):
        if alive_after([supervisor], _DOWN_TIMEOUT_S):
            raise StillStoppingError(layout.log("supervisor"), _DOWN_TIMEOUT_S)
    return f"Stopped. The data stays in {root}."


def _running(layout: Layout) -> Status | None:
    try:
        return ask(layout, {"do": "status"})
    except NotRunningError:
        return None


def _still_there(layout: Layout, supervisor: subprocess.Popen[bytes]) -> Status | None:
    """Return the status, once the supervisor answers. Raises ProcessFailedError when it is gone."""
    code = supervisor.poll()
    if code is not None:
        log = layout.log("supervisor")
        told = last_lines(log)
        if full := NoRoomError.if_full(layout.root, told):
            raise full
        raise ProcessFailedError("supervisor", f"ended with code {code}", log, told)
    return _running(layout)


def _environment() -> dict[str, str]:
    """Return what a supervisor gets from this shell."""
    return {**os.environ, "PYTHONUNBUFFERED": "1"}


def _start_supervisor(layout: Layout, options: StackOptions) -> subprocess.Popen[bytes]:
    """Start the supervisor as a process that outlives this one."""
    with begin_log(layout.log("supervisor")) as log:
        supervisor = subprocess.Popen(
            [sys.executable, "-P", "-m", "triptych.embedded.supervisor"],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=_environment(),
        )
    if supervisor.stdin is not None:
        with supervisor.stdin as stdin:
            stdin.write(options.model_dump_json().encode())
    return supervisor


def follow(poll: Callable[[], Status | None], names: frozenset[str] | None = None, until: str = "ready") -> Status:
    """Show progress until the stack, or those processes of it, are ready; or until the stack is `started`.

    Raises:
        StartError: one of them does not start, or not in time.
    """
    began = time.monotonic()
    shown: set[str] = set()
    with err.status("starting") as spinner:
        while time.monotonic() - began < _UP_TIMEOUT_S:
            answer = poll()
            if answer is not None:
                processes = [each for each in answer["processes"] if names is None or each["name"] in names]
                _raise_failure(answer, processes)
                for process in processes:
                    if process["state"] == "ready" and process["name"] not in shown:
                        shown.add(process["name"])
                        err.print(f"[green]✓[/] {process['name']} [dim]{time.monotonic() - began:.1f} s[/]")
                if answer[until] or (names and names <= shown):
                    return answer
                spinner.update(answer["doing"] or "starting")
            time.sleep(_INTERVAL_S)
    raise StartError(f"Not everything was ready after {_UP_TIMEOUT_S:.0f} s")


def _raise_failure(answer: Status, processes: list[Status]) -> None:
    if answer["failure"]:
        between = "\n" if "\n" in answer["failure"] else " "
        raise StartError(f"{answer['failure'].rstrip('.')}.{between}The stack does not start", running=False)
    failed = [each for each in processes if each["does_not_start"]]
    if failed:
        raise StartError("\n".join(f"{each['name']} does not start: {each['last_error']}" for each in failed))

"""Finds the processes of a stack that outlived their supervisor, and stops them.

Every process of a stack carries its data directory in its environment, so none is missed between its start and a note
of it. A process id that was used again is never mistaken for one of ours.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection
from pathlib import Path

import psutil

MARK = "TRIPTYCH_STACK"

_TERMINATE_TIMEOUT_S = 10
_INTERVAL_S = 0.05


def mark(root: Path) -> dict[str, str]:
    """Return the environment that marks a process as one of the stack in `root`."""
    return {MARK: str(root)}


def option(root: Path) -> tuple[str, str]:
    """Return the same mark as an option that Python ignores, for processes whose environment cannot be read."""
    return "-X", f"{MARK.lower()}={root}"


def names_of_orphans(root: Path) -> list[str]:
    """Return the names of the processes of the stack in `root`, without this one."""
    return [process.info["name"] for process in _orphans(root)]


def stop_orphans(root: Path) -> list[str]:
    """Stop every process of the stack in `root` but this one; give their names."""
    orphans = _orphans(root)
    names = [process.info["name"] for process in orphans]
    for process in orphans:
        _signal(process, kill=False)
    for process in alive_after(orphans, _TERMINATE_TIMEOUT_S):
        _signal(process, kill=True)
    alive_after(orphans, _TERMINATE_TIMEOUT_S)
    return names


def alive_after(processes: Collection[psutil.Process], timeout_s: float) -> list[psutil.Process]:
    """Wait until all have ended; gives those that have not in time.

    A process that its parent has not waited for counts as ended; psutil would wait for the parent, too.
    """
    deadline = time.monotonic() + timeout_s
    while (alive := [process for process in processes if _is_alive(process)]) and time.monotonic() < deadline:
        time.sleep(_INTERVAL_S)
    return alive


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _orphans(root: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["name"]):
        try:
            if process.pid != os.getpid() and _is_marked(process, root):
                found.append(process)
        except (psutil.Error, OSError):
            continue  # ended meanwhile, or another user's
    return found


def _is_marked(process: psutil.Process, root: Path) -> bool:
    try:
        return process.environ().get(MARK) == str(root)
    except psutil.AccessDenied:
        return option(root)[1] in process.cmdline()


def _signal(process: psutil.Process, *, kill: bool) -> None:
    try:
        process.kill() if kill else process.terminate()
    except psutil.NoSuchProcess:
        return

"""Finds the processes of a stack that outlived whoever watched them, and stops them.

Every process of a stack carries its data directory in its environment, so none is missed between its
start and some note of it, and a process id that was used again is never mistaken for one of ours.
"""

from __future__ import annotations

import os
from pathlib import Path

import psutil

MARK = "TRIPTYCH_STACK"

_TERMINATE_TIMEOUT_S = 10


def mark(root: Path) -> dict[str, str]:
    """The environment that marks a process as belonging to the stack in `root`."""
    return {MARK: str(root)}


def stop_orphans(root: Path) -> list[str]:
    """Stop every process of the stack in `root` but this one; give their names."""
    orphans = _orphans(root)
    names = [process.info["name"] for process in orphans]
    for process in orphans:
        _signal(process, kill=False)
    for process in psutil.wait_procs(orphans, timeout=_TERMINATE_TIMEOUT_S)[1]:
        _signal(process, kill=True)
    psutil.wait_procs(orphans)
    return names


def _orphans(root: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["name"]):
        try:
            if process.pid != os.getpid() and process.environ().get(MARK) == str(root):
                found.append(process)
        except (psutil.Error, OSError):
            continue  # ended meanwhile, or another user's
    return found


def _signal(process: psutil.Process, *, kill: bool) -> None:
    try:
        process.kill() if kill else process.terminate()
    except psutil.NoSuchProcess:
        return

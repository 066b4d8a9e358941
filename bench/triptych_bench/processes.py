"""Processor time and memory of each process of a stack, and of the client that measures it.

A process counts with its children, since Postgres is a family.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil

from triptych_bench.errors import ProcessGoneError
from triptych_bench.figures import CLIENT


class Processes:
    """The processes of one stack, by name. Raises ProcessGoneError when one of them has ended."""

    def __init__(self, pids: Mapping[str, int], logs: Path) -> None:
        self._logs = logs
        self._processes = {name: psutil.Process(pid) for name, pid in {**pids, CLIENT: os.getpid()}.items()}

    def cpu_ms(self) -> dict[str, float]:
        """Processor time since each began, in the processor and in the kernel on its behalf."""
        return {name: _cpu_s(process) * 1000 for name, process in self._alive()}

    def memory_mb(self) -> dict[str, float]:
        """Resident memory, 2^20 bytes. What processes share counts for each in proportion, where the system tells."""
        return {name: sum(map(_bytes, _family(process))) / 1_048_576 for name, process in self._alive()}

    def _alive(self) -> Iterator[tuple[str, psutil.Process]]:
        for name, process in self._processes.items():
            if not process.is_running():
                raise ProcessGoneError(name, self._logs)
            yield name, process


def _family(process: psutil.Process) -> list[psutil.Process]:
    return [process, *process.children(recursive=True)]


def _cpu_s(process: psutil.Process) -> float:
    """Children that have ended are in their parent's account, those that live in their own."""
    times = process.cpu_times()
    total = times.user + times.system + times.children_user + times.children_system
    for child in process.children(recursive=True):
        try:
            spent = child.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += spent.user + spent.system
    return float(total)


def _bytes(process: psutil.Process) -> int:
    try:
        info = process.memory_full_info()
    except psutil.NoSuchProcess:
        return 0
    return int(getattr(info, "pss", info.rss))

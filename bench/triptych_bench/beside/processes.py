"""The processes of a product: programs that keep runs in flight for us, and servers and workers that only run.

A program reads one line of JSON for each request and answers with one. Its errors and prints go to its log.
"""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, Self

from triptych_bench.beside.driver import Hold
from triptych_bench.errors import ProductFailedError
from triptych_bench.figures import Window

HOST = "127.0.0.1"
PROGRAMS = Path(__file__).with_name("programs")
_START_S = 120.0
_PATIENCE_S = 300.0
"""So much longer than its settling and its window a program may take, since it waits for the last runs too."""
_STOP_S = 10.0
_PORTS = range(20_000, 30_000)


def processes_at_once() -> int:
    """Return how many processes run workflows where they run the steps too: one a core."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_ports(count: int) -> list[int]:
    """Return ports that are free now. They lie below those of outgoing connections."""
    found: list[int] = []
    for port in random.sample(_PORTS, len(_PORTS)):
        with socket.socket() as probe:
            if probe.connect_ex((HOST, port)):
                found.append(port)
        if len(found) == count:
            break
    return found


class Server:
    """A process of a product that only runs. It is told to end by a signal."""

    def __init__(
        self,
        product: str,
        name: str,
        command: Sequence[str | Path],
        logs: Path,
        variables: Mapping[str, str] | None = None,
        *,
        talks: bool = False,
    ) -> None:
        logs.mkdir(parents=True, exist_ok=True)
        self._product, self._name, self._log = product, name, logs / f"{name}.log"
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.PIPE if talks else subprocess.DEVNULL,
                stdout=subprocess.PIPE if talks else log,
                stderr=log,
                env={**os.environ, **(variables or {})},
                cwd=logs.parent,
                text=True,
            )

    def wait_for_port(self, port: int) -> None:
        """Wait until it listens. Raises ProductFailedError."""
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline and self._process.poll() is None:
            with socket.socket() as probe:
                if not probe.connect_ex((HOST, port)):
                    return
            time.sleep(0.05)
        raise self._failed(f"did not listen on port {port}")

    def wait_for_end(self) -> None:
        """Wait until it has done its work. Raises ProductFailedError when it could not."""
        try:
            code = self._process.wait(_START_S)
        except subprocess.TimeoutExpired:
            self.stop()
            raise self._failed(f"was not done after {_START_S:.0f} s") from None
        if code:
            raise self._failed(f"ended with code {code}")

    def stop(self) -> None:
        """Ask it to end, and end it if it does not."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._process.terminate()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _failed(self, what: str) -> ProductFailedError:
        return ProductFailedError(self._product, f"{self._name} {what}", self._log)


class Program(Server):
    """A program of programs/ that talks: it says when it is ready, and answers each request."""

    def __init__(self, product: str, name: str, command: Sequence[str | Path], logs: Path) -> None:
        super().__init__(product, name, command, logs, talks=True)

    def wait_until_ready(self) -> Self:
        """Wait for its first line. Raises ProductFailedError."""
        self._answer(_START_S)
        return self

    def begin(self, hold: Hold) -> None:
        """Send a request."""
        try:
            _open(self._process.stdin).write(json.dumps(asdict(hold)) + "\n")
            _open(self._process.stdin).flush()
        except BrokenPipeError:
            raise self._failed("ended") from None

    def end(self, hold: Hold) -> Window:
        """Wait for the answer to the request. Raises ProductFailedError."""
        answer = self._answer(hold.settle_s + hold.window_s + _PATIENCE_S)
        return Window(answer["span_s"], answer["steps"], answer["latencies_ms"])

    def _answer(self, patience_s: float) -> dict[str, Any]:
        silent = threading.Event()

        def give_up() -> None:
            silent.set()
            self._process.kill()

        timer = threading.Timer(patience_s, give_up)
        timer.start()
        try:
            line = _open(self._process.stdout).readline()
        finally:
            timer.cancel()
        if not line:
            raise self._failed(f"said nothing for {patience_s:.0f} s" if silent.is_set() else "ended")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise self._failed(f"failed: {answer['error']}")
        return answer


def hold_all(programs: Sequence[Program], hold: Hold) -> Window:
    """Let programs share the runs in flight, and add up what they counted. With few runs, some have none."""
    programs = programs[: hold.in_flight]
    share, rest = divmod(hold.in_flight, len(programs))
    parts = [
        Hold(share + (number < rest), hold.settle_s, hold.window_s, hold.generations) for number in range(len(programs))
    ]
    for program, part in zip(programs, parts, strict=True):
        program.begin(part)
    return together([program.end(part) for program, part in zip(programs, parts, strict=True)])


def together(windows: Sequence[Window]) -> Window:
    """Add up windows of the same seconds: their speeds are added, so the span is that of all steps at this speed."""
    steps = sum(window.steps for window in windows)
    speed = sum(window.steps / window.span_s for window in windows)
    return Window(steps / speed, steps, [each for window in windows for each in window.latencies_ms])


def _open(pipe: IO[str] | None) -> IO[str]:
    if pipe is None:
        raise TypeError("only a program that talks has pipes")
    return pipe

"""Keeps runs in flight and counts them, in the process of a product's client. It needs only Python.

The rules are those of `triptych_bench.load.Load.hold`, so that the windows of all products are alike.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

STEPS = 5
RESULT = [1] * STEPS
"""Each step returns the number that it was given."""

Run = Callable[[str], Awaitable[object]]
"""Plays one run, named by a key that no other has, and returns the results of its steps."""


class WrongResultError(Exception):
    """A run ended with something else than the results of its steps."""


class Lanes:
    """So many lanes. Each begins a run as soon as its last one has ended."""

    def __init__(self, run: Run, in_flight: int, settle_s: float, window_s: float, generations: int) -> None:
        self._run, self._in_flight = run, in_flight
        self._phases = [(settle_s, in_flight), (window_s, generations * in_flight)]
        self._began = time.perf_counter()
        self._latencies_ms: list[float] = []
        self._window: dict[str, Any] | None = None

    async def hold(self) -> dict[str, Any]:
        """Let it settle, count for a while, and see all runs out. Raises WrongResultError."""
        await asyncio.gather(*(self._lane() for _ in range(self._in_flight)))
        if self._window is None:
            raise RuntimeError("a lane ends only after the window")
        return self._window

    async def _lane(self) -> None:
        while self._window is None:
            began = time.perf_counter()
            result = await self._run(uuid.uuid4().hex)
            ended = time.perf_counter()
            if result != RESULT:
                raise WrongResultError(f"a run returned {result!r} and not {RESULT!r}")
            self._count(ended, (ended - began) * 1000)

    def _count(self, ended: float, latency_ms: float) -> None:
        if self._window is not None:
            return
        self._latencies_ms.append(latency_ms)
        at_least_s, at_least_runs = self._phases[0]
        if ended - self._began < at_least_s or len(self._latencies_ms) < at_least_runs:
            return
        if len(self._phases) == 1:
            counted = self._latencies_ms
            self._window = {"span_s": ended - self._began, "steps": STEPS * len(counted), "latencies_ms": counted}
            return
        self._phases.pop(0)
        self._began, self._latencies_ms = ended, []


async def serve(run: Run) -> None:
    """Answer the requests on standard input until it ends. Only the answers go to standard output."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    print(json.dumps({"ready": True}), file=answers, flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        try:
            answer = await Lanes(run, **json.loads(line)).hold()
        except Exception as error:  # noqa: BLE001 - the bench says it, and goes on with the other products
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)

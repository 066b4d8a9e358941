"""What the adapter adds to a call over HTTP: calls through the tool runtime, and those of a bare httpx client.

Both are made in this process to the upstream of the stack, in turn by each caller, so that everything else
is under way is in both. The stack's own tool is left alone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from itertools import cycle, islice
from pathlib import Path
from typing import Self

import httpx
import orjson

from triptych.embedded.config import StackConfig
from triptych.kernel.worker import JobAttempt
from triptych.schemas import ResultStatus
from triptych.schemas.work import CallRequest
from triptych.tools import Source
from triptych.tools.adapters.http_call import tool as http_tool
from triptych.tools.runtime.attempt import ToolWorker
from triptych.tools.sdk.call import Resources
from triptych.tools.testing import FreshLedger, request_for, worker_of
from triptych_bench.errors import CallFailedError
from triptych_bench.figures import HttpCost, percentile
from triptych_bench.stack import CONFIG, Stack

_NAME, _OPERATION = "shop", "item"
_ARGUMENTS = {"id": "L-17", "currency": "EUR"}
_PATH = "/items/L-17?currency=EUR"


class Adapter:
    """Measures the tool that bench/triptych.toml declares, against the upstream of a stack. Async context manager."""

    def __init__(self, stack: Stack) -> None:
        self._upstream = stack.upstream
        declared = StackConfig.load(CONFIG).table.tools[_NAME].options
        options = {name: value for name, value in declared.items() if name != "base_url_env"}
        self._tool = http_tool(Source(_NAME, {**options, "base_url": self._upstream}, Path()))
        # The deadline is not checked here: the loop that hands out jobs does that.
        self._request = request_for(self._tool, _OPERATION, _ARGUMENTS).to_bytes()
        self._opened = AsyncExitStack()
        self._client: httpx.AsyncClient
        self._worker: ToolWorker

    @property
    def at_once(self) -> tuple[int, ...]:
        """Return how many calls are under way: one, or as many as the tool makes in parallel."""
        return 1, self._tool.concurrency

    async def __aenter__(self) -> Self:
        state = await self._opened.enter_async_context(self._tool.lifespan(Resources(None, None)))
        self._worker = worker_of(self._tool, state, None, FreshLedger())
        self._client = await self._opened.enter_async_context(httpx.AsyncClient(timeout=None))  # noqa: S113 - as the adapter's
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self._opened.aclose()

    async def measure(self, at_once: int, seconds: float) -> HttpCost:
        """Make calls for so long, every caller one of each kind in turn. Raises CallFailedError."""
        bare_ms: list[float] = []
        adapter_ms: list[float] = []
        kinds = ((self._bare, bare_ms), (self._through_runtime, adapter_ms))
        end = time.perf_counter() + seconds

        async def call(turns: list[tuple[Callable[[], Awaitable[None]], list[float]]]) -> None:
            for once, _ in turns:  # opens connections
                await once()
            while time.perf_counter() < end or not adapter_ms:
                for once, taken_ms in turns:
                    began = time.perf_counter()
                    await once()
                    taken_ms.append((time.perf_counter() - began) * 1000)

        await asyncio.gather(*(call(list(islice(cycle(kinds), start % 2, start % 2 + 2))) for start in range(at_once)))
        return HttpCost(percentile(bare_ms, 50), percentile(adapter_ms, 50))

    async def _bare(self) -> None:
        """Make the same request, and return its answer as data."""
        response = await self._client.get(self._upstream + _PATH)
        if not response.is_success:
            raise CallFailedError(f"GET {_PATH}", self._upstream, str(response.status_code))
        orjson.loads(response.content)

    async def _through_runtime(self) -> None:
        """Make a call from the request in the table of jobs to the answer that is written there."""
        request = CallRequest.model_validate_json(self._request)
        answer = await self._worker.execute(request, JobAttempt(lease=0))
        if answer is None or answer.result.status is not ResultStatus.OK:
            raise CallFailedError(request.operation, self._upstream, str(answer and answer.result.error))
        answer.to_bytes()

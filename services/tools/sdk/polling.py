"""For upstreams that take work on and never call back: ask again, with backoff and caps, inside the one attempt.

It is the adapter that asks, and never a model. A callback is better: it holds no process (callbacks.py).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from triptych.schemas.result import ErrorCode
from triptych.tools.sdk.failure import ToolFailure

AnswerT = TypeVar("AnswerT")

_JITTER = 0.25


async def poll_until(
    ask: Callable[[], Awaitable[AnswerT | None]],
    *,
    first_ms: int = 500,
    cap_ms: int = 15_000,
    max_polls: int = 200,
) -> AnswerT:
    """What `ask` gives as soon as it gives something. The operation's `timeout_ms` ends it in any case.

    The first question is asked after `first_ms`; each wait is half as long again as the last one, up to `cap_ms`, and
    a quarter longer or shorter by chance.

    Raises:
        ToolFailure: `timeout`, when `max_polls` questions had no answer; or what `ask` raises.
    """
    wait_ms = float(first_ms)
    for _ in range(max_polls):
        await asyncio.sleep(wait_ms * random.uniform(1 - _JITTER, 1 + _JITTER) / 1_000)  # noqa: S311 - a wait
        if (answer := await ask()) is not None:
            return answer
        wait_ms = min(wait_ms * 1.5, cap_ms)
    raise ToolFailure(ErrorCode.TIMEOUT, f"the upstream was asked {max_polls} times and is not finished")

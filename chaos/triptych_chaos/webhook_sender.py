"""The sender of webhooks: an upstream that accepts deliveries and says by webhook when each is made.

It stands for the world outside, so it lives with who strikes and outlives what is struck. Like real ones it accepts a
delivery once for each key, calls back immediately, later or too late, at times twice, and again until it has an answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import ssl
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from triptych.kernel.process.health import serve_app
from triptych_chaos.history import History
from triptych_chaos.proxy import HOST
from triptych_chaos.webhooks import secret_of, signed

AT_ONCE_WITHIN_S = 1.0
HEARD_WITHIN_S = 5.0
NOBODY = "nobody"
"""Counted for a callback without an answer."""
_TLS: Final = ssl.create_default_context()
"""Made once: to make one for each connection would keep the loop busy for 20 ms each time."""
_KEY = b"the seal of the sender, for tests"


@dataclass(frozen=True, slots=True)
class Timing:
    """When it calls back. The defaults are those of the nemesis."""

    at_once: float = 0.2
    """The share of deliveries that are made, and told if that is quick enough, before they are said to be accepted."""
    on_the_way_s: tuple[float, float] = (0.1, 10.0)
    late: float = 0.03
    """The share that is on the way for about as long as the tool waits, which is 90 s."""
    late_s: tuple[float, float] = (80.0, 110.0)
    twice: float = 0.2
    """The share that is told twice, by two who do not know of each other."""
    unheard: float = 0.05
    """The share whose acceptance the tool does not hear."""
    again_after_s: float = 0.2
    again_after_most_s: float = 3.0


PROMPT: Final = Timing(at_once=0.0, on_the_way_s=(0.0, 0.3), late=0.0, twice=0.0, unheard=0.0, again_after_most_s=1.0)
"""For tests that kill processes at given points. Some are made before the tool knows that they were accepted."""


@dataclass(slots=True)
class Delivery:
    """A delivery that was accepted. Numbers are lines of the history."""

    run_id: str
    callback: str
    lines: list[int] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    """What was answered to each callback that was heard."""
    refused: list[str] = field(default_factory=list)
    """What was answered to each that was taken for a wrong one."""
    moved: list[str] = field(default_factory=list)
    """Other addresses that were given for the same key."""


class WebhookSender:
    """What it has accepted, and what its webhooks were answered."""

    def __init__(self, history: History, dice: random.Random, port: int, timing: Timing) -> None:
        self.deliveries: dict[str, Delivery] = {}
        """By idempotency key."""
        self.answers: Counter[str] = Counter()
        """How often which answer was given to a callback."""
        self._history, self._dice, self._port, self._timing = history, dice, port, timing
        self._telling: set[asyncio.Task[None]] = set()
        self._hurrying = asyncio.Event()

    @property
    def environment(self) -> dict[str, str]:
        """The environment in which the tool finds the sender."""
        return {
            "WEBHOOK_SENDER_URL": f"http://{HOST}:{self._port}",
            "TRIPTYCH_CALLBACK_SECRET": secret_of(_KEY),
        }

    @property
    def waiting(self) -> int:
        """How many deliveries have had no webhook with an answer yet."""
        return sum(not delivery.said for delivery in self.deliveries.values())

    @property
    def untold(self) -> int:
        """How many webhooks have no answer of success yet."""
        return len(self._telling)

    def hurry(self) -> None:
        """Make all deliveries immediately from now on."""
        self._hurrying.set()

    async def accept(self, request: Request) -> JSONResponse:
        asked = await request.json()
        key, run_id, callback = asked["key"], asked["run"], asked["callback"]
        delivery = self.deliveries.get(key)
        line = self._history.write("delivery", run=run_id, key=key, again=delivery is not None)
        if delivery is not None:
            delivery.lines.append(line)
            if (delivery.run_id, delivery.callback) != (run_id, callback):
                delivery.moved.append(f"{callback} for run {run_id}")
            return JSONResponse({}, status_code=HTTPStatus.ACCEPTED)
        self.deliveries[key] = delivery = Delivery(run_id, callback, [line])
        after_s = [self._on_the_way_s() for _ in range(1 + (self._dice.random() < self._timing.twice))]
        telling = [asyncio.create_task(self._tell(key, delivery, each)) for each in after_s]
        self._telling.update(telling)
        for each in telling:
            each.add_done_callback(self._telling.discard)
        if 0.0 in after_s:
            await asyncio.wait(telling, timeout=AT_ONCE_WITHIN_S, return_when=asyncio.FIRST_COMPLETED)
        is_unheard = self._dice.random() < self._timing.unheard
        return JSONResponse({}, status_code=HTTPStatus.BAD_GATEWAY if is_unheard else HTTPStatus.ACCEPTED)

    def _on_the_way_s(self) -> float:
        kind, timing = self._dice.random(), self._timing
        if kind < timing.at_once:
            return 0.0
        return self._dice.uniform(*(timing.late_s if kind < timing.at_once + timing.late else timing.on_the_way_s))

    async def _tell(self, key: str, delivery: Delivery, after_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._hurrying.wait(), after_s)
        again_after_s = self._timing.again_after_s
        while not await self._is_heard(key, delivery):
            await asyncio.sleep(again_after_s)
            again_after_s = min(2 * again_after_s, self._timing.again_after_most_s)

    async def _is_heard(self, key: str, delivery: Delivery) -> bool:
        """Tell once. Only an answer of success means that it was heard."""
        body = json.dumps({"run": delivery.run_id}).encode()
        try:
            # A connection for each, so that any process behind the address may get it.
            async with httpx.AsyncClient(timeout=HEARD_WITHIN_S, trust_env=False, verify=_TLS) as http:
                answer = await http.post(delivery.callback, content=body, headers=signed(_KEY, key, body))
        except httpx.TransportError as error:
            self._note(key, delivery, NOBODY, repr(error))
            return False
        said = _status_of(answer)
        self._note(key, delivery, f"{answer.status_code} {said}", "")
        if answer.is_client_error:
            delivery.refused.append(f"{answer.status_code} {said}")
        if answer.is_success:
            delivery.said.append(said)
        return answer.is_success

    def _note(self, key: str, delivery: Delivery, answer: str, error: str) -> None:
        self.answers[answer] += 1
        delivery.lines.append(self._history.write("callback", run=delivery.run_id, key=key, answer=answer, error=error))

    async def close(self) -> None:
        telling = list(self._telling)
        for each in telling:
            each.cancel()
        await asyncio.gather(*telling, return_exceptions=True)


def _status_of(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["status"])
    except (ValueError, KeyError, TypeError):
        return answer.text[:80]


@asynccontextmanager
async def open_sender(
    history: History, dice: random.Random, port: int, timing: Timing | None = None
) -> AsyncIterator[WebhookSender]:
    """Accept deliveries while the body runs; without `timing`, as for the nemesis."""
    sender = WebhookSender(history, dice, port, timing or Timing())
    app = Starlette(routes=[Route("/deliveries", sender.accept, methods=["POST"])])
    async with serve_app(app, HOST, port, "webhook"):
        try:
            yield sender
        finally:
            await sender.close()

"""The courier: an upstream that takes parcels on and tells by webhook when they are delivered.

It stands for the world outside, so it lives with the nemesis and outlives what is struck. Like real ones it takes a
parcel on once for each key, tells at once, later or too late, at times twice, and tells again until it is heard.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from triptych.kernel.process.health import serve_app
from triptych_chaos.history import History
from triptych_chaos.proxy import HOST
from triptych_chaos.webhooks import secret_of, signed

AT_ONCE = 0.2
AT_ONCE_WITHIN_S = 1.0
"""So many parcels are delivered, and that is told if it can be so quickly, before they are said to be taken on."""
ON_THE_WAY_S = (0.1, 10.0)
LATE = 0.03
"""So many are on the way for about as long as the tool waits, which is 90 s."""
LATE_S = (80.0, 110.0)
TWICE = 0.2
"""So many deliveries are told twice, by two who do not know of each other."""
UNHEARD = 0.05
"""Of so many the tool does not hear that they were taken on."""
AGAIN_AFTER_S, AGAIN_AFTER_MOST_S = 0.2, 3.0
HEARD_WITHIN_S = 5.0
NOBODY = "nobody"
"""What is counted for a callback that nobody answered."""
_KEY = b"the courier's seal, for the nemesis"


@dataclass(slots=True)
class Parcel:
    """A parcel that was taken on. Numbers are lines of the history."""

    run_id: str
    callback: str
    lines: list[int] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    """What was answered to each callback that was heard."""
    refused: list[str] = field(default_factory=list)
    """What was answered to each that was taken for a wrong one."""
    moved: list[str] = field(default_factory=list)
    """Other addresses that were given for the same key."""


class Courier:
    """What was taken on, and what was said to whoever told of it."""

    def __init__(self, history: History, dice: random.Random, port: int) -> None:
        self.parcels: dict[str, Parcel] = {}
        """By idempotency key."""
        self.answers: Counter[str] = Counter()
        """How often which answer was given to a callback."""
        self._history, self._dice, self._port = history, dice, port
        self._telling: set[asyncio.Task[None]] = set()
        self._hurrying = asyncio.Event()

    @property
    def environment(self) -> dict[str, str]:
        """In which the tool finds the courier."""
        return {
            "COURIER_URL": f"http://{HOST}:{self._port}",
            "TRIPTYCH_CALLBACK_SECRET": secret_of(_KEY),
        }

    @property
    def waiting(self) -> int:
        """How many parcels nobody has heard of yet."""
        return sum(not parcel.said for parcel in self.parcels.values())

    @property
    def untold(self) -> int:
        """How many callbacks have not been heard yet."""
        return len(self._telling)

    def hurry(self) -> None:
        """From now on everything is delivered at once."""
        self._hurrying.set()

    async def take_on(self, request: Request) -> JSONResponse:
        asked = await request.json()
        key, run_id, callback = asked["key"], asked["run"], asked["callback"]
        parcel = self.parcels.get(key)
        line = self._history.write("parcel", run=run_id, key=key, again=parcel is not None)
        if parcel is not None:
            parcel.lines.append(line)
            if (parcel.run_id, parcel.callback) != (run_id, callback):
                parcel.moved.append(f"{callback} for run {run_id}")
            return JSONResponse({}, status_code=HTTPStatus.ACCEPTED)
        self.parcels[key] = parcel = Parcel(run_id, callback, [line])
        after_s = [self._on_the_way_s() for _ in range(1 + (self._dice.random() < TWICE))]
        telling = [asyncio.create_task(self._tell(key, parcel, each)) for each in after_s]
        self._telling.update(telling)
        for each in telling:
            each.add_done_callback(self._telling.discard)
        if 0.0 in after_s:
            await asyncio.wait(telling, timeout=AT_ONCE_WITHIN_S, return_when=asyncio.FIRST_COMPLETED)
        is_unheard = self._dice.random() < UNHEARD
        return JSONResponse({}, status_code=HTTPStatus.BAD_GATEWAY if is_unheard else HTTPStatus.ACCEPTED)

    def _on_the_way_s(self) -> float:
        kind = self._dice.random()
        if kind < AT_ONCE:
            return 0.0
        return self._dice.uniform(*(LATE_S if kind < AT_ONCE + LATE else ON_THE_WAY_S))

    async def _tell(self, key: str, parcel: Parcel, after_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._hurrying.wait(), after_s)
        again_after_s = AGAIN_AFTER_S
        while not await self._is_heard(key, parcel):
            await asyncio.sleep(again_after_s)
            again_after_s = min(2 * again_after_s, AGAIN_AFTER_MOST_S)

    async def _is_heard(self, key: str, parcel: Parcel) -> bool:
        """Tell once. Only an answer of success means that it was heard."""
        body = json.dumps({"run": parcel.run_id}).encode()
        try:
            # A connection for each, so that any process behind the address may get it.
            async with httpx.AsyncClient(timeout=HEARD_WITHIN_S, trust_env=False) as http:
                answer = await http.post(parcel.callback, content=body, headers=signed(_KEY, key, body))
        except httpx.TransportError as error:
            self._note(key, parcel, NOBODY, repr(error))
            return False
        said = _status_of(answer)
        self._note(key, parcel, f"{answer.status_code} {said}", "")
        if answer.is_client_error:
            parcel.refused.append(f"{answer.status_code} {said}")
        if answer.is_success:
            parcel.said.append(said)
        return answer.is_success

    def _note(self, key: str, parcel: Parcel, answer: str, error: str) -> None:
        self.answers[answer] += 1
        parcel.lines.append(self._history.write("callback", run=parcel.run_id, key=key, answer=answer, error=error))

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
async def open_office(history: History, dice: random.Random, port: int) -> AsyncIterator[Courier]:
    """The courier, open for parcels while the body runs."""
    courier = Courier(history, dice, port)
    app = Starlette(routes=[Route("/parcels", courier.take_on, methods=["POST"])])
    async with serve_app(app, HOST, port, "courier"):
        try:
            yield courier
        finally:
            await courier.close()

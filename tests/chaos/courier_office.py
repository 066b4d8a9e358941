"""The courier's office: it takes a parcel on once for each key, and calls back until somebody has heard it.

It lives in the process of the test, so it outlives whatever is killed.
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack, asynccontextmanager
from http import HTTPStatus

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from triptych.kernel.process.health import serve_app
from triptych_chaos.webhooks import secret_of, signed

KEY = b"the courier's seal, for tests"
ON_THE_WAY_S = 0.3
"""At most; some are delivered before the tool knows that they were taken on."""
AGAIN_AFTER_S = 0.2


class CourierOffice:
    """What has been delivered, and what was said to whoever told it."""

    def __init__(self) -> None:
        self.keys: dict[str, str] = {}
        """The run of each key under which a parcel was taken on."""
        self.heard: Counter[str] = Counter()
        """How often which answer was given to a callback."""
        self._on_the_way: set[asyncio.Task[None]] = set()
        self._random = random.Random(1)  # noqa: S311 - not for secrets

    @property
    def deliveries(self) -> Counter[str]:
        """How many parcels each run has had delivered."""
        return Counter(self.keys.values())

    async def take_on(self, request: Request) -> JSONResponse:
        parcel = await request.json()
        if parcel["key"] not in self.keys:
            self.keys[parcel["key"]] = parcel["run"]
            on_the_way = asyncio.create_task(self._deliver(parcel))
            self._on_the_way.add(on_the_way)
            on_the_way.add_done_callback(self._on_the_way.discard)
        return JSONResponse({}, status_code=HTTPStatus.ACCEPTED)

    async def _deliver(self, parcel: Mapping[str, str]) -> None:
        await asyncio.sleep(self._random.uniform(0, ON_THE_WAY_S))
        body = json.dumps({"run": parcel["run"]}).encode()
        async with httpx.AsyncClient() as client:
            while True:
                try:
                    answer = await client.post(
                        parcel["callback"], content=body, headers=signed(KEY, parcel["key"], body)
                    )
                except httpx.TransportError:
                    self.heard["nobody"] += 1
                else:
                    self.heard[answer.json()["status"]] += 1
                    if answer.status_code < HTTPStatus.INTERNAL_SERVER_ERROR:
                        return
                await asyncio.sleep(AGAIN_AFTER_S)


@asynccontextmanager
async def open_office() -> AsyncIterator[tuple[CourierOffice, dict[str, str]]]:
    """The office, and the environment in which a stack finds it and is found by it."""
    office = CourierOffice()
    app = Starlette(routes=[Route("/parcels", office.take_on, methods=["POST"])])
    own_port, port = _free_ports(2)
    environment = {
        "COURIER_URL": f"http://127.0.0.1:{own_port}",
        "TRIPTYCH_CALLBACK_URL": f"http://127.0.0.1:{port}",
        "TRIPTYCH_CALLBACK_PORT": str(port),
        "TRIPTYCH_CALLBACK_SECRET": secret_of(KEY),
    }
    async with serve_app(app, "127.0.0.1", own_port, "courier-office"):
        yield office, environment


def _free_ports(count: int) -> list[int]:
    with ExitStack() as probes:
        sockets = [probes.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]

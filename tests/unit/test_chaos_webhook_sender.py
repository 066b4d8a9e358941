"""The sender of webhooks is as real ones are: it calls again until it has an answer of success."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from triptych.kernel.process.health import serve_app
from triptych_chaos.history import recording
from triptych_chaos.webhook_sender import Timing, WebhookSender, open_sender

RELIABLE = Timing(twice=0.0, unheard=0.0)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Ear:
    """Where the sender calls back: it answers what it is told to, and with success from then on."""

    def __init__(self, statuses: list[int]) -> None:
        self.port = free_port()
        self.heard: list[tuple[str, bytes]] = []
        self._statuses = statuses

    async def called(self, request: Request) -> JSONResponse:
        self.heard.append((request.headers["webhook-id"], await request.body()))
        return JSONResponse({"status": "as told"}, self._statuses.pop(0) if self._statuses else 200)


@asynccontextmanager
async def at_work(
    folder: Path, ear: Ear, timing: Timing = RELIABLE
) -> AsyncIterator[tuple[WebhookSender, httpx.AsyncClient]]:
    app = Starlette(routes=[Route("/here", ear.called, methods=["POST"])])
    port = free_port()
    with recording(folder / "history.jsonl") as history:
        async with (
            open_sender(history, random.Random(1), port, timing) as sender,  # noqa: S311 - no secret
            httpx.AsyncClient(
                base_url=f"http://127.0.0.1:{port}", transport=httpx.AsyncHTTPTransport(retries=5)
            ) as http,
            serve_app(app, "127.0.0.1", ear.port, "ear"),
        ):
            sender.hurry()
            yield sender, http


async def accepted(sender: WebhookSender, http: httpx.AsyncClient, key: str, callback: str) -> int:
    """Ask for a delivery, and wait until each webhook has an answer of success."""
    answer = await http.post("/deliveries", json={"key": key, "run": "run-1", "callback": callback})
    async with asyncio.timeout(20):
        while sender.untold:  # noqa: ASYNC110 - the sender has no event for that
            await asyncio.sleep(0.01)
    return answer.status_code


async def test_it_tells_again_until_it_is_heard_and_keeps_what_refused_it(tmp_path: Path) -> None:
    ear = Ear([503, 404])
    async with at_work(tmp_path, ear) as (sender, http):
        assert await accepted(sender, http, "key-1", f"http://127.0.0.1:{ear.port}/here") == 202
    assert ear.heard == [("key-1", b'{"run": "run-1"}')] * 3
    assert (sender.waiting, sender.deliveries["key-1"].said) == (0, ["as told"])
    assert sender.deliveries["key-1"].refused == ["404 as told"]


async def test_it_accepts_a_delivery_once_for_each_key_and_keeps_an_address_that_differs(tmp_path: Path) -> None:
    ear = Ear([])
    async with at_work(tmp_path, ear) as (sender, http):
        for _ in range(2):
            await accepted(sender, http, "key-1", f"http://127.0.0.1:{ear.port}/here")
        assert await accepted(sender, http, "key-1", "http://127.0.0.1:1/elsewhere") == 202
    assert len(ear.heard) == 1
    assert sender.deliveries["key-1"].moved == ["http://127.0.0.1:1/elsewhere for run run-1"]


async def test_it_may_call_back_twice_and_may_not_be_heard_itself(tmp_path: Path) -> None:
    timing = Timing(twice=1.0, unheard=1.0)
    ear = Ear([])
    async with at_work(tmp_path, ear, timing) as (sender, http):
        assert await accepted(sender, http, "key-1", f"http://127.0.0.1:{ear.port}/here") == 502
        assert await accepted(sender, http, "key-1", f"http://127.0.0.1:{ear.port}/here") == 202
    assert len(ear.heard) == 2

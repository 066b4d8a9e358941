"""An upstream that takes orders and calls back, and a tool in front of it that can be killed."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

import triptych.tools
from triptych.kernel.process.settings import ServiceSettings
from triptych.schemas import CallRequest
from triptych_chaos import webhooks

MIGRATIONS = Path(triptych.tools.__file__).with_name("migrations")
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"  # noqa: S105 - the example of the specification
TOOL = '''
import os

import httpx

from triptych.tools import Accepted, Call, Effect, ErrorCode, NotYet, Tool, ToolFailure

tool = Tool("studio")


@tool.operation(effect=Effect.IDEMPOTENT, timeout_ms=60_000)
async def render(call: Call[None], text: str) -> dict[str, str]:
    """Render a film of a text. It takes a while."""
    async with httpx.AsyncClient() as client:
        order = {"text": text, "callback": call.callback_url, "key": call.idempotency_key}
        response = await client.post(os.environ["STUDIO"] + "/films", json=order)
    if response.status_code == 202:
        raise Accepted
    return response.json()


@tool.completion(render, accept_within_ms=5_000)
async def rendered(body: dict) -> dict[str, str]:
    if body["state"] == "working":
        raise NotYet
    if body["state"] == "failed":
        raise ToolFailure(ErrorCode.UNAVAILABLE, "no film today", undone=body.get("is_certain", False))
    return {"film": body["film"]}
'''


def signed(body: bytes, *, secret: str = SECRET, at: float | None = None) -> dict[str, str]:
    """The headers of Standard Webhooks, as an upstream would make them."""
    return webhooks.signed(base64.b64decode(secret.removeprefix("whsec_")), f"msg_{uuid4()}", body, at_s=at)


async def call_back(url: str, body: Any, **signing: Any) -> httpx.Response:
    encoded = json.dumps(body).encode()
    async with httpx.AsyncClient() as client:
        return await client.post(url, content=encoded, headers=signed(encoded, **signing))


class Studio:
    """An upstream that takes orders, and calls back when a test lets it."""

    def __init__(self) -> None:
        self.orders: list[dict[str, str]] = []
        self.quick = False

    def orders_of(self, request: CallRequest) -> list[dict[str, str]]:
        return [order for order in self.orders if order["key"] == request.idempotency_key]

    async def order(self, request: Request) -> JSONResponse:
        order = await request.json()
        self.orders.append(order)
        if order["text"] == "quick":
            answer = await call_back(order["callback"], {"state": "done", "film": "quick.mp4"})
            assert answer.json() == {"status": "kept"}
        return JSONResponse({}, status_code=202)


@asynccontextmanager
async def open_studio() -> AsyncIterator[tuple[Studio, str]]:
    """The upstream, and its address."""
    studio = Studio()
    app = Starlette(routes=[Route("/films", studio.order, methods=["POST"])])
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
        serving = asyncio.create_task(server.serve([listener]))
        yield studio, f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        await serving


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Process:
    """The tool, in a process of its own that can be killed and started again."""

    def __init__(
        self,
        settings: ServiceSettings,
        studio: str,
        folder: Path,
        tool: str = "studio_tool:tool",
        more: dict[str, str] | None = None,
    ) -> None:
        self.folder, self._tool, self.port = folder, tool, free_port()
        (folder / "studio_tool.py").write_text(TOOL, "utf-8")
        self._environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH")))),
            "STUDIO": studio,
            "TRIPTYCH_KAFKA": settings.kafka,
            "TRIPTYCH_POSTGRES": settings.postgres.get_secret_value(),
            "TRIPTYCH_TOPIC_PREFIX": settings.topic_prefix,
            "TRIPTYCH_INSTANCE": "studio-1",
            "TRIPTYCH_LOG_LEVEL": "warning",
            "TRIPTYCH_CALLBACK_URL": f"http://127.0.0.1:{self.port}",
            "TRIPTYCH_CALLBACK_PORT": str(self.port),
            "TRIPTYCH_CALLBACK_SECRET": SECRET,
            "TRIPTYCH_ALLOW_FAILPOINTS": "i-know",
            "TRIPTYCH_FAILPOINTS": str(folder / "failpoints"),
            **(more or {}),
        }
        self._process: asyncio.subprocess.Process | None = None

    def arm(self, place: str, what: str = "kill") -> None:
        (self.folder / "failpoints" / "studio-1").mkdir(parents=True, exist_ok=True)
        (self.folder / "failpoints" / "studio-1" / place).write_text(f"{what}:1", "utf-8")

    async def is_struck(self, place: str) -> bool:
        return (self.folder / "failpoints" / "studio-1" / "struck" / place).exists()

    def go_on(self) -> None:
        """After a stop."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    async def start(self) -> None:
        command = (sys.executable, "-m", "triptych.tools", self._tool)
        self._process = await asyncio.create_subprocess_exec(*command, env=self._environment)

    async def ended(self) -> None:
        assert self._process is not None
        await self._process.wait()

    async def kill(self) -> None:
        assert self._process is not None
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGKILL)
        await self.ended()


async def answers(url: str) -> bool:
    try:
        async with httpx.AsyncClient() as client:
            return (await client.get(url)).status_code == 405
    except httpx.TransportError:
        return False

"""A tool whose upstream is a file of letters, with operations that keep their effect class and some that do not."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from triptych.tools import Accepted, Call, Effect, Tool

tool = Tool("letters")


class Sent(BaseModel):
    key: str


def letters() -> Path:
    return Path(os.environ["LETTERS"])


def sent(key: str) -> int:
    """How many letters have this key."""
    return letters().read_text().split().count(key) if letters().exists() else 0


def post(key: str) -> Sent:
    with letters().open("a") as file:
        file.write(f"{key}\n")
    return Sent(key=key)


@tool.operation(effect=Effect.READ)
async def count(text: str) -> int:
    """How many letters there are."""
    return len(letters().read_text().split()) if letters().exists() else 0


@tool.operation(effect=Effect.IDEMPOTENT)
async def send(call: Call[None], text: str) -> Sent:
    """Sends a letter once for each key."""
    return post(call.idempotency_key) if not sent(call.idempotency_key) else Sent(key=call.idempotency_key)


@tool.operation(effect=Effect.ONCE)
async def drop(call: Call[None], text: str) -> Sent:
    """Drops a letter, and nobody can tell afterwards."""
    return post(call.idempotency_key)


@tool.operation(effect=Effect.ONCE)
async def register(call: Call[None], text: str) -> Sent:
    """Sends a registered letter."""
    return post(call.idempotency_key)


@tool.reconcile(register)
async def was_registered(call: Call[None]) -> Sent | None:
    """Looks it up."""
    return Sent(key=call.idempotency_key) if sent(call.idempotency_key) else None


@tool.operation(effect=Effect.IDEMPOTENT)
async def spam(call: Call[None], text: str) -> dict[str, Any]:
    """Claims to be idempotent."""
    return post(call.idempotency_key).model_dump()


@tool.operation(effect=Effect.ONCE)
async def forget(call: Call[None], text: str) -> Any:
    """Sends a letter whose reconcile denies it."""
    return post(call.idempotency_key).key


@tool.reconcile(forget)
async def was_forgotten(call: Call[None]) -> None:
    """Denies everything."""


@tool.operation(effect=Effect.READ)
async def broken(text: str) -> str:
    """Does not work."""
    raise RuntimeError(text)


@tool.operation(effect=Effect.IDEMPOTENT, timeout_ms=60_000)
async def order(call: Call[None], text: str) -> Sent:
    """Has a letter printed, once for each key; the printer calls back."""
    if call.callback_url is None or not call.callback_url.startswith("http"):
        raise RuntimeError("nobody could call back")
    if not sent(call.idempotency_key):
        post(call.idempotency_key)
    raise Accepted


@tool.completion(order, accept_within_ms=30_000)
async def printed(body: dict[str, Any]) -> Sent:
    return Sent(key=body["printed"])


@tool.operation(effect=Effect.IDEMPOTENT, timeout_ms=60_000)
async def order_anew(call: Call[None], text: str) -> Sent:
    """As `order`, by a printer that prints whatever it is asked."""
    post(call.idempotency_key)
    raise Accepted


@tool.completion(order_anew, accept_within_ms=30_000)
async def printed_anew(body: dict[str, Any]) -> Sent:
    return Sent(key=str(body.get("printed", "")))


@tool.operation(effect=Effect.ONCE, timeout_ms=60_000)
async def order_once(call: Call[None], text: str) -> Sent:
    """As `order`, by a printer that knows no keys."""
    post(call.idempotency_key)
    raise Accepted


@tool.completion(order_once, accept_within_ms=30_000)
async def printed_once(body: dict[str, Any]) -> Sent:
    return Sent(key=body["printed"])

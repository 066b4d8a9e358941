"""A tool that gives back its argument, for tests and benchmarks: it costs nothing and changes nothing."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from triptych.tools import Effect, Tool

tool = Tool("echo", concurrency=64)


class Echo(BaseModel):
    value: Any


@tool.operation(effect=Effect.READ, timeout_ms=5_000)
async def echo(value: Any) -> Echo:
    """Give back `value`, of any type."""
    return Echo(value=value)

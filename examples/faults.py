"""The faults a server can be told to have, and the book in which they wait to be used up.

Armed over HTTP by tests and people. The book lives in memory: a restarted server is a healthy one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from triptych.examples.serving import HalfResponse, SeveredResponse, problem

PAGE = """<!DOCTYPE html><html><head><title>Oops</title></head><body><h1>Internal Server Error</h1>
<pre>Traceback (most recent call last):
  File "/srv/desk/app.py", line 17, in reply
    db = connect("postgresql://desk:hunter2-of-the-desk@db.internal/desk")
</pre></body></html>"""
"""What no model should ever see."""
REASON = "This server was told to fail."


class FaultKind(StrEnum):
    ERROR = "500"
    UNAVAILABLE = "503"
    RATE_LIMITED = "429"
    STATUS = "status"
    """Answer with `status` and a reason as RFC 9457 writes it, and do nothing."""
    PAGE = "page"
    """Answer with `status` and a web page that tells too much, and do nothing."""
    ERROR_IN_BODY = "error_in_body"
    """Do nothing and answer 200; only the body says that it failed."""
    SHAPE = "shape"
    """Do the work and answer in another shape."""
    HALF = "half"
    """Do the work, send half of the answer and cut the connection."""
    HANG = "hang"
    """Answer late, and do the work anyway, as a slow server would."""
    STALL = "stall"
    """Do the work immediately, and answer late."""
    DROP_BEFORE = "drop_before"
    """Cut the connection and do nothing."""
    DROP_AFTER = "drop_after"
    """Do the work, then cut the connection: the client cannot know."""


class Fault(BaseModel):
    """One fault, for a number of requests. Without an operation or a ticket it fits every one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    fault: FaultKind
    status: Annotated[int, Field(ge=200, le=599)] = 500
    operation: str | None = None
    ticket: str | None = None
    times: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    retry_after_s: Annotated[float, Field(ge=0)] = 1.0
    hang_ms: Annotated[int, Field(ge=0, le=600_000)] = 3_000


class FaultBook:
    """Faults that wait for a request that fits; the oldest is used first."""

    def __init__(self) -> None:
        self._armed: list[tuple[Fault, int]] = []

    def arm(self, fault: Fault) -> None:
        self._armed.append((fault, fault.times))

    def clear(self) -> None:
        self._armed.clear()

    def take(self, operation: str, fits: Callable[[str], bool]) -> Fault | None:
        """Use up one turn of the first fault for `operation` whose ticket, if it names one, `fits`."""
        for at, (fault, left) in enumerate(self._armed):
            if fault.operation in (None, operation) and (fault.ticket is None or fits(fault.ticket)):
                self._armed[at : at + 1] = [(fault, left - 1)] if left > 1 else []
                return fault
        return None

    def routes(self) -> list[Route]:
        """POST /faults arms one, GET lists what is left, DELETE clears the book."""
        return [
            Route("/faults", self._arm, methods=["POST"]),
            Route("/faults", self._list, methods=["GET"]),
            Route("/faults", self._clear, methods=["DELETE"]),
        ]

    async def _arm(self, request: Request) -> Response:
        try:
            fault = Fault.model_validate_json(await request.body())
        except ValidationError as error:
            return problem(422, f"This is not a fault: {error}")
        self.arm(fault)
        return JSONResponse(fault.model_dump(mode="json"), 201)

    async def _list(self, _: Request) -> Response:
        return JSONResponse([{**fault.model_dump(mode="json"), "times": left} for fault, left in self._armed])

    async def _clear(self, _: Request) -> Response:
        self.clear()
        return Response(status_code=204)


async def under(fault: Fault | None, work: Callable[[], Awaitable[Response]]) -> Response:
    """Do `work`, or fail it in the way `fault` says."""
    if fault is None:
        return await work()
    return _instead(fault) or await _spoilt(fault, work)


def _instead(fault: Fault) -> Response | None:
    """Return the answer of a fault that does no work; None when the fault does the work."""
    match fault.fault:
        case FaultKind.DROP_BEFORE:
            return SeveredResponse()
        case FaultKind.STATUS:
            return problem(fault.status, REASON)
        case FaultKind.PAGE:
            return HTMLResponse(PAGE, fault.status)
        case FaultKind.ERROR_IN_BODY:
            return JSONResponse({"error": {"message": "The desk is being rebuilt."}})
        case FaultKind.ERROR | FaultKind.RATE_LIMITED | FaultKind.UNAVAILABLE as kind:
            asks_to_wait = kind is not FaultKind.ERROR
            return problem(int(kind), REASON, retry_after_s=fault.retry_after_s if asks_to_wait else None)
    return None


async def _spoilt(fault: Fault, work: Callable[[], Awaitable[Response]]) -> Response:
    """Do the work, and answer late, in another shape, or not at all."""
    if fault.fault is FaultKind.HANG:
        await asyncio.sleep(fault.hang_ms / 1_000)
    answer = await work()
    match fault.fault:
        case FaultKind.STALL:
            await asyncio.sleep(fault.hang_ms / 1_000)
        case FaultKind.SHAPE:
            return JSONResponse({"result": bytes(answer.body).decode()}, answer.status_code)
        case FaultKind.HALF:
            return HalfResponse(answer)
        case FaultKind.DROP_AFTER:
            return SeveredResponse()
    return answer

"""The helpdesk's HTTP API. Every write needs an `Idempotency-Key`; a repeat gets the stored answer."""

from __future__ import annotations

import math
import secrets
from dataclasses import asdict

from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from triptych.examples.faults import FaultBook, under
from triptych.examples.helpdesk.store import KeyReusedError, Store
from triptych.examples.helpdesk.tickets import WRITES, Body, habitual_fault, view
from triptych.examples.serving import bearer, problem

MAX_TICKETS = 500


class Helpdesk:
    """The endpoints over one store."""

    def __init__(self, store: Store, faults: FaultBook) -> None:
        self._store = store
        self._faults = faults

    def routes(self) -> list[Route]:
        return [
            Route("/health", self.health, methods=["GET"]),
            Route("/tickets", self.tickets, methods=["GET"]),
            Route("/tickets/{ticket}", self.ticket, methods=["GET"]),
            Route("/tickets/{ticket}/{operation}", self.write, methods=["POST"]),
            Route("/effects", self.effect, methods=["GET"]),
            Route("/ledger", self.ledger, methods=["GET"]),
            *self._faults.routes(),
        ]

    async def health(self, _: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def write(self, request: Request) -> Response:
        ticket, operation = request.path_params["ticket"], request.path_params["operation"]
        key = request.headers.get("idempotency-key")
        if operation not in WRITES:
            return problem(404, f"There is no {operation!r}; there are {', '.join(WRITES)}.")
        if not key:
            return problem(400, "The Idempotency-Key header is missing; every write needs one.")
        try:
            body = WRITES[operation].model_validate_json(await request.body())
        except ValidationError as error:
            return problem(422, f"The body does not fit {operation}: {error}")
        requests = self._store.arrive(key, operation, ticket)
        fault = self._faults.take(operation, lambda named: named == ticket) or habitual_fault(ticket, requests)
        return await under(fault, lambda: self._apply(key, operation, ticket, body))

    async def _apply(self, key: str, operation: str, ticket: str, body: Body) -> Response:
        try:
            effect, repeated = self._store.apply(key, operation, ticket, body.model_dump(mode="json"))
        except KeyReusedError as error:
            return problem(409, str(error))
        headers = {"Idempotent-Replay": "true"} if repeated else {}
        return JSONResponse(effect.answer, 200 if repeated else 201, headers)

    async def ticket(self, request: Request) -> Response:
        ticket = request.path_params["ticket"]
        fault = self._faults.take("lookup", lambda named: named == ticket) or habitual_fault(ticket, requests=math.inf)
        return await under(fault, lambda: self._view(ticket))

    async def _view(self, ticket: str) -> Response:
        effects = self._store.effects(ticket)
        return JSONResponse(view(ticket, effects)) if effects else problem(404, f"There is no ticket {ticket}.")

    async def tickets(self, request: Request) -> Response:
        """List all tickets by name, or those with `?tag=` and `?team=`."""
        tag, team = request.query_params.get("tag"), request.query_params.get("team")
        names = sorted({effect.ticket for effect in self._store.effects()})
        views = [view(name, self._store.effects(name)) for name in names]
        found = [
            seen
            for seen in views
            if (tag is None or tag in seen["tags"])
            and (team is None or any(assigned["team"] == team for assigned in seen["assignments"]))
        ]
        return JSONResponse({"tickets": found[:MAX_TICKETS], "total": len(found)})

    async def effect(self, request: Request) -> Response:
        """Show the result of a key, for a client that lost the answer."""
        key = request.query_params.get("key", "")
        effect = self._store.effect(key)
        return (
            problem(404, f"Nothing happened under the key {key!r}.") if effect is None else JSONResponse(asdict(effect))
        )

    async def ledger(self, _: Request) -> Response:
        """List every write that took effect, and how many requests came in with each key."""
        return JSONResponse(
            {"effects": [asdict(effect) for effect in self._store.effects()], "requests": self._store.arrivals()}
        )


class BearerAuth:
    """Asks for the token on everything but /health."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._token = token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] == "/health" or self._admits(Request(scope)):
            await self._app(scope, receive, send)
        else:
            refusal = problem(401, "Send the helpdesk's token: 'Authorization: Bearer <token>'.")
            await refusal(scope, receive, send)

    def _admits(self, request: Request) -> bool:
        return secrets.compare_digest((bearer(request) or "").encode(), self._token)


def create_app(store: Store, token: str) -> Starlette:
    helpdesk = Helpdesk(store, FaultBook())
    return Starlette(routes=helpdesk.routes(), middleware=[Middleware(BearerAuth, token=token)])

"""The CRM's HTTP API. A note needs an `Idempotency-Key`; a repeat gets the note that is there."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime

from pydantic import BaseModel, ValidationError
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from triptych.examples.crm.customers import CUSTOMERS, Customer, Customers, NewNote, Note, Notes
from triptych.examples.crm.document import KEY_HEADER, document
from triptych.examples.serving import problem

OPEN = frozenset({"/health", "/openapi.json"})


class Crm:
    """The endpoints over what is in memory."""

    def __init__(self) -> None:
        self._customers = {customer.id: customer for customer in CUSTOMERS}
        self._notes: dict[str, Note] = {}
        """By the key under which they were taken, in order."""

    def routes(self) -> list[Route]:
        return [
            Route("/health", self.health, methods=["GET"]),
            Route("/openapi.json", self.described, methods=["GET"]),
            Route("/customers", self.find, methods=["GET"]),
            Route("/customers/{customer_id}", self.customer, methods=["GET"]),
            Route("/customers/{customer_id}/notes", self.notes, methods=["GET"]),
            Route("/customers/{customer_id}/notes", self.take_note, methods=["POST"]),
            Route("/customers/{customer_id}/account-manager", self.hand_over, methods=["PUT"]),
        ]

    async def health(self, _: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def described(self, _: Request) -> Response:
        return JSONResponse(document())

    async def find(self, request: Request) -> Response:
        email, plans = request.query_params.get("email"), request.query_params.getlist("plan")
        found = [
            customer
            for customer in self._customers.values()
            if (email is None or customer.email == email) and (not plans or customer.plan in plans)
        ]
        return _answer(Customers(customers=found, total=len(found)))

    async def customer(self, request: Request) -> Response:
        customer = self._named(request)
        return _unknown(request) if customer is None else _answer(customer)

    async def notes(self, request: Request) -> Response:
        customer = self._named(request)
        if customer is None:
            return _unknown(request)
        return _answer(Notes(notes=[note for note in self._notes.values() if note.customer_id == customer.id]))

    async def take_note(self, request: Request) -> Response:
        customer, key = self._named(request), request.headers.get("idempotency-key")
        if customer is None:
            return _unknown(request)
        if not key:
            return problem(400, "The Idempotency-Key header is missing; every note needs one.")
        try:
            wanted = NewNote.model_validate_json(await request.body())
        except ValidationError as error:
            return problem(422, f"This is not a note: {error}")
        known = self._notes.get(key)
        if known is not None:
            same = known.customer_id == customer.id and NewNote.model_validate(_body(known)) == wanted
            return _answer(known) if same else problem(409, f"Idempotency-Key {key!r} was used for another note.")
        note = Note(
            **dict(wanted), id=f"N-{len(self._notes) + 1}", customer_id=customer.id, created_at=datetime.now(UTC)
        )
        self._notes[key] = note
        return _answer(note, 201)

    async def hand_over(self, request: Request) -> Response:
        customer = self._named(request)
        if customer is None:
            return _unknown(request)
        try:
            name = str((await request.json())["name"])
        except (ValueError, KeyError, TypeError):
            return problem(422, 'Send the account manager as {"name": "..."}.')
        self._customers[customer.id] = customer.model_copy(update={"account_manager": name})
        return _answer(self._customers[customer.id])

    def _named(self, request: Request) -> Customer | None:
        return self._customers.get(request.path_params["customer_id"])


class ApiKey:
    """Asks for the key on everything but the document and /health."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self._app, self._key = app, key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        given = Request(scope).headers.get(KEY_HEADER, "") if scope["type"] == "http" else ""
        if scope["type"] != "http" or scope["path"] in OPEN or secrets.compare_digest(given.encode(), self._key):
            await self._app(scope, receive, send)
        else:
            await problem(401, f"Send the CRM's key in the header {KEY_HEADER}.")(scope, receive, send)


def create_app(key: str) -> Starlette:
    return Starlette(routes=Crm().routes(), middleware=[Middleware(ApiKey, key=key)])


def _answer(record: BaseModel, status: int = 200) -> Response:
    return Response(record.model_dump_json(), status, media_type="application/json")


def _unknown(request: Request) -> Response:
    return problem(404, f"There is no customer {request.path_params['customer_id']}.")


def _body(note: Note) -> dict[str, object]:
    return {name: getattr(note, name) for name in NewNote.model_fields}

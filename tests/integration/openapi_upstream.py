"""An API that describes itself: it says in each answer what arrived, and asks for a key as real ones do.

`python tests/integration/openapi_upstream.py PORT`; the document is at /openapi.json.
"""

from __future__ import annotations

import sys
from typing import Any

import uvicorn
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

KEY = "s3cret-of-the-upstream"
LOGIN = "Basic dHJpcHR5Y2g6czNjcmV0LW9mLXRoZS11cHN0cmVhbQ=="


class Order(BaseModel):
    """An order, and the orders that came of it."""

    customer: str
    cents: int
    lines: list[Line] = []
    follows: Order | None = None


class Line(BaseModel):
    """One thing of an order."""

    sku: str
    count: int = 1


class Arrived(BaseModel):
    """What the server saw of a request."""

    path: str
    query: list[list[str]]
    headers: dict[str, str]
    cookies: dict[str, str]
    body: Any = None


class Placed(BaseModel):
    """An order that was taken, under its number."""

    number: str
    order: Order
    requests: int


def document() -> dict[str, Any]:
    """What the API says of itself."""
    _, schemas = models_json_schema(
        [(Order, "validation"), (Arrived, "validation"), (Placed, "validation")],
        ref_template="#/components/schemas/{model}",
    )

    def answer(model: str) -> dict[str, Any]:
        schema = {"$ref": f"#/components/schemas/{model}"}
        return {"200": {"description": "It worked.", "content": {"application/json": {"schema": schema}}}}

    def parameter(name: str, where: str, schema: dict[str, Any], **more: Any) -> dict[str, Any]:
        return {"name": name, "in": where, "required": where == "path", "schema": schema, **more}

    text, texts = {"type": "string"}, {"type": "array", "items": {"type": "string"}}
    fields = {"type": "object", "additionalProperties": {"type": "string"}}
    body = {"required": True, "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Order"}}}}
    form = {"type": "object", "properties": {"name": text, "tags": texts}, "required": ["name"]}
    upload = {"type": "object", "properties": {"note": text, "file": {"type": "string", "format": "binary"}}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Upstream", "version": "2026-11"},
        "servers": [{"url": "/"}],
        "security": [{"key": []}],
        "paths": {
            "/items/{id}/{labels}/{matrix}": {
                "get": {
                    "operationId": "echoEverything",
                    "summary": "Says what arrived",
                    "parameters": [
                        parameter("id", "path", text),
                        parameter("labels", "path", texts, style="label", explode=True),
                        parameter("matrix", "path", texts, style="matrix"),
                        parameter("id", "query", text),
                        parameter("tags", "query", texts),
                        parameter("sizes", "query", {"type": "array", "items": {"type": "integer"}}, explode=False),
                        parameter("piped", "query", texts, style="pipeDelimited", explode=False),
                        parameter("filter", "query", fields, style="deepObject"),
                        {"name": "json", "in": "query", "content": {"application/json": {"schema": fields}}},
                        parameter("X-Trace", "header", texts),
                        parameter("theme", "cookie", text),
                    ],
                    "responses": answer("Arrived"),
                }
            },
            "/orders": {
                "post": {
                    "operationId": "placeOrder",
                    "parameters": [parameter("Idempotency-Key", "header", text)],
                    "requestBody": body,
                    "responses": answer("Placed"),
                }
            },
            "/orders/unsafe": {"post": {"requestBody": body, "responses": answer("Placed")}},
            "/orders/{number}": {"get": {"parameters": [parameter("number", "path", text)], "responses": answer("Placed")}},
            "/orders/by-key": {
                "get": {
                    "operationId": "findOrder",
                    "parameters": [parameter("key", "query", text)],
                    "responses": {"200": {"content": {"application/json": {"schema": {"type": "array", "items": {"$ref": "#/components/schemas/Placed"}}}}}},
                }
            },
            "/form": {
                "post": {
                    "operationId": "sendForm",
                    "requestBody": {"content": {"application/x-www-form-urlencoded": {"schema": form}}},
                    "responses": answer("Arrived"),
                }
            },
            "/upload": {
                "post": {
                    "operationId": "upload",
                    "requestBody": {"content": {"multipart/form-data": {"schema": upload}}},
                    "responses": answer("Arrived"),
                }
            },
            "/text": {"get": {"operationId": "text", "responses": {"200": {"content": {"text/plain": {}}}}}},
            "/bytes": {"get": {"operationId": "bytes", "responses": {"200": {"content": {"image/png": {}}}}}},
            "/huge": {"get": {"operationId": "huge", "responses": {"200": {"content": {"text/plain": {}}}}}},
            "/nothing/{id}": {
                "delete": {"operationId": "remove", "parameters": [parameter("id", "path", text)], "responses": {"204": {}}}
            },
            "/page": {"get": {"operationId": "page", "responses": answer("Arrived")}},
            "/lost": {"get": {"operationId": "lost", "responses": answer("Arrived")}},
            "/sorry": {"get": {"operationId": "sorry", "responses": {"200": {"content": {"application/json": {}}}}}},
            "/wrong": {"get": {"operationId": "wrong", "responses": answer("Placed")}},
            "/status/{code}": {
                "get": {
                    "operationId": "status",
                    "parameters": [parameter("code", "path", {"type": "integer"})],
                    "responses": answer("Arrived"),
                }
            },
        },
        "components": {
            "securitySchemes": {
                "key": {"type": "apiKey", "in": "header", "name": "X-Api-Key"},
                "tokens": {
                    "type": "oauth2",
                    "flows": {"clientCredentials": {"tokenUrl": "http://replaced/token", "scopes": {"orders": "All."}}},
                },
            },
            "schemas": schemas["$defs"],
        },
    }  # fmt: skip


class Upstream:
    """The state of the server: orders by their key, and tokens that it gave."""

    def __init__(self) -> None:
        self.orders: dict[str, dict[str, Any]] = {}
        self.tokens: list[str] = []

    def admits(self, request: Request) -> bool:
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        keys = (request.headers.get("x-api-key"), request.query_params.get("key"), request.cookies.get("key"))
        return KEY in keys or token in (*self.tokens[-1:], LOGIN)

    async def token(self, _request: Request) -> Response:
        self.tokens.append(f"token-{len(self.tokens) + 1}")
        return JSONResponse({"access_token": self.tokens[-1], "expires_in": 3600})

    async def revoke(self, _request: Request) -> Response:
        self.tokens.append("revoked")
        return JSONResponse({})

    async def echo(self, request: Request) -> Response:
        if not self.admits(request):
            return PlainTextResponse("who are you?", 401)
        return JSONResponse(await arrived(request))

    async def place(self, request: Request) -> Response:
        order = await request.json()
        key = request.headers.get("idempotency-key") or order["customer"]
        known = self.orders.setdefault(key, {"number": f"O-{len(self.orders) + 1}", "order": order, "requests": 0})
        known["requests"] += 1
        return JSONResponse(known)

    async def by_key(self, request: Request) -> Response:
        key = request.query_params.get("key", "")
        return JSONResponse([self.orders[key]] if key in self.orders else [])

    async def by_number(self, request: Request) -> Response:
        wanted = request.path_params["number"]
        found = [order for order in self.orders.values() if order["number"] == wanted]
        return JSONResponse(found[0]) if found else PlainTextResponse("no such order", 404)

    async def status(self, request: Request) -> Response:
        return PlainTextResponse("<html>no</html>", request.path_params["code"], {"retry-after": "2"})


async def arrived(request: Request) -> dict[str, Any]:
    kind = request.headers.get("content-type", "")
    body: Any = None
    if kind.startswith(("multipart/", "application/x-www-form-urlencoded")):
        async with request.form() as form:
            body = [
                [name, value if isinstance(value, str) else [value.filename, value.content_type, (await value.read()).decode()]]
                for name, value in form.multi_items()
            ]  # fmt: skip
    return {
        "path": request.scope["raw_path"].decode(),
        "query": [[name, value] for name, value in request.query_params.multi_items()],
        "headers": {name: value for name, value in request.headers.items() if name not in {"host", "x-api-key"}},
        "cookies": request.cookies,
        "body": body,
    }


async def described(_request: Request) -> Response:
    return JSONResponse(document())


async def nothing(request: Request) -> Response:
    return Response(status_code=404 if request.path_params["id"] == "gone" else 204)


def create_app() -> Starlette:
    upstream = Upstream()
    return Starlette(
        routes=[
            Route("/openapi.json", described),
            Route("/lost", lambda _request: HTMLResponse("<html>Nobody is here.</html>", 404)),
            Route("/token", upstream.token, methods=["POST"]),
            Route("/revoke", upstream.revoke, methods=["POST"]),
            Route("/items/{id:path}/{labels}/{matrix}", upstream.echo),
            Route("/orders", upstream.place, methods=["POST"]),
            Route("/orders/unsafe", upstream.place, methods=["POST"]),
            Route("/orders/by-key", upstream.by_key),
            Route("/orders/{number}", upstream.by_number),
            Route("/form", upstream.echo, methods=["POST"]),
            Route("/upload", upstream.echo, methods=["POST"]),
            Route("/text", lambda _request: PlainTextResponse("näh")),
            Route("/bytes", lambda _request: Response(b"\x89PNG", media_type="image/png")),
            Route("/huge", lambda _request: PlainTextResponse("x" * 5_000_000)),
            Route("/nothing/{id}", nothing, methods=["DELETE"]),
            Route("/page", lambda _request: HTMLResponse("<html>Welcome!</html>")),
            Route("/sorry", lambda _request: JSONResponse({"ok": False, "message": "out of order"})),
            Route("/wrong", lambda _request: JSONResponse({"number": 7})),
            Route("/status/{code:int}", upstream.status, methods=["GET", "POST"]),
        ]
    )


if __name__ == "__main__":
    uvicorn.run(create_app(), port=int(sys.argv[1]), log_level="warning")

"""What the HTTP tool of the benchmark calls: a server in a process of its own, with one small answer for everybody.

It does as little as a server can, so that a call's time is that of the exchange.
"""

from __future__ import annotations

import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from triptych.examples.serving import arguments, serve

_TEXT = "What it is made of, how it is looked after, and whom it suits. " * 3


async def _item(request: Request) -> Response:
    item = {
        "id": request.path_params["id"],
        "name": "A lamp",
        "price": {"cents": 4_900, "currency": request.query_params["currency"]},
        "text": _TEXT,
    }
    return Response(orjson.dumps(item), media_type="application/json")


async def _health(_request: Request) -> Response:
    return Response()


if __name__ == "__main__":
    options = arguments("The upstream of the benchmark's HTTP tool.").parse_args()
    app = Starlette(routes=[Route("/items/{id}", _item), Route("/health", _health)])
    serve(app, options.host, options.port)

"""A server that holds each request to an OpenAPI document, with another implementation than ours.

openapi-core finds the operation, reads path, query, headers, cookies and body by the styles and media types of the
document, and validates each of them. What it complains about is kept; the answer is whatever it was told to give.
"""

from __future__ import annotations

import copy
import json
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from openapi_core import Config, OpenAPI
from openapi_core.exceptions import OpenAPIError
from openapi_core.testing import MockRequest
from werkzeug.datastructures import ImmutableMultiDict

JSON_TYPES = (
    "*/*",
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/scim+json",
    "application/vnd.repositories+json",
)
"""What the library does not know to be JSON."""
METHODS = ("get", "put", "post", "delete", "patch")


@dataclass
class Answer:
    """What is answered to the next request."""

    status: int = 200
    content_type: str = "application/json"
    body: bytes = b"{}"


@dataclass
class Validating:
    """The state of the server."""

    url: str = ""
    apis: dict[str, OpenAPI] = field(default_factory=dict)
    answer: Answer = field(default_factory=Answer)
    complaints: list[str] = field(default_factory=list)
    requests: int = 0

    def take(self, name: str, content: dict[str, Any]) -> str:
        """Hold requests to a document from now on; gives the base URL for them."""
        base_url = f"{self.url}/{name}"
        config = Config(
            spec_validator_cls=None,
            extra_media_type_deserializers=dict.fromkeys(JSON_TYPES, json.loads),
        )
        self.apis[name] = OpenAPI.from_dict(served_at(content, base_url), config=config)  # type: ignore[arg-type]
        return base_url

    def hear(self, handler: BaseHTTPRequestHandler) -> None:
        split = urlsplit(handler.path)
        body = handler.rfile.read(int(handler.headers.get("content-length") or 0))
        cookies = dict(pair.split("=", 1) for pair in handler.headers.get("cookie", "").split("; ") if pair)
        request = MockRequest(
            self.url,
            handler.command.lower(),
            unquote(split.path),
            args=ImmutableMultiDict(parse_qsl(split.query, keep_blank_values=True)),
            headers=dict(handler.headers.items()),
            cookies=cookies,
            data=body or None,
            content_type=handler.headers.get("content-type", "application/json"),
        )
        self.requests += 1
        try:
            self.apis[split.path.split("/")[1]].validate_request(request)
        except OpenAPIError as error:
            self.complaints.append(told(error))


def told(error: BaseException) -> str:
    """An error with its causes, which say what is wrong, and the places that a schema names."""
    parts = []
    cause: BaseException | None = error
    while cause is not None:
        inner = [f"{list(each.path)}: {each.message}" for each in getattr(cause, "schema_errors", ())]
        parts.append("; ".join([str(cause)[:200], *inner]))
        cause = cause.__cause__
    return " <- ".join(parts)


def served_at(content: dict[str, Any], url: str) -> dict[str, Any]:
    """The document of a server at this URL. Who may call is not what is looked at here."""
    served = copy.deepcopy(content)
    served["servers"] = [{"url": url}]
    served.pop("security", None)
    for item in served["paths"].values():
        item.pop("servers", None)
        for method in METHODS:
            for word in ("servers", "security"):
                item.get(method, {}).pop(word, None)
    return served


@contextmanager
def validating() -> Iterator[Validating]:
    """A running server."""
    state = Validating()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of the library, about documents that are not ours
                state.hear(self)
            self.send_response(state.answer.status)
            if state.answer.body:
                self.send_header("content-type", state.answer.content_type)
            self.send_header("content-length", str(len(state.answer.body)))
            self.end_headers()
            self.wfile.write(state.answer.body)

        def log_message(self, *_: Any) -> None:
            """Stay silent."""

    for method in METHODS:
        setattr(Handler, f"do_{method.upper()}", Handler.answer)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

"""Build the request of a call from arguments that fit the contract.

No argument can change where a request goes: characters with a meaning in the path, the host or the end of a header
are encoded or refused. Credentials are added elsewhere (auth.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import quote

import httpx

from triptych.schemas.base import Json
from triptych.schemas.result import ErrorCode
from triptych.tools.adapters.rest import address
from triptych.tools.adapters.rest.body_serialization import encode_body
from triptych.tools.adapters.rest.endpoint import Endpoint, KeyCarrier, KeyLocation, Parameter, ParameterLocation
from triptych.tools.adapters.rest.parameter_serialization import (
    AmbiguousValueError,
    cookie_pair,
    header_value,
    path_value,
    query_pairs,
    text_of,
    without_nulls,
)
from triptych.tools.sdk.failure import ToolFailure

_TEMPLATE = re.compile(r"\{([^{}]+)\}")
_UNSAFE_IN_HEADER = re.compile(r"[^\t -~]|^[\t ]|[\t ]\Z")


@dataclass(slots=True)
class _Draft:
    """The parts of a request while they are put together."""

    headers: dict[str, str]
    body: Json
    in_path: dict[str, str] = field(default_factory=dict)
    query: list[str] = field(default_factory=list)
    cookies: list[str] = field(default_factory=list)

    def put(self, parameter: Parameter, value: Json) -> None:
        if parameter.place is not ParameterLocation.PATH:
            value = value if parameter.as_json else without_nulls(value)
            if value is None or (value in ([], {}) and not parameter.as_json):
                return  # null means that nothing is sent, and an empty list or object has nothing to send
        match parameter.place:
            case ParameterLocation.PATH:
                _check_in_path(parameter, value)
                self.in_path[parameter.name] = path_value(parameter, value)
            case ParameterLocation.QUERY:
                self.query.extend(query_pairs(parameter, value))
            case ParameterLocation.HEADER:
                self.headers[parameter.name] = _safe_in_header(parameter, header_value(parameter, value))
            case ParameterLocation.COOKIE:
                self.cookies.append(cookie_pair(parameter, value))

    def carry(self, key: str, carrier: KeyCarrier) -> None:
        match carrier.place:
            case KeyLocation.HEADER:
                self.headers[carrier.name] = key
            case KeyLocation.QUERY:
                self.query.append(f"{quote(carrier.name, safe='')}={quote(key, safe='')}")
            case KeyLocation.FIELD:
                self.body = {**(self.body or {}), carrier.name: key}
            case KeyLocation.NATURAL:
                pass


def build_request(
    client: httpx.AsyncClient, endpoint: Endpoint, base_url: str, arguments: dict[str, Json], key: str
) -> httpx.Request:
    """Return the request of one call.

    Raises:
        ToolFailure: `invalid_arguments`, where a value cannot stand where it belongs.
    """
    draft = _Draft({"accept": endpoint.accept}, _body_value(endpoint, arguments))
    for parameter, value in _values(endpoint, arguments):
        try:
            draft.put(parameter, value)
        except AmbiguousValueError as error:
            raise error.failure(parameter.argument) from None
    if endpoint.key is not None:
        draft.carry(key, endpoint.key)
    if draft.cookies:
        draft.headers["cookie"] = "; ".join(draft.cookies)
    url = base_url + _filled(endpoint, draft.in_path)
    if draft.query:
        url += ("&" if "?" in url else "?") + "&".join(draft.query)
    encoded = encode_body(endpoint.body, draft.body)
    if "content" in encoded and endpoint.body is not None:
        draft.headers.setdefault("content-type", endpoint.body.media_type)
    return client.build_request(endpoint.method, url, headers=draft.headers, **encoded)


def _values(endpoint: Endpoint, arguments: dict[str, Json]) -> list[tuple[Parameter, Json]]:
    known = arguments if endpoint.templates is not None else {**endpoint.defaults, **arguments}
    given = [(parameter, known[parameter.argument]) for parameter in endpoint.parameters if parameter.argument in known]
    return [*endpoint.fixed, *given]


def _filled(endpoint: Endpoint, in_path: dict[str, str]) -> str:
    """Return the address, with the values in their places."""
    missing = [name for name in _TEMPLATE.findall(endpoint.url) if name not in in_path]
    if missing:
        raise _not_in_path(missing[0], "it is missing")
    filled = _TEMPLATE.sub(lambda found: in_path[found[1]], endpoint.url)
    if filled != endpoint.url and (problem := address.problem_of_path(filled.partition("?")[0])):
        raise _not_in_path(", ".join(in_path), problem)
    return filled


def _check_in_path(parameter: Parameter, value: Json) -> None:
    # An empty list would leave nothing, and the address would be that of the whole collection.
    for text in list(_texts(value)) or [""]:
        if problem := address.problem_of_value(text):
            raise _not_in_path(parameter.argument, problem)


def _texts(value: Json) -> Iterator[str]:
    """Yield every text that a value puts into the path."""
    match value:
        case dict():
            for name, item in value.items():
                yield from (name, *_texts(item))
        case list():
            for item in value:
                yield from _texts(item)
        case _:
            yield text_of(value)


def _not_in_path(argument: str, problem: str) -> ToolFailure:
    message = f"arguments.{argument}: this cannot be in a path: {problem}; give the thing's id"
    return ToolFailure(ErrorCode.INVALID_ARGUMENTS, message, undone=True)


def _safe_in_header(parameter: Parameter, text: str) -> str:
    if _UNSAFE_IN_HEADER.search(text):
        raise ToolFailure(
            ErrorCode.INVALID_ARGUMENTS,
            f"arguments.{parameter.argument}: a header takes only ASCII, no line breaks, no space at the ends",
            undone=True,
        )
    return text


def _body_value(endpoint: Endpoint, arguments: dict[str, Json]) -> Json:
    return None if endpoint.body is None else arguments.get(endpoint.body.argument)

"""Whatever a document, an argument or an upstream holds: nothing crashes, nothing leaves its place, nothing changes."""

from __future__ import annotations

import copy
import json
from typing import Any
from urllib.parse import unquote

import httpx
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import SecretStr
from test_openapi_mistakes import OK, body, document

from triptych.kernel.errors import ConfigurationError
from triptych.kernel.process.log import MASK
from triptych.schemas import Contract, Effect, ErrorCode, Result
from triptych.tools import ToolFailure
from triptych.tools.adapters.openapi.document import OpenApiDocument
from triptych.tools.adapters.openapi.import_report import import_document
from triptych.tools.adapters.openapi.options import OpenApiOptions
from triptych.tools.adapters.openapi.security import proposed_auth
from triptych.tools.adapters.rest.endpoint import Endpoint, Parameter, ParameterLocation, Style
from triptych.tools.adapters.rest.request import build_request
from triptych.tools.http.errors import check_status, json_content
from triptych.tools.sdk.redaction import Redactor

WHOLE = json.loads(
    document(
        {
            "/x/{id}": {
                "parameters": [{"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}],
                "post": {
                    "operationId": "bad",
                    "parameters": [{"name": "q", "in": "query", "style": "form", "schema": {"$ref": "#/components/schemas/A"}}],
                    "requestBody": body({"allOf": [{"$ref": "#/components/schemas/A"}], "required": ["a"]}),
                    "responses": OK,
                    "security": [{"s": []}],
                    "servers": [{"url": "https://{h}.test", "variables": {"h": {"default": "api"}}}],
                },
            }
        },
        components={
            "schemas": {"A": {"type": "object", "properties": {"a": {"$ref": "#/components/schemas/A"}, "b": {"pattern": "^a$"}}}},
            "securitySchemes": {"s": {"type": "oauth2", "flows": {"clientCredentials": {"tokenUrl": "https://id.test/t", "scopes": {}}}}},
        },
    )
)  # fmt: skip


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(place for key, item in inner for place in places(item, (*at, key)))]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20) | st.sampled_from(["$ref", "#/", "#/components", "https://x", "http", "a\r\nb", "{", "//"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8) | st.just("$ref"), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(place=st.sampled_from(places(WHOLE)[1:]), value=JSON)
def test_whatever_stands_anywhere_in_a_document_only_a_configuration_error_is_raised(place, value):
    changed = copy.deepcopy(WHOLE)
    around = changed
    for part in place[:-1]:
        around = around[part]
    around[place[-1]] = value
    try:
        parsed = OpenApiDocument.parse(json.dumps(changed).encode(), "api")
        proposed_auth(parsed, "crm")
        made = import_document(parsed, "crm", OpenApiOptions(spec="api"))
        assert OpenApiDocument.parse(parsed.to_bytes(), "api").content == parsed.content
    except ConfigurationError:
        return
    if place[0] == "paths" and len(place) > 2 and place[1] != "/good":
        assert "good" in {each.endpoint.name for each in made.imported}
    for each in made.imported:
        assert not each.endpoint.url.startswith("https://{")


CONTRACT = Contract(operation="crm.x", description="X.", arguments={"type": "object"}, result={}, effect=Effect.READ)
HOSTILE = st.text(alphabet="./\\%25eEfFcC\uff0e\uff0f;:?#@&= \r\n\0a", max_size=30) | st.text(max_size=30)


@settings(max_examples=200, deadline=None)
@given(value=HOSTILE, query=HOSTILE)
def test_a_value_is_refused_or_stays_in_its_place_unchanged(value, query):
    parameters = (
        Parameter("v", "v", ParameterLocation.PATH, Style.SIMPLE, explode=False),
        Parameter("q", "q", ParameterLocation.QUERY, Style.FORM, explode=True, allow_reserved=True),
    )
    endpoint = Endpoint(CONTRACT, "GET", "/a/{v}/b", parameters)
    try:
        request = build_request(httpx.AsyncClient(), endpoint, "https://crm.test/v1", {"v": value, "q": query}, "key")
    except ToolFailure as failure:
        refused = failure
    else:
        refused = None
    if refused is not None:
        assert (refused.code, refused.undone) == (ErrorCode.INVALID_ARGUMENTS, True)
        return
    path, _, rest = request.url.raw_path.partition(b"?")
    root, version, a, sent, b = path.decode().split("/")
    assert (root, version, a, b, unquote(sent)) == ("", "v1", "a", "b", value)
    assert [(name, told) for name, told in httpx.QueryParams(rest.decode()).multi_items()] == [("q", query)]
    assert (request.url.host, request.url.fragment) == ("crm.test", "")


@settings(max_examples=200, deadline=None)
@given(
    status=st.integers(100, 999),
    kind=st.sampled_from(["application/json", "application/problem+json", "text/html", "text/plain; charset=hex", "", "x\0"]),
    raw=st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode()),
    more=st.dictionaries(st.sampled_from(["location", "retry-after"]), st.text(alphabet="0123456789.-einfa/:%@?# []", max_size=20)),
)  # fmt: skip
def test_whatever_an_upstream_answers_is_data_or_a_failure(status, kind, raw, more):
    headers = {"content-type": kind, **more}
    response = httpx.Response(status, headers=headers, content=raw, request=httpx.Request("POST", "https://a.test/x"))
    failure = None
    try:
        json_content(check_status(response))
    except ToolFailure as error:
        failure = error
    if failure is None:
        assert 200 <= status < 300
        return
    refusals = {400, 401, 403, 404, 405, 409, 410, 413, 415, 422, 429}
    assert failure.undone is (status in refusals and failure.code is not ErrorCode.CONTRACT_VIOLATION)
    assert failure.retry_after_ms is None or 0 <= failure.retry_after_ms <= 86_400_000
    failure.result().to_bytes()


@settings(max_examples=200, deadline=None)
@given(secret=st.text(min_size=6, max_size=30), before=st.text(max_size=10), after=st.text(max_size=10))
def test_no_text_holds_a_secret_after_masking(secret, before, after):
    told = Redactor([SecretStr(secret)]).clean(Result.ok(before + secret + after)).data
    assert secret not in told or secret in MASK

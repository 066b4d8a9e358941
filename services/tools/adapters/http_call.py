"""The adapter for single calls over HTTP that options declare: `adapter = "triptych.tools.adapters.http_call:tool"`.

For an upstream without an OpenAPI document. What a template puts into a request is data: it is encoded where it
stands, and can never change where the request goes.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError

from triptych.kernel.errors import ConfigurationError
from triptych.playbook import expressions
from triptych.playbook.expressions import ExpressionError
from triptych.schemas.base import Json
from triptych.schemas.contract import TIMEOUT_MAX_MS, Contract, Effect
from triptych.tools.adapters.rest import (
    BodyForm,
    CallbackOption,
    Endpoint,
    HttpOperations,
    KeyOption,
    LookupOption,
    Parameter,
    ParameterLocation,
    RequestBody,
    Style,
    Success,
    UpstreamOptions,
    completion_from,
    lookup_from,
)
from triptych.tools.adapters.rest.address import problem_of_template
from triptych.tools.adapters.rest.auth import ROUTING_HEADERS, TOKEN
from triptych.tools.sdk.source import Options, Source
from triptych.tools.sdk.tool import Tool

_IN_PATH = re.compile(r"\{([^{}]+)\}")
_MEDIA_TYPES = {
    BodyForm.JSON: "application/json",
    BodyForm.FORM: "application/x-www-form-urlencoded",
    BodyForm.MULTIPART: "multipart/form-data",
    BodyForm.TEXT: "text/plain; charset=utf-8",
}


def _is_path(path: str) -> str:
    if problem := problem_of_template(path):
        raise ValueError(problem)
    return path


def _is_header(name: str) -> str:
    if not TOKEN.fullmatch(name) or name.lower() in ROUTING_HEADERS:
        raise ValueError(f"{name[:100]!r} cannot be the name of a header of a call")
    return name


class DeclaredCall(Options):
    """One operation. Templates (`${{ arguments.city }}`) are allowed in `query`, `headers` and `body`."""

    description: Annotated[str, Field(min_length=1)]
    method: Literal["GET", "POST", "PUT", "PATCH", "DELETE"] = "GET"
    path: Annotated[str, AfterValidator(_is_path)]
    """After the base URL; `{city}` stands for the argument `city`."""
    query: dict[str, Json] = Field(default_factory=dict)
    headers: dict[Annotated[str, AfterValidator(_is_header)], Json] = Field(default_factory=dict)
    body: Json = None
    form: BodyForm = BodyForm.JSON
    """How the body is written."""
    arguments: dict[str, Json] = Field(default_factory=dict)
    """The JSON Schema of each argument, by its name; one that has a `default` need not be given."""
    optional: tuple[str, ...] = ()
    """Arguments that need not be given and have no default; templates see null."""
    result: dict[str, Json] = Field(default_factory=dict)
    """The JSON Schema of the answer. Without one any answer is data."""
    effect: Effect
    key: KeyOption | None = None
    lookup: LookupOption | None = None
    callback: CallbackOption | None = None
    """Templates see `callback_url` as well then."""
    success: Success | None = None
    empty_at: str | None = None
    version: str = "1"
    timeout_ms: Annotated[int, Field(gt=0, le=TIMEOUT_MAX_MS)] = 10_000


class HttpOptions(UpstreamOptions):
    """The whole table."""

    operations: Annotated[dict[str, DeclaredCall], Field(min_length=1)]


def tool(source: Source) -> Tool:
    """Return the tool of these calls.

    Raises:
        ConfigurationError: an option is not as it must be.
    """
    options = source.read(HttpOptions)
    if options.base_url is None and options.base_url_env is None:
        raise ConfigurationError(f"tools.{source.name}.options: give base_url, or base_url_env")
    endpoints = {name: _endpoint(source.name, name, call) for name, call in options.operations.items()}
    engine = HttpOperations(source, options)
    tool = Tool(source.name, lifespan=engine.lifespan, concurrency=options.concurrency)
    for name, call in options.operations.items():
        key = f"tools.{source.name}.options.operations.{name}"
        lookup = None if call.lookup is None else lookup_from(call.lookup, endpoints, f"{key}.lookup")
        operation = endpoints[name].contract.operation
        completion = None if call.callback is None else completion_from(call.callback, operation, f"{key}.callback")
        tool.add(engine.operation(endpoints[name], lookup, completion))
    return tool


def _endpoint(tool: str, name: str, call: DeclaredCall) -> Endpoint:
    where = f"tools.{tool}.options.operations.{name}"
    values, parameters = _values(call, where)
    required = [
        each for each, schema in call.arguments.items() if each not in call.optional and not _has_default(schema)
    ]
    try:
        contract = Contract(
            operation=f"{tool}.{name}",
            version=call.version,
            description=call.description,
            arguments={
                "type": "object",
                "properties": call.arguments,
                "required": required,
                "additionalProperties": False,
            },
            result=call.result,
            effect=call.effect,
            timeout_ms=call.timeout_ms,
        )
    except ValidationError as error:
        raise ConfigurationError(f"{where}: {error.errors(include_url=False)[0]['msg']}") from None
    return Endpoint(
        contract=contract,
        method=call.method,
        url=call.path,
        parameters=parameters,
        body=None if call.body is None else RequestBody("body", call.form, _MEDIA_TYPES[call.form]),
        key=None if call.key is None else call.key.carrier,
        accept="application/json, */*;q=0.5",
        success=call.success,
        empty_at=call.empty_at,
        templates=values,
        defaults={each: _default(schema) for each, schema in call.arguments.items()},
    )


def _values(call: DeclaredCall, where: str) -> tuple[dict[str, Json], tuple[Parameter, ...]]:
    """Return what is rendered for each call, and where each of it goes.

    Raises:
        ConfigurationError: a template does not compile, or speaks of an argument that there is not.
    """
    variables = frozenset({"arguments"} if call.callback is None else {"arguments", "callback_url"})
    values: dict[str, Json] = {}
    parameters = []
    for each in dict.fromkeys(_IN_PATH.findall(call.path)):
        if each not in call.arguments:
            raise ConfigurationError(f"{where}.path: {{{each}}} is not an argument; declare it under `arguments`")
        values[f"path {each}"] = f'${{{{ arguments["{each}"] }}}}'
        parameters.append(Parameter(f"path {each}", each, ParameterLocation.PATH, Style.SIMPLE, explode=False))
    for place, style, stated in (
        (ParameterLocation.QUERY, Style.FORM, call.query),
        (ParameterLocation.HEADER, Style.SIMPLE, call.headers),
    ):
        for each, value in stated.items():
            values[f"{place} {each}"] = value
            parameters.append(
                Parameter(f"{place} {each}", each, place, style, explode=place is ParameterLocation.QUERY)
            )
    if call.body is not None:
        values["body"] = call.body
    try:
        for expression in expressions.expressions(values):
            expressions.check(expression, variables)
    except ExpressionError as error:
        raise ConfigurationError(f"{where}: {error}") from None
    return values, tuple(parameters)


def _has_default(schema: Any) -> bool:
    return isinstance(schema, dict) and "default" in schema


def _default(schema: Any) -> Json:
    return schema.get("default") if isinstance(schema, dict) else None

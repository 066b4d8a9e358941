"""One operation of a tool: its contract, read from a function's type hints, and how to invoke it.

What goes in and out is checked against the contract's JSON Schemas, as any caller could check it.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import jsonschema_rs
from pydantic import BaseModel, ConfigDict, PydanticUserError, TypeAdapter, ValidationError, create_model

from triptych.schemas.base import Json
from triptych.schemas.contract import Contract, Cost, Effect
from triptych.schemas.result import ErrorCode, Result
from triptych.tools.call import Call
from triptych.tools.failure import ToolDefinitionError, ToolFailure

PROBLEMS_MAX = 5
_PROBLEM_MAX_CHARS = 300

Function = Callable[..., Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Terms:
    """What `@tool.operation(...)` was given."""

    effect: Effect
    version: str
    timeout_ms: int
    cost: Cost
    arguments: dict[str, Json] | None
    result: dict[str, Json] | None


class Operation:
    """A function under a contract."""

    def __init__(self, tool: str, function: Function, terms: Terms) -> None:
        self.function = function
        self.reconcile: Function | None = None
        self._tool, self._place = tool, f"operation {function.__name__}"
        description = inspect.getdoc(function)
        if not description:
            raise ToolDefinitionError(tool, self._place, "write a docstring; the planner reads it as the description")
        hints = get_type_hints(function, include_extras=True)
        returned = hints.pop("return", Any)
        self._call_parameter = _call_parameter(hints)
        try:
            self._may_be_empty, self._result = _result_adapter(returned)
            self._model = None if terms.arguments is not None else self._arguments_model(function, hints)
            arguments = terms.arguments if self._model is None else self._model.model_json_schema()
            result = terms.result if terms.result is not None else self._result.json_schema(mode="serialization")
        except PydanticUserError as error:
            raise ToolDefinitionError(tool, self._place, f"its types have no JSON Schema: {error.message}") from error
        self.contract = Contract(
            operation=f"{tool}.{function.__name__}",
            version=terms.version,
            description=description,
            arguments=arguments or {},
            result=result,
            effect=terms.effect,
            timeout_ms=terms.timeout_ms,
            cost=terms.cost,
        )
        self.contract_hash = self.contract.hash
        self._arguments_validator = self._validator(self.contract.arguments)
        self._result_validator = self._validator(self.contract.result)

    def check_arguments(self, arguments: dict[str, Json]) -> None:
        """Raise ToolFailure (`invalid_arguments`) that names every path and what is allowed there."""
        problems = _problems(self._arguments_validator.iter_errors(arguments), "arguments")
        if problems:
            raise ToolFailure(ErrorCode.INVALID_ARGUMENTS, f"{self.contract.operation}: {problems}")

    async def invoke(self, arguments: dict[str, Json], call: Call[Any]) -> Result:
        """Call the function once and hold what it returns to the contract."""
        return self._held_to_contract(await self.function(**self._keywords(arguments, call)))

    async def ask_what_happened(self, call: Call[Any]) -> Result | None:
        """The result of an earlier attempt whose answer was lost; None when it certainly did not happen.

        Raises:
            ToolFailure: `in_doubt`, when the tool cannot tell.
        """
        if self.reconcile is None:
            raise ToolFailure(
                ErrorCode.IN_DOUBT,
                f"an earlier attempt of {self.contract.operation} began and its answer was lost; the tool has no way "
                f"to ask what happened to key {call.idempotency_key}, so a person must look and decide",
            )
        found = await self.reconcile(call)
        return None if found is None else self._held_to_contract(found)

    def _keywords(self, arguments: dict[str, Json], call: Call[Any]) -> dict[str, Any]:
        if self._model is None:
            keywords: dict[str, Any] = dict(arguments)
        else:
            try:
                parsed = self._model.model_validate(arguments)
            except ValidationError as error:
                first = error.errors(include_url=False, include_input=False, include_context=False)[0]
                where = ".".join(str(part) for part in ("arguments", *first["loc"]))
                raise ToolFailure(
                    ErrorCode.INVALID_ARGUMENTS, f"{self.contract.operation}: {where}: {first['msg']}"
                ) from error
            keywords = {name: getattr(parsed, name) for name in self._model.model_fields}
        if self._call_parameter is not None:
            keywords[self._call_parameter] = call
        return keywords

    def _held_to_contract(self, returned: Any) -> Result:
        if returned is None and self._may_be_empty:
            return Result.empty()
        data = self._result.dump_python(returned, mode="json", warnings=False)
        problems = _problems(self._result_validator.iter_errors(data), "result")
        if problems:
            raise ToolFailure(
                ErrorCode.CONTRACT_VIOLATION,
                f"{self.contract.operation} answered something that its contract (version {self.contract.version}) "
                f"does not allow: {problems}",
            )
        return Result.ok(data)

    def _arguments_model(self, function: Function, hints: dict[str, Any]) -> type[BaseModel]:
        fields: dict[str, Any] = {}
        for name, parameter in inspect.signature(function).parameters.items():
            if name == self._call_parameter:
                continue
            if parameter.kind in {parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD} or name not in hints:
                raise ToolDefinitionError(
                    self._tool, self._place, f"parameter {name} needs a type hint (and cannot be * or **)"
                )
            fields[name] = (hints[name], ... if parameter.default is parameter.empty else parameter.default)
        return create_model(f"{function.__name__}_arguments", __config__=ConfigDict(extra="forbid"), **fields)

    def _validator(self, schema: dict[str, Json]) -> jsonschema_rs.Draft202012Validator:
        try:
            return jsonschema_rs.Draft202012Validator(schema)
        except (ValueError, jsonschema_rs.ValidationError) as error:
            raise ToolDefinitionError(self._tool, self._place, f"not a JSON Schema (2020-12): {error}") from error


def _call_parameter(hints: dict[str, Any]) -> str | None:
    return next((name for name, hint in hints.items() if hint is Call or get_origin(hint) is Call), None)


def _result_adapter(hint: Any) -> tuple[bool, TypeAdapter[Any]]:
    """`X | None` means that None is the answer `empty`; the contract then speaks of X alone."""
    if get_origin(hint) in {Union, UnionType} and NoneType in get_args(hint):
        parts: Any = Union[tuple(part for part in get_args(hint) if part is not NoneType)]  # noqa: UP007
        return True, TypeAdapter(parts)
    return False, TypeAdapter(hint)


def _problems(errors: Iterable[jsonschema_rs.ValidationError], root: str) -> str:
    told = []
    for number, error in enumerate(errors):
        if number == PROBLEMS_MAX:
            told.append("and more")
            break
        where = root + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.instance_path)
        told.append(f"{where}: {error.message[:_PROBLEM_MAX_CHARS]}")
    return "; ".join(told)

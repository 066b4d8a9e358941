"""An operation from a Python function: its contract is read from the type hints and the docstring."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ConfigDict, PydanticUserError, TypeAdapter, ValidationError, create_model

from triptych.schemas.base import Json
from triptych.schemas.contract import BusinessKey, Compensation, Contract, Cost, Effect
from triptych.schemas.result import ErrorCode
from triptych.tools.sdk.call import Call
from triptych.tools.sdk.failure import ToolDefinitionError, ToolFailure
from triptych.tools.sdk.operation import Operation, ReadCallback, Reconcile

Function = Callable[..., Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class OperationSpec:
    """What `@tool.operation(...)` was given."""

    effect: Effect
    version: str
    timeout_ms: int
    cost: Cost
    arguments: dict[str, Json] | None
    result: dict[str, Json] | None
    compensate: Compensation | None = None
    business_key: BusinessKey | None = None


class TypedFunction:
    """A function under a contract."""

    def __init__(self, tool: str, function: Function, spec: OperationSpec) -> None:
        """Raises ToolDefinitionError when the function cannot be offered as it is."""
        self._function, self._tool, self._place = function, tool, f"operation {function.__name__}"
        description = inspect.getdoc(function)
        if not description:
            raise ToolDefinitionError(tool, self._place, "write a docstring; the planner reads it as the description")
        hints = get_type_hints(function, include_extras=True)
        returned = hints.pop("return", Any)
        self._call_parameter = _call_parameter(hints)
        try:
            may_be_empty, self._result = _result_adapter(returned)
            self._model = None if spec.arguments is not None else self._arguments_model(function, hints)
            arguments = spec.arguments if self._model is None else self._model.model_json_schema()
            result = spec.result if spec.result is not None else self._result.json_schema(mode="serialization")
        except PydanticUserError as error:
            raise ToolDefinitionError(tool, self._place, f"its types have no JSON Schema: {error.message}") from error
        contract = Contract(
            operation=f"{tool}.{function.__name__}",
            version=spec.version,
            description=description,
            arguments=arguments or {},
            result=result,
            effect=spec.effect,
            timeout_ms=spec.timeout_ms,
            cost=spec.cost,
            compensate=spec.compensate,
            business_key=spec.business_key,
        )
        self._name = contract.operation
        self.operation = Operation(contract, self._perform, may_be_empty=may_be_empty)

    def completed_by(self, read: Function) -> ReadCallback:
        """Return a function that reads a callback, its result turned to JSON as the operation's own is."""

        async def read_callback(body: Json) -> Json:
            found = await read(body)
            return None if found is None else self._as_json(found)

        return read_callback

    def reconciled_by(self, reconcile: Function) -> Reconcile:
        """Return a function that asks what happened, its result turned to JSON as the operation's own is."""

        async def ask(call: Call[Any]) -> Json:
            found = await reconcile(call)
            return None if found is None else self._as_json(found)

        return ask

    async def _perform(self, arguments: dict[str, Json], call: Call[Any]) -> Json:
        returned = await self._function(**self._keywords(arguments, call))
        return None if returned is None else self._as_json(returned)

    def _as_json(self, returned: Any) -> Json:
        return self._result.dump_python(returned, mode="json", warnings=False)

    def _keywords(self, arguments: dict[str, Json], call: Call[Any]) -> dict[str, Any]:
        if self._model is None:
            keywords: dict[str, Any] = dict(arguments)
        else:
            try:
                parsed = self._model.model_validate(arguments)
            except ValidationError as error:
                first = error.errors(include_url=False, include_input=False, include_context=False)[0]
                where = ".".join(str(part) for part in ("arguments", *first["loc"]))
                raise ToolFailure(ErrorCode.INVALID_ARGUMENTS, f"{self._name}: {where}: {first['msg']}") from error
            keywords = dict(vars(parsed))
        if self._call_parameter is not None:
            keywords[self._call_parameter] = call
        return keywords

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


def _call_parameter(hints: dict[str, Any]) -> str | None:
    return next((name for name, hint in hints.items() if hint is Call or get_origin(hint) is Call), None)


def _result_adapter(hint: Any) -> tuple[bool, TypeAdapter[Any]]:
    """`X | None` means that None is the answer `empty`; the contract then speaks of X alone."""
    if get_origin(hint) in {Union, UnionType} and NoneType in get_args(hint):
        parts: Any = Union[tuple(part for part in get_args(hint) if part is not NoneType)]  # noqa: UP007
        return True, TypeAdapter(parts)
    return False, TypeAdapter(hint)

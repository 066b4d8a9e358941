"""One operation of a tool: a contract, and what performs it.

What goes in and out is checked against the contract's JSON Schemas, as any caller could check it. Where
the contract comes from is not its business: a function's type hints, an OpenAPI document, another server.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from triptych.json_schema import MAX_PROBLEMS, InvalidSchemaError, JsonSchema, describe_errors, path_of
from triptych.schemas import codec
from triptych.schemas.base import Json
from triptych.schemas.contract import Contract, Reading
from triptych.schemas.result import WARNINGS_MAX, ErrorCode, Misreading, Result
from triptych.tools.sdk.call import Call, NotYet
from triptych.tools.sdk.failure import ToolDefinitionError, ToolFailure

Perform = Callable[[dict[str, Json], Call[Any]], Awaitable[Json]]
"""Does the work once: arguments that fit the contract, and the call they came with. None where nothing was found."""
Reconcile = Callable[[Call[Any]], Awaitable[Json]]
"""Asks for the result of an earlier attempt: None when it certainly did not happen."""


ReadCallback = Callable[[Json], Awaitable[Json]]
"""The result that a callback stands for. Raises ToolFailure when the work failed, and NotYet when it goes on."""

ACCEPT_WITHIN_MS = 10_000


@dataclass(frozen=True, slots=True)
class Completion:
    """How an operation is completed that its upstream only accepts at first."""

    read: ReadCallback
    accept_within_ms: int = ACCEPT_WITHIN_MS
    """The time limit of the call itself. That of the contract is for the whole."""


class Operation:
    """Something that a tool can do, under a contract."""

    def __init__(
        self,
        contract: Contract,
        perform: Perform,
        *,
        reconcile: Reconcile | None = None,
        completion: Completion | None = None,
        may_be_empty: bool = False,
        facts: Mapping[str, str] | None = None,
    ) -> None:
        """`may_be_empty`: None is the result `empty`, and not data.

        `facts` are accepted together with the contract, by name: where a call goes, and how it is made.

        Raises:
            ToolDefinitionError: a schema of the contract is not a JSON Schema.
        """
        self.contract, self.contract_hash = contract, contract.hash
        self.facts: Mapping[str, str] = facts or {}
        self.accepted_hashes: frozenset[str] = frozenset({self.contract_hash})
        """Hashes of the contracts under which a call may have been planned."""
        self.reconcile, self.completion = reconcile, completion
        self._perform, self._may_be_empty = perform, may_be_empty
        self._arguments_schema = _schema(contract, "arguments", contract.arguments)
        self._result_schema = _schema(contract, "result", contract.result)

    def accept_calls_of(self, before: Operation) -> None:
        """Take calls that were planned under the contract before as well: this one breaks none of them."""
        self.accepted_hashes |= before.accepted_hashes

    def wrapped(self, around: Callable[[Perform], Perform]) -> Operation:
        """Return the same operation, with something around what performs it."""
        wrapped = Operation(
            self.contract,
            around(self._perform),
            reconcile=self.reconcile,
            completion=self.completion,
            may_be_empty=self._may_be_empty,
            facts=self.facts,
        )
        wrapped.accept_calls_of(self)
        return wrapped

    def is_invalid_result(self, data: Json) -> bool:
        """Return whether this could not be the data of a result."""
        return not self._result_schema.is_valid(data) and not (data is None and self._may_be_empty)

    def check_arguments(self, arguments: dict[str, Json]) -> None:
        """Raise ToolFailure (`invalid_arguments`) that names every path and what is allowed there."""
        if errors := self._arguments_schema.schema_errors(arguments, MAX_PROBLEMS + 1):
            problems = describe_errors(errors, "arguments")
            if "were unexpected" in problems or "was unexpected" in problems:
                known = self.contract.arguments.get("properties", {})
                problems += f"; the arguments are {', '.join(known) or 'none'}"
            raise ToolFailure(ErrorCode.INVALID_ARGUMENTS, f"{self.contract.operation}: {problems}")

    async def invoke(self, arguments: dict[str, Json], call: Call[Any]) -> Result:
        """Do it once, and hold what comes back to the contract."""
        return self._held_to_contract(await self._perform(arguments, call))

    def attempt_timeout_ms(self, timeout_ms: int) -> int:
        """Return how long an attempt may take, of a call that may take `timeout_ms`."""
        return timeout_ms if self.completion is None else min(timeout_ms, self.completion.accept_within_ms)

    async def read_callback(self, body: Json) -> Result | None:
        """Return what a callback says, held to the contract; None when the work goes on.

        Raises:
            ToolFailure: the work failed, or what it gave does not fit the contract.
        """
        assert self.completion is not None  # noqa: S101 - only operations with a completion have a callback address
        try:
            return self._held_to_contract(await self.completion.read(body))
        except NotYet:
            return None

    async def ask_what_happened(self, call: Call[Any]) -> Result | None:
        """Return the result of an earlier attempt whose answer was lost; None when it certainly did not happen.

        Raises:
            ToolFailure: `in_doubt`, when the tool cannot tell.
        """
        if self.reconcile is None:
            raise ToolFailure(
                ErrorCode.IN_DOUBT,
                f"the tool has no way to ask what {self.contract.operation} did under key {call.idempotency_key}, "
                "so a person must look and decide",
            )
        found = await self.reconcile(call)
        return None if found is None else self._held_to_contract(found)

    def _held_to_contract(self, data: Json) -> Result:
        if data is None and self._may_be_empty:
            return Result.empty()
        try:
            codec.check(data)
        except codec.InvalidJson as error:
            raise ToolFailure(
                ErrorCode.CONTRACT_VIOLATION,
                f"{self.contract.operation} answered something that is not JSON: {error}",
                done=True,
            ) from None
        if self.contract.reading is Reading.LENIENT:
            return Result.ok(data, tuple(_misreadings(self._result_schema, data)))
        if errors := self._result_schema.schema_errors(data, MAX_PROBLEMS + 1):
            raise ToolFailure(
                ErrorCode.CONTRACT_VIOLATION,
                f"{self.contract.operation} answered something that its contract (version {self.contract.version}) "
                f"does not allow: {describe_errors(errors, 'result')}",
            )
        return Result.ok(data)


def _misreadings(schema: JsonSchema, data: Json) -> Iterator[Misreading]:
    """Yield what of an answer is not as its schema has it."""
    for error in schema.schema_errors(data, WARNINGS_MAX):
        yield Misreading(place=path_of(error.place), message=error.message)


def _schema(contract: Contract, what: str, schema: dict[str, Json]) -> JsonSchema:
    try:
        return JsonSchema.of(schema)
    except InvalidSchemaError as error:
        place = f"operation {contract.operation.partition('.')[2]}, {what}"
        raise ToolDefinitionError(contract.tool, place, f"not a JSON Schema (2020-12): {error}") from error

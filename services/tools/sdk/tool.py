"""A tool: a name, its operations, and what lives as long as its process.

tool = Tool("weather")

@tool.operation(effect=Effect.READ, timeout_ms=5_000)
async def forecast(city: str, days: int = 1) -> Forecast | None:
\"\"\"The weather of the next days. Empty for an unknown city.\"\"\"
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypeVar

from pydantic import SecretStr
from pydantic_settings import BaseSettings

from triptych.schemas.base import Json
from triptych.schemas.contract import BusinessKey, Compensation, Contract, Cost, Effect, ToolContracts
from triptych.tools.sdk.call import Resources
from triptych.tools.sdk.contract_origin import ContractOrigin
from triptych.tools.sdk.failure import ToolDefinitionError
from triptych.tools.sdk.function import Function, OperationSpec, TypedFunction
from triptych.tools.sdk.guard import BreakerPolicy, Guard
from triptych.tools.sdk.operation import ACCEPT_WITHIN_MS, Completion, Operation

FunctionT = TypeVar("FunctionT", bound=Function)
Lifespan = Callable[[Resources], AbstractAsyncContextManager[Any]]


@asynccontextmanager
async def _no_state(_resources: Resources) -> AsyncIterator[None]:
    yield None


class Tool:
    """One adapter service: its own process, topic (`calls.<name>`), consumer group and database role."""

    def __init__(
        self,
        name: str,
        *,
        settings: type[BaseSettings] | None = None,
        lifespan: Lifespan = _no_state,
        concurrency: int = 16,
        breaker: BreakerPolicy | None = None,
        guard: Guard | None = None,
    ) -> None:
        """`lifespan` gets the settings and a pool, and yields what operations find as `call.state`."""
        self.name, self.settings, self.lifespan, self.concurrency = name, settings, lifespan, concurrency
        self.breaker = breaker or BreakerPolicy()
        self.guard = guard or Guard()
        self.operations: dict[str, Operation] = {}
        self.origin: ContractOrigin | None = None
        """Where its contracts come from, when that is outside of its code."""
        self.quarantined: dict[str, str] = {}
        """Operations whose calls are refused, and how they have drifted."""
        self.reworded: dict[str, str] = {}
        """Operations whose description has changed at the source since they were accepted, and how."""
        self.compared = asyncio.Event()
        """Set when an adapter has compared by itself."""
        self.changed = asyncio.Event()
        """Set when contracts are others than those that were announced."""
        self._functions: dict[Function, TypedFunction] = {}
        self.secrets: list[SecretStr] = []
        """Values that no answer may hold, besides the secret fields of `settings`: they are masked."""

    def add(self, operation: Operation) -> None:
        """Offer an operation that has its contract already.

        Raises:
            ToolDefinitionError: it belongs to another tool, or there is one of its name.
        """
        name = operation.contract.operation
        if operation.contract.tool != self.name:
            raise ToolDefinitionError(self.name, f"operation {name}", f"name it {self.name}.SOMETHING")
        if name in self.operations:
            raise ToolDefinitionError(self.name, f"operation {name}", "it is offered twice; choose another name")
        self.operations[name] = operation

    def replace(self, operation: Operation) -> None:
        """Offer this from now on instead of the operation of its name, and announce it: the upstream has changed.

        Calls that were planned before must fit it, and are taken.

        Raises:
            ToolDefinitionError: there is no such operation, or it would have another effect.
        """
        name = operation.contract.operation
        before = self.operations.get(name)
        if before is None or before.contract.effect is not operation.contract.effect:
            raise ToolDefinitionError(self.name, f"operation {name}", "only the same, with the same effect, can follow")
        operation.accept_calls_of(before)
        self.operations[name] = operation
        if before.contract != operation.contract:
            self.changed.set()

    def operation(
        self,
        *,
        effect: Effect,
        version: str = "1",
        timeout_ms: int = 10_000,
        cost: Cost | None = None,
        arguments: dict[str, Json] | None = None,
        result: dict[str, Json] | None = None,
        compensate: Compensation | None = None,
        business_key: BusinessKey | str | None = None,
    ) -> Callable[[FunctionT], FunctionT]:
        """Offer a function as an operation. `arguments` and `result` are JSON Schemas to use instead of its hints.

        `compensate` is the operation that undoes it. `business_key` makes two of its writes the same, also of
        different runs, for example `refund:${{ arguments.invoice }}`.

        Raises:
            ToolDefinitionError: the function cannot be offered as it is.
        """
        unique = (
            BusinessKey.model_validate(business_key, strict=False) if isinstance(business_key, str) else business_key
        )
        spec = OperationSpec(effect, version, timeout_ms, cost or Cost(), arguments, result, compensate, unique)

        def offer(function: FunctionT) -> FunctionT:
            typed = TypedFunction(self.name, function, spec)
            self.add(typed.operation)
            self._functions[function] = typed
            return function

        return offer

    def reconcile(self, function: Function) -> Callable[[FunctionT], FunctionT]:
        """Offer a way to ask for the result of an earlier attempt of a `once` operation.

        It takes the Call alone and returns the operation's result, or None when it certainly did not happen.

        Raises:
            ToolDefinitionError: the function is not an operation of this tool.
        """

        def offer(reconcile: FunctionT) -> FunctionT:
            typed = self._functions.get(function)
            if typed is None:
                raise ToolDefinitionError(
                    self.name, f"reconcile({function.__name__})", "offer the function as an operation first"
                )
            typed.operation.reconcile = typed.reconciled_by(reconcile)
            return reconcile

        return offer

    def completion(
        self, function: Function, *, accept_within_ms: int = ACCEPT_WITHIN_MS
    ) -> Callable[[FunctionT], FunctionT]:
        """Offer a way to read the callback that completes an operation; the operation itself raises Accepted.

        It takes the JSON of the callback's body and returns the operation's result, or raises ToolFailure or NotYet.

        Raises:
            ToolDefinitionError: the function is not an operation of this tool.
        """

        def offer(read: FunctionT) -> FunctionT:
            typed = self._functions.get(function)
            if typed is None:
                raise ToolDefinitionError(
                    self.name, f"completion({function.__name__})", "offer the function as an operation first"
                )
            typed.operation.completion = Completion(typed.completed_by(read), accept_within_ms)
            return read

        return offer

    @property
    def is_called_back(self) -> bool:
        """Return whether any operation is completed by a callback."""
        return any(operation.completion is not None for operation in self.operations.values())

    @property
    def contracts(self) -> ToolContracts:
        """Return what the tool announces."""
        contracts: tuple[Contract, ...] = tuple(operation.contract for operation in self.operations.values())
        return ToolContracts(tool=self.name, contracts=contracts)

"""The tool of the simulation, and the upstream behind it, which remembers everything that took effect."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import httpx

from simulated import workshop
from triptych.contracts.compiled_contract import CompiledContract
from triptych.schemas import BusinessKey, Compensation, Cost, Effect, ErrorCode, Json
from triptych.tools.http.errors import check_status
from triptych.tools.sdk.call import Call, NotYet
from triptych.tools.sdk.failure import ToolFailure
from triptych.tools.sdk.guard import BreakerPolicy
from triptych.tools.sdk.tool import Tool

if TYPE_CHECKING:
    from simulated.world import Process, World

Answer = dict[str, Json]
ONCE = frozenset({"send", "post", "film"})
"""The operations that may take effect more than once when they are made again."""
CALLING_BACK = frozenset({"order", "film"})
"""The operations whose answer comes later."""

tool = Tool("desk", concurrency=2, breaker=BreakerPolicy(failures=1_000_000))


@tool.operation(effect=Effect.READ)
async def look(number: int, call: Call[Any]) -> Answer:
    """Reads something."""
    return await call.state.ask("look", number, call)


@tool.operation(effect=Effect.READ, cost=Cost(tokens=10, usd_micros=5))
async def think(number: int, call: Call[Any]) -> Answer:
    """Reads something that costs money."""
    return await call.state.ask("think", number, call)


@tool.operation(effect=Effect.READ)
async def refuse(number: int, call: Call[Any]) -> Answer:
    """Refuse each call: a person has to decide about the run."""
    raise ToolFailure(ErrorCode.FORBIDDEN, f"number {number} is forbidden")


@tool.operation(
    effect=Effect.IDEMPOTENT,
    compensate=Compensation(operation="desk.take_back", arguments={"number": "${{ data.number }}"}),
)
async def put(number: int, call: Call[Any]) -> Answer:
    """Changes something, once for each key."""
    return await call.state.ask("put", number, call)


@tool.operation(
    effect=Effect.IDEMPOTENT,
    business_key=BusinessKey(value="book:${{ arguments.number }}", on_repeat="receipt"),
)
async def book(number: int, call: Call[Any]) -> Answer:
    """Change something, once for each number, for all runs together."""
    return await call.state.ask("book", number, call)


@tool.operation(effect=Effect.IDEMPOTENT)
async def take_back(number: int, call: Call[Any]) -> Answer:
    """Undoes what `put` did, once for each key."""
    return await call.state.ask("take_back", number, call)


@tool.operation(effect=Effect.ONCE)
async def send(number: int, call: Call[Any]) -> Answer:
    """Changes something each time, and can say whether it did."""
    return await call.state.ask("send", number, call)


@tool.operation(effect=Effect.ONCE)
async def post(number: int, call: Call[Any]) -> Answer:
    """Changes something each time, and cannot say whether it did."""
    return await call.state.ask("post", number, call)


@tool.operation(
    effect=Effect.IDEMPOTENT,
    timeout_ms=workshop.TIMEOUT_MS,
    compensate=Compensation(operation="desk.take_back", arguments={"number": "${{ data.number }}"}),
)
async def order(number: int, call: Call[Any]) -> Answer:
    """Has something made, once for each key; the upstream calls back."""
    return await call.state.ask("order", number, call)


@tool.operation(effect=Effect.ONCE, timeout_ms=workshop.TIMEOUT_MS)
async def film(number: int, call: Call[Any]) -> Answer:
    """Order something each time, and look up its result; the upstream calls back."""
    return await call.state.ask("film", number, call)


@tool.completion(order)
@tool.completion(film)
async def made(body: dict[str, Any]) -> Answer:
    if body["state"] == "working":
        raise NotYet
    if body["state"] == "failed":
        raise ToolFailure(ErrorCode.UNAVAILABLE, "nothing was made", undone=True)
    answer: Answer = body["answer"]
    return answer


@tool.reconcile(send)
async def was_sent(call: Call[Any]) -> Answer | None:
    return await call.state.reconcile(call)


@tool.reconcile(film)
async def was_filmed(call: Call[Any]) -> Answer | None:
    return await call.state.reconcile(call)


WRITES = {name for name, one in tool.operations.items() if one.contract.effect.writes}
OFFERS = {name: CompiledContract.of(operation.contract) for name, operation in tool.operations.items()}
BY_HASH = {offer.hash: offer for offer in OFFERS.values()}
NEW_OFFERS = {
    name: CompiledContract.of(
        offer.contract.model_copy(update={"description": f"{offer.contract.description} In other words."})
    )
    for name, offer in OFFERS.items()
}
"""The same operations under other contracts, which the tool may announce later."""
BY_NEW_HASH = {offer.hash: offer for offer in NEW_OFFERS.values()}
for name, operation in tool.operations.items():
    operation.accepted_hashes |= {NEW_OFFERS[name].hash}


class Registry:
    """The contracts as the executor, the planner and the critic see them; they are known from the start."""

    changes = 1

    async def ready(self) -> None:
        return None

    async def wait_for_tools(self, tools: Any, timeout_s: float) -> None:
        return None

    def get(self, operation: str) -> CompiledContract | None:
        return OFFERS.get(operation)

    def remembered(self, contract_hash: str) -> CompiledContract | None:
        return BY_HASH.get(contract_hash)

    def knows_tool(self, name: str) -> bool:
        return name == tool.name

    def operations(self, patterns: Any) -> dict[str, CompiledContract]:
        return OFFERS


class Upstream:
    """What really happened out there."""

    def __init__(self, world: World) -> None:
        self.workshop = workshop.Workshop(world)
        self.done: dict[str, Answer] = {}
        """The answer to each write, by idempotency key."""
        self.booked: dict[int, set[str]] = {}
        """The keys under which each number was booked: its business key allows one."""
        self.executions: Counter[str] = Counter()
        self.denials: Counter[str] = Counter()
        """How often it was said of a key that it had not happened."""
        self.keys: dict[tuple[Any, str], set[str]] = {}
        """The idempotency keys of each step of each run, or branch of one, that took effect."""
        self.taken_back: dict[Any, list[str]] = {}
        """The steps of each run, or branches, whose write was undone, in that order."""
        self.too_late: list[str] = []
        """The writes that took effect while their run was being undone already."""

    def carry_out(self, kind: str, number: int, call: Call[Any]) -> Answer | Exception:
        key = call.idempotency_key
        answer: Answer = {"key": key, "number": number}
        if kind in {"look", "think"} or (kind in {"put", "take_back", "book"} and key in self.done):
            return answer
        if kind in CALLING_BACK:
            if kind == "film" or not self.workshop.is_known(key):
                self._note(key, call)
            return self.workshop.take_on(kind, key, answer, call)
        self.done[key] = answer
        if kind == "book":
            self.booked.setdefault(number, set()).add(key)
        if kind == "take_back":
            self.executions[key] += 1
            self.taken_back.setdefault(call.run_id, []).append(key.split(":")[1])
        else:
            self._note(key, call)
        return answer

    def look_up(self, key: str) -> Answer | Exception | None:
        """Return the result of a write, as far as it is known here."""
        found = self.done.get(key) or self.workshop.look_up(key)
        if found is None:
            self.denials[key] += 1
        return found

    def _note(self, key: str, call: Call[Any]) -> None:
        """Let a write take effect."""
        self.executions[key] += 1
        if call.run_id in self.taken_back:
            self.too_late.append(key)
        self.keys.setdefault((call.run_id, key.split(":")[1]), set()).add(key)


class Line:
    """One tool process's connection to the upstream."""

    def __init__(self, process: Process) -> None:
        self._process = process

    async def ask(self, kind: str, number: int, call: Call[Any]) -> Answer:
        upstream = self._process.world.upstream
        if kind == "think":
            call.spend(call.spent.model_copy(update={"tokens": 7, "usd_micros": 3}))
        return await self._process.world.ask_upstream(
            self._process, kind, lambda: upstream.carry_out(kind, number, call)
        )

    async def reconcile(self, call: Call[Any]) -> Answer | None:
        upstream = self._process.world.upstream
        return await self._process.world.ask_upstream(
            self._process, "reconcile", lambda: upstream.look_up(call.idempotency_key)
        )


def answer_lost() -> ToolFailure:
    return ToolFailure(ErrorCode.UNAVAILABLE, "the connection was lost before the answer")


def odd_statuses(kind: str) -> tuple[int, ...]:
    """HTTP statuses that no list of refusals has; what follows them is known for this kind of call.

    Work that is called back for may have failed already: then a 303 is all that can be said of it.
    """
    return (303, 421, 425, 502) if kind in ONCE - CALLING_BACK else (421, 425, 502)


def odd_answer(status: int) -> Exception:
    """Do the work, and answer with a status that does not say so."""
    response = httpx.Response(status, headers={"location": "/7"}, request=httpx.Request("POST", workshop.URL))
    try:
        check_status(response)
    except ToolFailure as failure:
        return failure
    raise AssertionError(f"{status} is a success")


def refused() -> ToolFailure:
    return ToolFailure(ErrorCode.UNAVAILABLE, "the upstream is too busy and did nothing", undone=True)

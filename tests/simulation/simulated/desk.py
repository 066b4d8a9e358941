"""The tool of the simulation, and the upstream behind it, which remembers everything that took effect."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from triptych.kernel.registry import Offer
from triptych.schemas import Compensation, Cost, Effect, ErrorCode, Json
from triptych.tools.breaker import BreakerPolicy
from triptych.tools.call import Call
from triptych.tools.failure import ToolFailure
from triptych.tools.tool import Tool

if TYPE_CHECKING:
    from simulated.world import Process

Answer = dict[str, Json]

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
    """Never answers anything: a person has to say what becomes of the run."""
    raise ToolFailure(ErrorCode.FORBIDDEN, f"nobody may ask for {number}")


@tool.operation(
    effect=Effect.IDEMPOTENT,
    compensate=Compensation(operation="desk.take_back", arguments={"number": "${{ data.number }}"}),
)
async def put(number: int, call: Call[Any]) -> Answer:
    """Changes something, once for each key."""
    return await call.state.ask("put", number, call)


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


@tool.reconcile(send)
async def was_sent(call: Call[Any]) -> Answer | None:
    return await call.state.reconcile(call)


OFFERS = {name: Offer.of(operation.contract) for name, operation in tool.operations.items()}


class Registry:
    """The contracts as the planner and the critic see them; they are known from the start."""

    async def ready(self) -> None:
        return None

    async def wait_for_tools(self, tools: Any, timeout_s: float) -> None:
        return None

    def get(self, operation: str) -> Offer | None:
        return OFFERS.get(operation)

    def knows_tool(self, name: str) -> bool:
        return name == tool.name

    def operations(self, patterns: Any) -> dict[str, Offer]:
        return OFFERS


class Upstream:
    """What really happened out there."""

    def __init__(self) -> None:
        self.done: dict[str, Answer] = {}
        """The answer to each write, by idempotency key."""
        self.executions: Counter[str] = Counter()
        self.denials: Counter[str] = Counter()
        """How often it was said of a key that it had not happened."""
        self.keys: dict[tuple[Any, str], set[str]] = {}
        """The idempotency keys of each step of each run, or branch of one, that took effect."""
        self.taken_back: dict[Any, list[str]] = {}
        """The steps of each run, or branches, whose write was undone, in that order."""
        self.too_late: list[str] = []
        """The writes that took effect while their run was being undone already."""

    def carry_out(self, kind: str, number: int, call: Call[Any]) -> Answer:
        key = call.idempotency_key
        answer: Answer = {"key": key, "number": number}
        if kind in {"look", "think"} or (kind in {"put", "take_back"} and key in self.done):
            return answer
        self.done[key] = answer
        self.executions[key] += 1
        _, step_or_branch, _ = key.split(":")
        if kind == "take_back":
            self.taken_back.setdefault(call.run_id, []).append(step_or_branch)
            return answer
        if call.run_id in self.taken_back:
            self.too_late.append(key)
        self.keys.setdefault((call.run_id, step_or_branch), set()).add(key)
        return answer


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
        upstream, key = self._process.world.upstream, call.idempotency_key

        def look_up() -> Answer | None:
            if key not in upstream.done:
                upstream.denials[key] += 1
            return upstream.done.get(key)

        return await self._process.world.ask_upstream(self._process, "reconcile", look_up)


def answer_lost() -> ToolFailure:
    return ToolFailure(ErrorCode.UNAVAILABLE, "the connection was lost before the answer")


def refused() -> ToolFailure:
    return ToolFailure(ErrorCode.UNAVAILABLE, "the upstream is too busy and did nothing", undone=True)

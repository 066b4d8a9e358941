"""The checker: what the client saw, what the database holds and what the upstreams did must fit together.

Pure functions over plain values; `evidence.py` gathers them. It shares no code with the services, and counts money,
attempts and effects by itself from the journal's JSON.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from triptych_chaos.client import Observed
from triptych_chaos.webhook_sender import Delivery
from triptych_chaos.workload import CALLS

MICROS = 1_000_000
WRITES = {
    CALLS: {"acknowledge": "acknowledgements", "stamp": "tags", "post": "assignments"},
    "review": {"assign": "assignments"},
}
"""By playbook and step, the collection of the helpdesk that it writes to."""
ABOUT_THE_TASK = frozenset({"acknowledge", "assign"})
"""The steps that write to the task's ticket; the others write to a ticket of the run's own."""
DELIVERS, DELIVERIES = "deliver", "deliveries"
"""The step that some runs have, and what it asks the sender of webhooks for."""
CANNOT_BE_RECONCILED = frozenset({"post"})
"""The steps whose lost answer cannot be found out: the upstream honours no key and cannot be asked."""

_ANSWERS = frozenset({"PlanAccepted", "PlanRefused", "CallAnswered", "VerdictGiven", "ReviewFailed"})
_REQUESTS = frozenset({"PlanRequested", "CallRequested", "ReviewRequested"})


@dataclass(frozen=True, slots=True)
class Event:
    """One row of the journal."""

    seq: int
    type: str
    data: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Run:
    """A run as the database has it. `limits` by the name of a budget, with `usd_micros` for money."""

    run_id: str
    tenant: str
    task_id: str
    playbook: str
    status: str
    limits: Mapping[str, int]
    journal: Sequence[Event]


@dataclass(slots=True)
class Effects:
    """What the helpdesk and the sender of webhooks say took effect."""

    by_place: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By ticket and collection; a delivery counts for the ticket of the run's own."""
    by_key: Counter[str] = field(default_factory=Counter)
    """By idempotency key."""


@dataclass(frozen=True, slots=True)
class Violation:
    """Something that must not be. `lines` are those of the history that speak of it."""

    check: str
    message: str
    task_id: str = ""
    run_id: str = ""
    lines: tuple[int, ...] = ()


def check_task(task_id: str, seen: Observed, runs: Sequence[Run]) -> Iterator[Violation]:
    """Check one task: once accepted, it is one run with one final outcome, however often both were published."""

    def violation(check: str, message: str, lines: Iterable[int]) -> Violation:
        return Violation(check, message, task_id, seen.run_id, tuple(lines))

    deliveries = [line for lines in seen.finals.values() for line in lines]
    if not seen.finals and (seen.acked or runs):
        what = ", ".join(f"run {run.run_id} is {run.status}" for run in runs) or "there is no run"
        yield violation("lost", f"no final outcome; {what}", [*seen.published, *seen.acked])
    ids = {ce_id for ce_id, _ in seen.finals}
    if len(ids) > 1:
        yield violation("two outcomes", f"{len(ids)} different final outcomes: {', '.join(sorted(ids))}", deliveries)
    elif len(seen.finals) > 1:
        yield violation("changed outcome", f"{ids.pop()} was delivered with {len(seen.finals)} bodies", deliveries)
    if len(runs) > 1:
        yield violation("two runs", f"{len(runs)} runs: {', '.join(run.run_id for run in runs)}", seen.published)
    if seen.finals and not runs:
        yield violation("no run", "an outcome without a run", deliveries)
    if seen.finals and seen.status != "succeeded":
        yield violation("unexpected end", f"it ended {seen.status}, and nothing should have kept it", deliveries)
    for run in runs[:1]:
        if seen.finals and (run.run_id, run.status) != (seen.run_id, seen.status):
            message = f"the client was told {seen.run_id} {seen.status}, the database has {run.run_id} {run.status}"
            yield violation("contradiction", message, deliveries)


def check_run(run: Run, effects: Effects, *, has_delivery: bool) -> Iterator[Violation]:
    """Check one run: its journal is whole, no budget exceeded, each effect once, and a delivery as it was wanted."""
    for check, message in (
        *_journal(run),
        *_budgets(run),
        *_doubts(run),
        *_effects(run, effects),
        *_delivery(run, effects, has_delivery=has_delivery),
    ):
        yield Violation(check, message, run.task_id, run.run_id)


def check_effects(effects: Effects, runs: Iterable[tuple[str, str]]) -> Iterator[Violation]:
    """Check the helpdesk: one effect for each key, and each belongs to a run. `runs` are pairs of run and task id."""
    for key, count in effects.by_key.items():
        if count > 1:
            yield Violation("effect twice", f"{count} effects under the idempotency key {key}")
    places = {ticket for run_id, task_id in runs for ticket in (run_id, _ticket(task_id))}
    for ticket, collection in effects.by_place:
        if ticket not in places:
            yield Violation("stray effect", f"{collection} of ticket {ticket}, which belongs to no run")


def check_delivery(key: str, delivery: Delivery) -> Iterator[Violation]:
    """Check one delivery: its address stays, no callback is refused, and one callback counts."""

    def violation(check: str, message: str) -> Violation:
        return Violation(check, f"{message}; key {key}", "", delivery.run_id, tuple(delivery.lines))

    if delivery.moved:
        yield violation("moved callback", f"{delivery.callback} became {', '.join(delivery.moved)}")
    if delivery.refused:
        yield violation("refused callback", f"the sender was told {', '.join(sorted(set(delivery.refused)))}")
    if (counted := [said for said in delivery.said if said != "known"])[1:]:
        yield violation("callback twice", f"what was told once counted as {', '.join(counted)}")


def check_leftovers(leftovers: Mapping[str, int]) -> Iterator[Violation]:
    """Check that nothing waits to be sent, answered or fired when every run has ended."""
    for name, count in leftovers.items():
        if count:
            yield Violation("left behind", f"{count} rows: {name}")


def _journal(run: Run) -> Iterator[tuple[str, str]]:
    numbers = [event.seq for event in run.journal]
    if numbers != list(range(1, len(numbers) + 1)):
        gap = next((at for at, number in enumerate(numbers, 1) if number != at), len(numbers) + 1)
        yield "journal", f"the sequence of events breaks at {gap}"
    types = [event.type for event in run.journal]
    if types[:1] != ["RunAdmitted"]:
        yield "journal", f"it begins with {types[:1] or 'nothing'}"
    if types.count("RunEnded") != 1 or types[-1] != "RunEnded":
        yield "journal", f"{types.count('RunEnded')} ends, the last event is {types[-1] if types else 'none'}"
    open_requests: set[str] = set()
    for event in run.journal:
        if event.type in _REQUESTS:
            open_requests.add(event.data["request_id"])
        elif event.type in _ANSWERS:
            if event.data["request_id"] not in open_requests:
                yield "journal", f"event {event.seq} answers {event.data['request_id']}, which was not open"
            open_requests.discard(event.data["request_id"])
    if run.status == "succeeded" and open_requests:
        yield "open request", f"succeeded with open requests: {', '.join(sorted(open_requests))}"


def _budgets(run: Run) -> Iterator[tuple[str, str]]:  # noqa: C901 - one branch for each kind of event
    """Check that used and reserved together stay within the budget at each event of the journal."""
    limits, held = Counter(dict(run.limits)), dict[str, Mapping[str, int]]()
    used: Counter[str] = Counter()
    steps: set[str] = set()
    for event in run.journal:
        data = event.data
        if event.type == "CallRequested":
            used["tool_calls"] += 1
            steps.add(data["step"])
            used["steps"] = len(steps)
        if event.type == "RetryScheduled" and data.get("postponed") and data["ask"] == "call":
            used["tool_calls"] -= 1  # it was refused before it was made
        if event.type == "ReplanDecided" and not data.get("repair"):
            used["replans"] += 1
        if event.type in _REQUESTS:
            held[data["request_id"]] = data["reserved"]
        if event.type in _ANSWERS:
            held.pop(data["request_id"], None)
            for name in ("tokens", "usd_micros"):
                used[name] += data.get("spend", {}).get(name, 0)
        if event.type == "Overspent":  # it is on record and has stopped the run
            limits.update({name: max(0, n - data["granted"].get(name, 0)) for name, n in data["spent"].items()})
        if event.type == "RunResumed":
            for name, more in data.get("extend", {}).items():
                limits["usd_micros" if name == "usd" else name] += round(more * MICROS if name == "usd" else more)
        for name, limit in limits.items():
            reserved = sum(grant.get(name, 0) for grant in held.values())
            if name != "wall_ms" and used[name] + reserved > limit:
                yield "budget", f"{name}: {used[name]} used, {reserved} reserved, of {limit}, at event {event.seq}"


def _doubts(run: Run) -> Iterator[tuple[str, str]]:
    for event in run.journal:
        if event.type == "RunEscalated" and event.data["reason"]["code"] == "in_doubt":
            step = event.data.get("step")
            if step not in CANNOT_BE_RECONCILED:
                yield "needless doubt", f"step {step} was in doubt at event {event.seq}, and it can be found out"


def _effects(run: Run, effects: Effects) -> Iterator[tuple[str, str]]:
    """Check that a write took effect once, or not at all where the run did not reach it or a person skipped it."""
    overridden = {event.data["step"] for event in run.journal if event.type == "StepOverridden"}
    for step, collection in WRITES[run.playbook].items():
        ticket = _ticket(run.task_id) if step in ABOUT_THE_TASK else run.run_id
        count = effects.by_place[ticket, collection]
        if count > 1:
            yield "effect twice", f"step {step} took effect {count} times: {collection} of ticket {ticket}"
        if count == 0 and run.status == "succeeded" and step not in overridden:
            yield "effect lost", f"step {step} counts as done and took no effect: {collection} of ticket {ticket}"


def _delivery(run: Run, effects: Effects, *, has_delivery: bool) -> Iterator[tuple[str, str]]:
    """Check that a delivery was accepted once for a run that asked for one, and that its webhook gave the answer."""
    count = effects.by_place[run.run_id, DELIVERIES]
    answers = [
        event.data["result"] for event in run.journal if event.type == "CallAnswered" and event.data["step"] == DELIVERS
    ]
    good = [answer for answer in answers if answer["status"] == "ok"]
    if count > has_delivery:
        yield "effect twice", f"{count} deliveries were accepted, and the task wanted {int(has_delivery)}"
    if any(answer["data"] != {"run": run.run_id} for answer in good):
        yield "wrong answer", f"step {DELIVERS} was answered with what a webhook said of something else"
    if has_delivery and run.status == "succeeded" and not (count and len(good) == 1):
        yield "effect lost", f"it has succeeded with {count} deliveries and {len(good)} good answers of step {DELIVERS}"


def _ticket(task_id: str) -> str:
    return f"T-{task_id}"

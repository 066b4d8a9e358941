"""The story of a run: its journal as lines that a person can read. Pure: it formats, it never fetches.

An event of a type that is not known here is told by its fields, so that an older command line can
read the journal of a newer executor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from triptych.client import JournalEntry
from triptych.commands.common.output import compact, duration, usd

Data = dict[str, Any]

_PLAN = "plan"
_REVIEW = "review"


@dataclass(frozen=True, slots=True)
class Line:
    """One event, told. `details` are the values that it carries, one to a line."""

    seq: int
    at: datetime
    type: str
    step: str
    text: str
    tone: str = ""
    details: tuple[str, ...] = ()


@dataclass(slots=True)
class StepCost:
    """What one step (or planning, or the review of the whole run) used."""

    requests: int = 0
    tokens: int = 0
    usd_micros: int = 0


@dataclass(slots=True)
class Story:
    """All lines of a run, and what each step cost."""

    lines: list[Line] = field(default_factory=list)
    costs: dict[str, StepCost] = field(default_factory=dict)


def tell(journal: Iterable[JournalEntry], width: int | None) -> Story:
    """Tell a journal. Values longer than `width` characters are cut, if it is given."""
    story = Story()
    operations: dict[str, str] = {}
    asked: dict[str, tuple[datetime, str]] = {}
    admitted_at: datetime | None = None
    for entry in journal:
        data = entry.data
        admitted_at = admitted_at or entry.at
        if entry.type == "PlanAccepted":
            operations.update({step["id"]: step["operation"] for step in data["plan"]["steps"]})
        request = data.get("request_id")
        step = asked[request][1] if request in asked else _step_of(entry)
        text, tone, details = _told(entry, operations)
        if entry.type == "RunStarted":
            text = f"{text}  after {duration((entry.at - admitted_at).total_seconds() * 1000)} in the queue"
        if spent := _spent(data.get("spend")):
            text = f"{text}  [{spent}]"
        if request and entry.type.endswith("Requested"):
            asked.setdefault(request, (entry.at, step))
            story.costs.setdefault(step, StepCost()).requests += 1
        elif request in asked and data.get("spend") is not None:
            text = f"{text}  after {duration((entry.at - asked[request][0]).total_seconds() * 1000)}"
        if data.get("spend"):
            cost = story.costs.setdefault(step, StepCost())
            cost.tokens += data["spend"].get("tokens", 0)
            cost.usd_micros += data["spend"].get("usd_micros", 0)
        shown = tuple(
            f"{name}: {compact(value, width)}" for name, value in details.items() if value not in (None, {}, [])
        )
        story.lines.append(Line(entry.seq, entry.at, entry.type, step, text, tone, shown))
    return story


def _step_of(entry: JournalEntry) -> str:
    """The column that an event stands in: its step, or what the run as a whole is at."""
    if entry.type.startswith("Plan") or entry.type in ("ReplanDecided", "GoalReached"):
        return _PLAN
    step = entry.data.get("step")
    if step is None and (entry.type.startswith(("Review", "Verdict")) or entry.data.get("ask") == _REVIEW):
        return _REVIEW
    return step or (_PLAN if entry.data.get("ask") == _PLAN else "")


def _told(entry: JournalEntry, operations: dict[str, str]) -> tuple[str, str, Data]:
    teller = _TELLERS.get(entry.type)
    if teller is None:
        return entry.type, "", entry.data
    return teller(entry, operations)


Told = tuple[str, str, Data]


def _admitted(entry: JournalEntry, _operations: dict[str, str]) -> Told:
    data = entry.data
    playbook = f"{data['playbook']['name']}@{data['playbook']['version']}"
    text = f"task {data['task_id']} of {data['tenant']}, for {data['principal']}, becomes a run of {playbook}"
    if data.get("queued"):
        text += "; there is no room, so it is queued"
    return text, "bold", {"input": data["input"], "traceparent": data.get("traceparent")}


def _started(_entry: JournalEntry, _operations: dict[str, str]) -> Told:
    return "there is room: it starts", "bold", {}


def _plan_requested(entry: JournalEntry, _operations: dict[str, str]) -> Told:
    data = entry.data
    text = f"-> asks the planner for revision {data['revision']}{_reserved(data)}"
    return text, "", {"failure": data.get("failure")}


def _plan_accepted(entry: JournalEntry, _operations: dict[str, str]) -> Told:
    plan = entry.data["plan"]
    steps = [_planned(step) for step in plan["steps"]]
    text = f"<- plan, revision {plan['revision']}: {', '.join(steps)}"
    return text, "cyan", {"ledger": entry.data.get("ledger")}


def _planned(step: Data) -> str:
    after = step.get("depends_on")
    return f"{step['id']} ({step['operation']}{' after ' + ', '.join(after) if after else ''})"


def _goal_reached(entry: JournalEntry, _operations: dict[str, str]) -> Told:
    return "<- the goal is reached", "green", {"answer": entry.data["answer"]}


def _round_started(entry: JournalEntry, _operations: dict[str, str]) -> Told:
    data = entry.data
    return f"not accepted, round {data['round']} begins{_because(data)}", "yellow", {"evidence": data.get("evidence")}


def _plan_refused(entry: JournalEntry, _operations: dict[str, str]) -> Told:
    error = entry.data["error"]
    code = entry.data.get("code") or error["code"]
    return f"<- no plan: {code}: {error['message']}", "red", {"details": error.get("details")}


def _operation(data: Data, operations: dict[str, str]) -> str:
    """What a step, or a branch of one (`replies.3`), calls."""
    return operations.get(data["step"].partition(".")[0], "the tool")


def _fan_out(entry: JournalEntry, operations: dict[str, str]) -> Told:
    items = entry.data["items"]
    return f"fans out over {len(items)} items: {_operation(entry.data, operations)} for each", "cyan", {"items": items}


def _fan_in(_entry: JournalEntry, _operations: dict[str, str]) -> Told:
    return "every branch is over; their results are merged in the order of the items", "cyan", {}


def _call_requested(entry: JournalEntry, operations: dict[str, str]) -> Told:
    data = entry.data
    if child := data.get("child"):
        text = f"-> hands over to {data['arguments'].get('playbook')}, run {child}{_reserved(data)}"
        return text, "", {"input": data["arguments"].get("input")}
    operation = _operation(data, operations)
    text = f"-> {operation}, attempt {data['attempt']}{_reserved(data)}"
    return text, "", {"arguments": data["arguments"], "idempotency_key": data["idempotency_key"]}


def _key_requested(entry: JournalEntry, _operations: dict[str, str]) -> Told:
    return f"wants the business key {entry.data['key']!r}", "", {}


def _key_answered(entry: JournalEntry, _operations: dict[str, str]) -> Told:
    data = entry.data
    if data["standing"] == "granted":
        return "has the business key", "green", {}
    by = (
        f"step {data['holder_step']} of run {data.get('holder')}"
        if data.get("holder_step")
        else f"run {data.get('holder')}"
    )
    match data["standing"]:
        case "receipt":
            return (
                f"is not made: {by} has done it, and its answer stands",
                "green",
                {"data": (data.get("result") or {}).get("data")},
            )
        case "held":
            return f"waits: {by} has the business key", "yellow", {}
        case _:
            return f"is not made: {by} has the business key", "red", {}


def _call_answered(entry: JournalEntry, _operations: dict[str, str]) -> Told:
    result, worker = entry.data["result"], entry.data.get("worker")
    by = f" by {worker}" if worker else ""
    if error := result.get("error"):
        after = error.get("retry_after_ms")
        wait = f", asks to wait {duration(after)}" if after is not None else ""
        free = ", no tool call used up" if entry.data.get("uncounted") else ""
        return f"<- {error['code']}{by}: {error['message']}{wait}{free}", "red", {"details": error.get("details")}
    warnings = [f"{each['place'] or 'the answer'}: {each['message']}" for each in result.get("warnings") or ()]
    tone = "green" if result["status"] == "ok" and not warnings else "yellow"
    passed = ", not as its contract says" if warnings else ""
    return f"<- {result['status']}{by}{passed}", tone, {"data": result.get("data"), "let pass": warnings or None}


def _answered_late(entry: JournalEntry, operations: dict[str, str]) -> Told:
    data = entry.data
    if data.get("result") is None:
        error = data.get("error")
        said = f"{error['code']}: {error['message']}" if error else "an answer that nobody needs any more"
        return f"<- after the end: {said}", "yellow", {}
    told, tone, details = _call_answered(entry, operations)
    if (data["result"].get("error") or {}).get("details", {}).get("withdrawn"):
        return told, "dim", {}
    # What was done all the same is never left out, however well it went.
    return f"{told} (after the end of the run)", "red" if tone == "red" else "yellow", details


def _child_escalated(entry: JournalEntry, _operations: dict[str, str]) -> Told:
    data = entry.data
    return f"child run {data['child']} waits for a person{_because(data)}; the clock stands still", "yellow", {}


def _child_resumed(entry: JournalEntry, _operations: dict[str, str]) -> Told:
    return f"child run {entry.data['child']} goes on", "", {}


def _call_reused(entry: JournalEntry, operations: dict[str, str]) -> Told:
    data = entry.data
    operation = _operation(data, operations)
    text = f"{operation} has been done by step {data['source']} of an earlier plan; its answer stands"
    return text, "green", {"arguments": data["arguments"]}


def _fallback_taken(entry: JournalEntry, operations: dict[str, str]) -> Told:
    data = entry.data
    operation = _operation(data, operations)
    return f"fallback {data['number']} stands in for {operation}{_because(data)}", "yellow", {}


def _review_requested(entry: JournalEntry, _operations: dict[str, str]) -> Told:
    data = entry.data
    what = f"step {data['step']}" if data.get("step") else "the whole run"
    return f"-> asks the critic about {what}{_reserved(data)}", "", {"output": data.get("output")}


def _verdict_given(entry: JournalEntry, _operations: dict[str, str]) -> Told:
    data = entry.data
    confidence = data.get("confidence")
    sure = f", confidence {confidence:.2f}" if confidence is not None else ""
    tone = "green" if data["decision"] == "continue" else "yellow"
    return f"<- {data['decision']}{sure}{_because(data)}", tone, {"evidence": data.get("evidence")}


def _review_failed(entry: JournalEntry, _operations: dict[str, str]) -> Told:
    error = entry.data["error"]
    return f"<- no verdict: {error['code']}: {error['message']}", "red", {"details": error.get("details")}


def _retry_scheduled(entry: JournalEntry, _operations: dict[str, str]) -> Told:
    data = entry.data
    wait_ms = (datetime.fromisoformat(data["due_at"]) - entry.at).total_seconds() * 1000
    free = ", no attempt used up" if data.get("postponed") else ""
    return f"{data['ask']} again in {duration(max(0.0, wait_ms))}{free}{_because(data)}", "yellow", {}


def _reissued(entry: JournalEntry, _operations: dict[str, str]) -> Told:
    return f"no answer yet; the same request is sent again ({entry.data['request_id']})", "yellow", {}


def _step_ended(entry: JournalEntry, _operations: dict[str, str]) -> Told:
    status = entry.data["status"]
    tone = {"succeeded": "green", "failed": "red"}.get(status, "dim")
    return f"step {status}{_because(entry.data)}", tone, {}


def _replan_decided(entry: JournalEntry, _operations: dict[str, str]) -> Told:
    at = f" at step {entry.data['step']}" if entry.data.get("step") else ""
    return f"the plan did not work out{at}{_because(entry.data)}", "yellow", {}


def _escalated(entry: JournalEntry, _operations: dict[str, str]) -> Told:
    return f"ESCALATED to a person{_because(entry.data)}", "bold yellow", {}


def _resumed(entry: JournalEntry, _operations: dict[str, str]) -> Told:
    data = entry.data
    return f"resumed by {data['principal']}{_noted(data)}", "bold", {"extend": data.get("extend")}


def _overridden(entry: JournalEntry, _operations: dict[str, str]) -> Told:
    data = entry.data
    return f"settled by hand by {data['principal']}{_noted(data)}", "bold", {"data": data.get("data")}


def _refused(entry: JournalEntry, _operations: dict[str, str]) -> Told:
    data = entry.data
    return f"{data['action']} by {data['principal']} refused{_because(data)}", "yellow", {}


def _overspent(entry: JournalEntry, _operations: dict[str, str]) -> Told:
    spent, granted = entry.data["spent"], entry.data["granted"]
    over = [f"{name} {n:,} of {granted.get(name, 0):,}" for name, n in spent.items() if n > granted.get(name, 0)]
    return f"the answer cost more than it was granted: {', '.join(over)}", "bold red", {}


def _undo_started(entry: JournalEntry, _operations: dict[str, str]) -> Told:
    data = entry.data
    return f"aborted by {data['principal']}{_noted(data)}; what was written is undone", "bold yellow", {}


def _undo_requested(entry: JournalEntry, _operations: dict[str, str]) -> Told:
    data = entry.data
    details = {"arguments": data["arguments"], "idempotency_key": data["idempotency_key"]}
    return f"-> asks to undo it, attempt {data['attempt']}", "", details


def _undo_answered(entry: JournalEntry, _operations: dict[str, str]) -> Told:
    if error := entry.data["result"].get("error"):
        return f"<- not undone: {error['code']}: {error['message']}", "red", {"details": error.get("details")}
    return "<- undone", "green", {"data": entry.data["result"].get("data")}


def _ended(entry: JournalEntry, _operations: dict[str, str]) -> Told:
    data = entry.data
    by = f" by {data['principal']}" if data.get("principal") else ""
    tone = {"succeeded": "bold green", "failed": "bold red"}.get(data["status"], "bold")
    under_way = [
        f"{each['step']}: {each['operation']} under key {each['idempotency_key']} ({_KNOWN[each['known']]})"
        for each in data.get("under_way") or ()
    ]
    return f"{data['status'].upper()}{by}{_because(data)}", tone, {"output": data.get("output"), "under_way": under_way}


_KNOWN = {"asked": "asked, no answer yet", "in_doubt": "nobody knows whether it happened"}


_TELLERS: dict[str, Callable[[JournalEntry, dict[str, str]], Told]] = {
    "RunAdmitted": _admitted,
    "RunStarted": _started,
    "PlanRequested": _plan_requested,
    "PlanAccepted": _plan_accepted,
    "GoalReached": _goal_reached,
    "RoundStarted": _round_started,
    "PlanRefused": _plan_refused,
    "FanOutStarted": _fan_out,
    "FanInDone": _fan_in,
    "KeyRequested": _key_requested,
    "KeyAnswered": _key_answered,
    "CallRequested": _call_requested,
    "CallAnswered": _call_answered,
    "ChildEscalated": _child_escalated,
    "ChildResumed": _child_resumed,
    "CallReused": _call_reused,
    "FallbackTaken": _fallback_taken,
    "ReviewRequested": _review_requested,
    "VerdictGiven": _verdict_given,
    "ReviewFailed": _review_failed,
    "RetryScheduled": _retry_scheduled,
    "RequestReissued": _reissued,
    "StepEnded": _step_ended,
    "ReplanDecided": _replan_decided,
    "RunEscalated": _escalated,
    "RunResumed": _resumed,
    "StepOverridden": _overridden,
    "CommandRefused": _refused,
    "Overspent": _overspent,
    "UndoStarted": _undo_started,
    "UndoRequested": _undo_requested,
    "UndoAnswered": _undo_answered,
    "RunEnded": _ended,
    "AnsweredLate": _answered_late,
}


def _because(data: Data) -> str:
    reason = data.get("reason")
    return f": {reason['code']}: {reason['message']}" if reason else ""


def _noted(data: Data) -> str:
    return f": {data['note']}" if data.get("note") else ""


def _reserved(data: Data) -> str:
    grant = data.get("reserved") or {}
    parts = _amounts(grant)
    return f", may use {' and '.join(parts)}" if parts else ""


def _spent(spend: Data | None) -> str:
    if not spend:
        return ""
    models = dict.fromkeys(_asked(call) for call in spend.get("model_calls", ()))
    return ", ".join([*_amounts(spend), *models])


def _asked(call: Data) -> str:
    """A model that was asked, and what there is to say of it besides its cost."""
    notes = ["cached"] if call.get("cached") else []
    if call.get("tokens_cached"):
        notes.append(f"{call['tokens_cached']:,} from its cache")
    if why := call.get("failed"):
        notes.append(why)
    return f"{call['model']} ({', '.join(notes)})" if notes else str(call["model"])


def _amounts(amounts: Data) -> list[str]:
    parts = []
    if tokens := amounts.get("tokens"):
        parts.append(f"{tokens:,} tokens")
    if micros := amounts.get("usd_micros"):
        parts.append(usd(micros))
    if calls := amounts.get("tool_calls"):
        parts.append(f"{calls:,} tool calls")
    return parts

"""The story of a run: its journal as lines that a person can read. Pure: it formats, it never fetches.

An event that this version does not know is shown by its fields, so that an older command line can
read the journal of a newer executor.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime

from triptych.client import JournalEntry
from triptych.commands.common.event_texts import EventText, amounts, describe
from triptych.commands.common.output import compact, duration
from triptych.executor import events as ev
from triptych.schemas import ModelCall, Spend, codec

_PLAN = "plan"
_REVIEW = "review"


@dataclass(frozen=True, slots=True)
class StoryLine:
    """The text of one event. `details` are the values that the event carries, one to a line."""

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

    lines: list[StoryLine] = field(default_factory=list)
    costs: dict[str, StepCost] = field(default_factory=dict)


def render_story(journal: Iterable[JournalEntry], width: int | None) -> Story:
    """Render a journal as lines of text. Cut values after `width` characters, if it is given."""
    renderer = _Renderer(width)
    for entry in journal:
        renderer.add(entry)
    return renderer.story


class _Renderer:
    """Renders one event after the other, with what earlier events said of requests and steps."""

    def __init__(self, width: int | None) -> None:
        self.story = Story()
        self._width = width
        self._operations: dict[str, str] = {}
        self._requested: dict[str, tuple[datetime, str]] = {}
        """When a request was made, and for which step."""
        self._admitted_at: datetime | None = None

    def add(self, entry: JournalEntry) -> None:
        """Render the next event of the journal."""
        self._admitted_at = self._admitted_at or entry.at
        event = ev.decode_for_people(entry.type, codec.encode_text(entry.data, limits=codec.STORED))
        if event is None:
            self._append(entry, str(entry.data.get("step") or ""), EventText(entry.type, details=entry.data))
            return
        if isinstance(event, ev.PlanAccepted):
            self._operations.update({step.id: step.operation for step in event.plan.steps})
        request_id: str | None = getattr(event, "request_id", None)
        requested_at, step = self._requested.get(request_id or "", (None, _step_of(event)))
        described = describe(event, entry.at, self._operations)
        text = described.text
        if isinstance(event, ev.RunStarted):
            text += f"  after {_between(self._admitted_at, entry.at)} in the queue"
        spend: Spend | None = getattr(event, "spend", None)
        if spend is not None:
            used = ", ".join([*amounts(spend), *dict.fromkeys(_model_text(call) for call in spend.model_calls)])
            text += f"  [{used}]" if used else ""
            text += f"  after {_between(requested_at, entry.at)}" if requested_at else ""
            self._add_cost(step, spend)
        if isinstance(event, ev.Requested):
            self._requested.setdefault(event.request_id, (entry.at, step))
            cost = self.story.costs.setdefault(step, StepCost())
            cost.requests += not getattr(event, "reuses", False)
        self._append(entry, step, EventText(text, described.tone, described.details))

    def _add_cost(self, step: str, spend: Spend) -> None:
        cost = self.story.costs.setdefault(step, StepCost())
        cost.tokens += spend.tokens
        cost.usd_micros += spend.usd_micros

    def _append(self, entry: JournalEntry, step: str, shown: EventText) -> None:
        details = tuple(
            f"{name}: {compact(value, self._width)}"
            for name, value in shown.details.items()
            if value not in (None, {}, [])
        )
        self.story.lines.append(StoryLine(entry.seq, entry.at, entry.type, step, shown.text, shown.tone, details))


def _between(start: datetime, end: datetime) -> str:
    return duration((end - start).total_seconds() * 1000)


def _step_of(event: ev.JournaledEvent) -> str:
    """Return the column of an event: its step, or the phase that the run as a whole is in."""
    match event:
        case ev.PlanRequested() | ev.PlanAccepted() | ev.PlanRefused() | ev.GoalReached() | ev.ReplanDecided():
            return _PLAN
        case ev.ReviewRequested(step=None) | ev.VerdictGiven(step=None) | ev.ReviewFailed(step=None):
            return _REVIEW
        case ev.RetryScheduled(step=None, ask=phase):
            return phase
        case _:
            step: str | None = getattr(event, "step", None)
            return step or ""


def _model_text(call: ModelCall) -> str:
    """Return the model that was asked, with what kept it from answering and what came from a cache."""
    notes = ["cached"] if call.cached else []
    if call.tokens_cached:
        notes.append(f"{call.tokens_cached:,} from its cache")
    if call.failed:
        notes.append(call.failed)
    return f"{call.model} ({', '.join(notes)})" if notes else call.model

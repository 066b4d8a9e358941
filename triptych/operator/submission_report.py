"""Reports the outcomes of the lines that were submitted. Pure: it is told of messages, it never fetches them.

A line is settled by an outcome of its task or, when it could not be read, by a dead letter that names
its place in Kafka. An escalation settles a line: the run now waits for a person.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from triptych.client import Receipt
from triptych.executor.unreadable import sender_of
from triptych.schemas import DeadLetter, Outcome, codec

TaskKey = tuple[str, str]
"""Tenant and task id."""

_DEFAULT_TENANT = "default"
_MAX_ID_CHARS = 200


@dataclass(slots=True)
class SubmittedLine:
    """One line, where it landed, and its outcome."""

    number: int
    receipt: Receipt
    key: TaskKey | None
    duplicate_of: int | None = None
    outcome: Outcome | None = None
    dead_letter: DeadLetter | None = None

    @property
    def status(self) -> str:
        if self.outcome is not None:
            return self.outcome.status.value
        return "dead letter" if self.dead_letter is not None else "waiting"


@dataclass(slots=True)
class SubmissionReport:
    """The lines of one submission."""

    lines: list[SubmittedLine]
    _by_key: dict[TaskKey, SubmittedLine] = field(default_factory=dict)
    _by_place: dict[tuple[int, int], SubmittedLine] = field(default_factory=dict)

    @classmethod
    def of(cls, values: Mapping[int, bytes], receipts: Sequence[Receipt]) -> SubmissionReport:
        """Start counting for values that were published, by their number; `receipts` are in the same order."""
        report = cls([])
        for (number, value), receipt in zip(values.items(), receipts, strict=True):
            key = task_key(value, receipt)
            first = report._by_key.get(key) if key else None
            line = SubmittedLine(number, receipt, key, duplicate_of=first.number if first else None)
            report.lines.append(line)
            report._by_place[receipt.partition, receipt.offset] = line
            if key and first is None:
                report._by_key[key] = line
        return report

    def add(self, message: Outcome | DeadLetter) -> bool:
        """Take a message into account; False when it is about something else."""
        if isinstance(message, Outcome) and message.record is not None:
            return self._add_conflict(message, message.record)
        if isinstance(message, Outcome):
            line = self._by_key.get((message.tenant, message.task_id)) or self._nameless(message)
            if line is None or (line.outcome is not None and line.outcome.final):
                return False
            line.outcome = message
            return True
        line = self._by_place.get((message.partition, message.offset))
        if line is None or line.receipt.topic != message.topic:
            return False
        line.dead_letter = message
        return True

    def _add_conflict(self, outcome: Outcome, record: str) -> bool:
        """Settle a line whose task id belongs to another task, in this file or from before."""
        line = next((each for each in self.lines if _place(each.receipt) == record), None)
        if line is None:
            return False  # somebody else's
        line.outcome, line.duplicate_of = outcome, None
        return True

    def _nameless(self, outcome: Outcome) -> SubmittedLine | None:
        """Find the line without an id whose outcome this is. Its id is its place, and when it was published."""
        return self._by_key.get((outcome.tenant, outcome.task_id.rpartition(":")[0]))

    @property
    def runs(self) -> list[SubmittedLine]:
        """Return the lines that are not duplicates."""
        return [line for line in self.lines if line.duplicate_of is None]

    @property
    def waiting(self) -> int:
        """How many lines nothing is known of yet."""
        return sum(line.outcome is None and line.dead_letter is None for line in self.runs)

    @property
    def settled(self) -> bool:
        """Return whether every line has an outcome, or is a dead letter without one, as its id is unreadable."""
        return all(line.outcome or (line.dead_letter and line.key is None) for line in self.runs)

    def counts(self) -> Counter[str]:
        """Count the lines of each status."""
        return Counter(line.status for line in self.runs)

    def outcomes(self) -> list[Outcome]:
        return [line.outcome for line in self.runs if line.outcome is not None]


def task_key(value: bytes, receipt: Receipt) -> TaskKey | None:
    """Return the tenant and task id that a line's outcome will have; None when it is not a JSON object.

    What has no id of its own is known by its place in Kafka; its outcome says after that when it was published.
    """
    sender = sender_of(value)
    if sender is None or not (sender.task_id or sender.hint or _is_json(value)):
        return None
    return sender.tenant or _DEFAULT_TENANT, sender.task_id or _place(receipt)


def _place(receipt: Receipt) -> str:
    return f"{receipt.topic}:{receipt.partition}:{receipt.offset}"


def _is_json(value: bytes) -> bool:
    try:
        codec.decode(value)
    except codec.NotJson:
        return False
    except codec.InvalidJson:
        pass  # refused under its own name
    return True


def lines_of(content: bytes) -> dict[int, bytes]:
    """Return the lines of a .jsonl file as they are, by their number in it, without the empty ones."""
    return {number: line for number, line in enumerate(content.splitlines(), 1) if line.strip()}


def total(outcomes: Iterable[Outcome]) -> tuple[int, int, float]:
    """Tool calls, tokens and US dollars of several outcomes."""
    usages = [outcome.usage for outcome in outcomes]
    return (
        sum(usage.tool_calls for usage in usages),
        sum(usage.tokens for usage in usages),
        sum(usage.usd for usage in usages),
    )

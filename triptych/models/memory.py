"""The working memory of a run: what a prompt may say of it, built for each question, within a cap of tokens.

Facts are what steps answered, decisions are steps that were left out and why, open questions are what did not work out.
Each names the step that it comes from. The same records under the same cap give the same memory, so what is dropped can
be foreseen. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from triptych.models.tokens import tokens_of
from triptych.schemas import Json, ResultStatus, StepRecord, codec

MAX_FACT_CHARS: Final = 6_000
"""So much of one result is told at most; the rest a plan can only refer to."""
HEAD_CHARS: Final = 200
"""So much is left of a fact that was shortened for want of room."""
MAX_REASON_CHARS: Final = 500
_FAILED: Final = "failed"
_SKIPPED: Final = "skipped"


@dataclass(frozen=True, slots=True)
class WorkingMemory:
    """What is known of a run, the oldest first, in the form in which a model is told."""

    facts: tuple[dict[str, Json], ...] = ()
    decisions: tuple[dict[str, Json], ...] = ()
    open_questions: tuple[dict[str, Json], ...] = ()
    left_out: tuple[str, ...] = ()
    """Steps that have something to tell, for which there was no room."""

    @classmethod
    def of(cls, records: Sequence[StepRecord]) -> WorkingMemory:
        facts: list[dict[str, Json]] = []
        decisions: list[dict[str, Json]] = []
        questions: list[dict[str, Json]] = []
        for record in records:
            told: dict[str, Json] = {"id": record.id, "operation": record.operation, "status": record.status}
            if record.reason is not None:
                told["reason"] = f"{record.reason.code}: {record.reason.message}"[:MAX_REASON_CHARS]
            result = record.result
            if record.status == _SKIPPED and result is None:
                decisions.append(told)
                continue
            if result is not None and result.status is ResultStatus.ERROR and result.error is not None:
                message = result.error.message[:MAX_REASON_CHARS]
                told["error"] = {"code": result.error.code.value, "message": message}
            elif result is not None:
                told |= {"result": result.status.value, "data": _cut(result.data, MAX_FACT_CHARS)}
            is_open = record.status == _FAILED or "error" in told
            (questions if is_open else facts).append(told)
        return cls(tuple(facts), tuple(decisions), tuple(questions))

    def within(self, max_tokens: int) -> WorkingMemory:
        """Return as much of it as there is room for.

        The oldest facts are shortened first, then the oldest lose their data and are named alone, then the oldest
        decisions go, then the oldest facts. Open questions stay: a plan that does not know them repeats them.
        """
        facts, decisions, left_out = list(self.facts), list(self.decisions), list(self.left_out)
        room = max_tokens - sum(map(_tokens, (*facts, *decisions, *self.open_questions)))
        for limit in (HEAD_CHARS, 0):
            for at, fact in enumerate(facts):
                if room >= 0:
                    break
                shorter = {**fact, "data": _cut(fact.get("data"), limit)} if limit else _named(fact)
                room += _tokens(fact) - _tokens(shorter)
                facts[at] = shorter
        for entries in (decisions, facts):
            while entries and room < 0:
                gone = entries.pop(0)
                room += _tokens(gone)
                left_out.append(gone["id"])
        return WorkingMemory(tuple(facts), tuple(decisions), self.open_questions, tuple(left_out))

    def as_json(self) -> dict[str, Json]:
        """Return the memory as a part of a prompt."""
        parts = {
            "known": self.facts,
            "decisions": self.decisions,
            "open_questions": self.open_questions,
            "left_out": self.left_out,
        }
        return {name: list(entries) for name, entries in parts.items() if entries}

    def data(self) -> dict[str, Json]:
        """Return the answers of steps, by step."""
        return {fact["id"]: fact.get("data") for fact in self.facts}


def _named(fact: dict[str, Json]) -> dict[str, Json]:
    return {name: value for name, value in fact.items() if name != "data"} | {"data_left_out": True}


def _cut(data: Json, max_chars: int) -> Json:
    written = codec.encode_text(data)
    return data if len(written) <= max_chars else f"{written[:max_chars]}… (cut)"


def _tokens(entry: dict[str, Json]) -> int:
    return tokens_of(codec.encode(entry) + b",")

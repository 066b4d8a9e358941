"""The working memory of a run: what a prompt tells of it, and what goes first when there is no room."""

from __future__ import annotations

import orjson
from hypothesis import given
from hypothesis import strategies as st

from triptych.models import WorkingMemory
from triptych.models.memory import HEAD_CHARS, MAX_FACT_CHARS
from triptych.models.tokens import BYTES_A_TOKEN
from triptych.schemas import ErrorCode, Json, Reason, Result, StepRecord


def fact(step: str, data: Json = "d", status: str = "succeeded") -> StepRecord:
    return StepRecord(id=step, operation="kb.search", status=status, result=Result.ok(data))


FAILED = StepRecord(
    id="send",
    operation="mail.send",
    status="failed",
    result=Result.failed(ErrorCode.NOT_FOUND, "there is no such mailbox"),
    reason=Reason(code="not_found", message="mail.send failed"),
)
SKIPPED = StepRecord(
    id="gift", operation="shop.gift", status="skipped", reason=Reason(code="not_wanted", message="`input.vip` is false")
)


def test_each_kind_names_the_step_that_it_comes_from() -> None:
    told = WorkingMemory.of([fact("search", {"hits": 2}), SKIPPED, FAILED]).as_json()
    assert [(entry["id"], entry["data"]) for entry in told["known"]] == [("search", {"hits": 2})]
    assert [(entry["id"], entry["reason"]) for entry in told["decisions"]] == [
        ("gift", "not_wanted: `input.vip` is false")
    ]
    assert [(entry["id"], entry["error"]["code"]) for entry in told["open_questions"]] == [("send", "not_found")]


def test_what_was_found_empty_and_what_a_person_answered_are_facts() -> None:
    empty = StepRecord(id="search", operation="kb.search", status="succeeded", result=Result.empty())
    memory = WorkingMemory.of([empty, fact("ask", "by hand", status="skipped")])
    assert memory.data() == {"search": None, "ask": "by hand"}
    assert memory.facts[0]["result"] == "empty"


def test_a_long_result_is_cut_even_where_there_is_room() -> None:
    (known,) = WorkingMemory.of([fact("a", "x" * 20_000)]).within(100_000).facts
    assert len(known["data"]) < MAX_FACT_CHARS + 20
    assert known["data"].endswith("… (cut)")


def test_the_oldest_facts_are_shortened_first() -> None:
    memory = WorkingMemory.of([fact("old", "x" * 3_000), fact("new", "y" * 3_000)]).within(1_500)
    assert [len(entry["data"]) for entry in memory.facts] == [HEAD_CHARS + len("… (cut)"), 3_000]
    assert memory.left_out == ()


def test_then_the_oldest_are_named_without_their_data_then_decisions_and_facts_go() -> None:
    records = [fact("a", "x" * 3_000), SKIPPED, fact("b", "y" * 3_000), FAILED]
    memory = WorkingMemory.of(records)
    named = memory.within(280)
    assert [("data" in entry, entry.get("data_left_out", False)) for entry in named.facts] == [
        (False, True),
        (True, False),
    ]
    least = memory.within(0)
    assert (least.facts, least.decisions, least.left_out) == ((), (), ("gift", "a", "b"))
    assert [entry["id"] for entry in least.open_questions] == ["send"]


@given(st.lists(st.integers(0, 4_000), max_size=12), st.integers(0, 6_000))
def test_a_memory_fits_its_cap_and_is_the_same_each_time(lengths: list[int], max_tokens: int) -> None:
    records = [fact(f"s{at}", "x" * length) for at, length in enumerate(lengths)]
    memory = WorkingMemory.of(records)
    fitted = memory.within(max_tokens)
    assert fitted == WorkingMemory.of(records).within(max_tokens)
    assert sum(len(orjson.dumps(entry)) for entry in fitted.facts) <= max_tokens * BYTES_A_TOKEN
    kept = [entry["id"] for entry in fitted.facts]
    assert [*fitted.left_out, *kept] == [record.id for record in records], "the newest are kept"

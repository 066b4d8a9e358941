"""The waterfall: time stamps of two processes become the parts of a step, and nothing else does."""

from __future__ import annotations

from triptych_bench.waterfall import ACKNOWLEDGED, EXECUTOR_PLACES, TOOL_PLACES, Mark, parts, passes, steps

MS = 1_000_000


def marks(places: tuple[str, ...], begin_ms: int) -> list[Mark]:
    """One batch whose places are a millisecond apart."""
    return [Mark((begin_ms + number) * MS, place) for number, place in enumerate(places)]


def test_a_batch_is_complete_with_its_last_place_and_keeps_its_acknowledgement():
    (found,) = passes([*marks(EXECUTOR_PLACES, 0), Mark(9 * MS, ACKNOWLEDGED)], EXECUTOR_PLACES)
    assert found.at_ns == tuple(number * MS for number in range(len(EXECUTOR_PLACES)))
    assert found.acknowledged_ns == 9 * MS


def test_answers_of_kafka_to_other_requests_begin_nothing():
    others = [Mark(0, "kafka.answered"), Mark(1 * MS, "kafka.answered")]
    (found,) = passes([*others, *marks(EXECUTOR_PLACES, 5)], EXECUTOR_PLACES)
    assert found.at_ns[0] == 5 * MS


def test_a_batch_that_publishes_nothing_is_no_part_of_a_step():
    idle = marks(EXECUTOR_PLACES[:-1], 0)
    (found,) = passes([*idle, *marks(EXECUTOR_PLACES, 20)], EXECUTOR_PLACES)
    assert found.at_ns[0] == 20 * MS


def test_a_step_goes_from_one_batch_of_the_executor_over_the_tool_to_the_next():
    executor = passes([*marks(EXECUTOR_PLACES, 0), *marks(EXECUTOR_PLACES, 30)], EXECUTOR_PLACES)
    tool = passes(marks(TOOL_PLACES, 10), TOOL_PLACES)
    rows = {(part.process, part.name): part.ms for part in parts(steps(executor, tool))}
    assert rows["executor", "commit"] == [1.0]
    assert rows["Kafka", "hop to the tool"] == [4.0]
    assert rows["Kafka", "hop to the executor"] == [14.0]
    assert rows["", "a step"] == [30.0]
    assert sum(sum(ms) for row, ms in rows.items() if row != ("", "a step")) == 30.0


def test_an_answer_that_nothing_was_read_after_is_no_step():
    executor, tool = passes(marks(EXECUTOR_PLACES, 0), EXECUTOR_PLACES), passes(marks(TOOL_PLACES, 10), TOOL_PLACES)
    assert steps(executor, tool) == []

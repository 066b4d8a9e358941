"""Portions of bounded size, fair between partitions, and suspects alone."""

from __future__ import annotations

from itertools import takewhile
from typing import Any

from aiokafka import ConsumerRecord, TopicPartition

from triptych.kernel.kafka.backlog import Backlog, Portion
from triptych.kernel.kafka.suspect_records import RecordsInFlight, Suspicion

TASKS, RESULTS = TopicPartition("tasks", 0), TopicPartition("results", 0)


def records(source: TopicPartition, count: int, size_bytes: int = 1, first: int = 0) -> list[ConsumerRecord[Any, Any]]:
    return [
        ConsumerRecord(source.topic, source.partition, first + number, 0, 0, None, b"x" * size_bytes, None, -1, 1, ())
        for number in range(count)
    ]


def offsets(portion: Portion) -> dict[str, list[int]]:
    return {source.topic: [record.offset for record in taken] for source, taken in portion.records.items()}


def trusts(_record: object) -> bool:
    return False


def portions(backlog: Backlog, suspicion: Suspicion) -> list[Portion]:
    return list(takewhile(lambda portion: portion.records, iter(lambda: backlog.take(suspicion.is_suspect), None)))


def test_all_that_was_polled_is_one_portion_as_long_as_it_is_small() -> None:
    backlog = Backlog(10, 100)
    backlog.put({TASKS: records(TASKS, 3), RESULTS: records(RESULTS, 2)})
    assert offsets(backlog.take(trusts)) == {"tasks": [0, 1, 2], "results": [0, 1]}
    assert not backlog


def test_a_portion_holds_a_bounded_number_of_bytes_and_one_record_at_least() -> None:
    backlog = Backlog(10, 100)
    backlog.put({TASKS: records(TASKS, 3, 60) + records(TASKS, 1, 500, first=3)})
    taken = [offsets(backlog.take(trusts)) for _ in range(4)]
    assert taken == [{"tasks": [0]}, {"tasks": [1]}, {"tasks": [2]}, {"tasks": [3]}]


def test_what_fills_the_portions_of_one_partition_leaves_room_for_the_others() -> None:
    backlog = Backlog(4, 1_000)
    backlog.put({TASKS: records(TASKS, 50, 100), RESULTS: records(RESULTS, 2)})
    assert offsets(backlog.take(trusts)) == {"tasks": [0, 1], "results": [0, 1]}


def test_headers_and_keys_count_as_bytes() -> None:
    backlog = Backlog(10, 100)
    heavy = ConsumerRecord("tasks", 0, 0, 0, 0, b"k" * 60, b"", None, 60, 0, (("h", b"x" * 60),))
    backlog.put({TASKS: [heavy, heavy]})
    assert len(backlog.take(trusts).records[TASKS]) == 1


def test_every_record_is_taken_once_in_order_and_suspects_alone() -> None:
    suspicion = Suspicion()
    suspicion.suspect_until("tasks", 0, 3)
    backlog = Backlog(4, 1_000)
    backlog.put({TASKS: records(TASKS, 6), RESULTS: records(RESULTS, 6)})
    taken = portions(backlog, suspicion)
    for source in (TASKS, RESULTS):
        assert [record.offset for one in taken for record in one.records.get(source, ())] == list(range(6))
    assert [offsets(one) for one in taken if one.is_suspect] == [{"tasks": [0]}, {"tasks": [1]}, {"tasks": [2]}]
    assert not taken[1].is_suspect, "the other partitions go on between two suspects"


def test_what_another_life_had_in_hand_is_suspect_until_somebody_gets_past_it() -> None:
    suspicion = Suspicion()
    here = {("tasks", 0): 5, ("results", 0): 9, ("plans", 0): 0}
    suspicion.suspect_records(
        [
            RecordsInFlight("tasks", 0, 5, 7, "another life"),
            RecordsInFlight("results", 0, 5, 8, "another life"),
            RecordsInFlight("plans", 0, 0, 9, suspicion.life),
            RecordsInFlight("control", 0, 0, 9, "another life"),
        ],
        here,
    )
    (first, *_, last, beyond) = records(TASKS, 4, first=5)
    assert suspicion.is_suspect(first)
    assert suspicion.is_suspect(last)
    assert not suspicion.is_suspect(beyond)
    assert not suspicion.is_suspect(records(RESULTS, 1, first=9)[0]), "it was written before the process died"
    assert not suspicion.is_suspect(records(TopicPartition("plans", 0), 1)[0]), "this life has not ended"
    suspicion.passed(last)
    assert not suspicion.is_suspect(last)

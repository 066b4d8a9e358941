"""Partition p of all topics goes to one member where one has to own it, and members see when there are more."""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.coordinator.assignors.range import RangePartitionAssignor
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment

from triptych.kernel.kafka.assignor import Assignor

RANGES, ONE_OWNER = RangePartitionAssignor, Assignor(one_owner=True)


def given(assignor: Any, members: int, **partitions: int) -> dict[str, dict[str, list[int]]]:
    cluster = SimpleNamespace(
        partitions_for_topic=lambda name: set(range(partitions[name])) if partitions[name] else None
    )
    told = {f"executor-{number}": SimpleNamespace(subscription=list(partitions)) for number in range(members)}
    assigned = assignor.assign(cluster, told)
    return {name: {topic: own for topic, own in one.assignment if own} for name, one in assigned.items()}


@pytest.mark.parametrize("members", [1, 2, 3, 5])
@pytest.mark.parametrize("partitions", [1, 2, 4, 6])
def test_where_all_topics_have_as_many_partitions_it_gives_what_ranges_give(members: int, partitions: int) -> None:
    topics = {"tasks": partitions, "plans": partitions}
    assert given(ONE_OWNER, members, **topics) == given(RANGES, members, **topics)


@pytest.mark.parametrize("members", [1, 2, 3])
@pytest.mark.parametrize("topics", [{"tasks": 4, "plans": 2, "results": 2}, {"tasks": 0, "plans": 3, "results": 3}])
def test_topics_that_differ_still_have_one_owner_of_each_number(members: int, topics: dict[str, int]) -> None:
    owners: dict[int, set[str]] = defaultdict(set)
    taken = []
    for member, assigned in given(ONE_OWNER, members, **topics).items():
        for topic, partitions in assigned.items():
            taken += [(topic, partition) for partition in partitions]
            for partition in partitions:
                owners[partition].add(member)
    assert all(len(each) == 1 for each in owners.values())
    assert sorted(taken) == sorted((topic, each) for topic, count in topics.items() for each in range(count))


def test_workers_get_ranges_of_each_topic_by_itself() -> None:
    topics = {"calls.echo": 4, "withdrawals": 2}
    assert given(Assignor(), 4, **topics) == given(RANGES, 4, **topics)


@pytest.mark.parametrize("assignor", [Assignor(), ONE_OWNER])
def test_each_member_is_told_of_how_many_partitions_its_own_were_given_out(assignor: Assignor) -> None:
    cluster = SimpleNamespace(partitions_for_topic={"tasks": {0, 1}, "plans": None}.get)
    subscribed = SimpleNamespace(subscription=["tasks", "plans"])
    for assignment in assignor.assign(cluster, {"a": subscribed, "b": subscribed}).values():
        assignor.on_assignment(ConsumerProtocolMemberAssignment.decode(assignment.encode()))
        assert assignor.given_out == {"tasks": 2, "plans": 0}


@pytest.mark.parametrize("told", [b"", b"[]", b"no JSON"])
def test_a_leader_that_does_not_say_is_not_believed_to_say_none(told: bytes) -> None:
    assignor = Assignor()
    assignor.on_assignment(ConsumerProtocolMemberAssignment(0, [], told))
    assert assignor.given_out is None

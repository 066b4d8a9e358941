"""Fetch sessions: whatever is asked, lost or refused, a broker reads on where the consumer wants it to."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.errors import FetchSessionIdNotFound, InvalidFetchSessionEpoch, KafkaConnectionError
from aiokafka.protocol.fetch import FetchRequest, FetchRequest_v4, FetchRequest_v11
from hypothesis import given
from hypothesis import strategies as st

from triptych.kernel.kafka.fetch_session import FULL, NO_SESSION, FetchSession

MAX_BYTES = 1_000
PLACES = [(topic, partition) for topic in ("plans", "results") for partition in (0, 1)]


def fetch_of(positions: dict[tuple[str, int], int]) -> FetchRequest:
    topics: dict[str, list[tuple[int, int, int]]] = {}
    for (topic, partition), offset in positions.items():
        topics.setdefault(topic, []).append((partition, offset, MAX_BYTES))
    return FetchRequest(500, 1, 50_000, 1, list(topics.items()))


@dataclass
class Broker:
    """The part of a broker that keeps fetch sessions, as KIP-227 describes it."""

    reads: dict[tuple[str, int], int] = field(default_factory=dict)
    id: int = NO_SESSION
    epoch: int = FULL
    last_id: int = 0

    def take(self, request: Any) -> Any:
        if request.session_epoch == FULL:
            self.last_id += 1
            self.id, self.epoch, self.reads = self.last_id, 1, {}
        elif request.session_id != self.id:
            return self.answer(FetchSessionIdNotFound.errno)
        elif request.session_epoch != self.epoch:
            return self.answer(InvalidFetchSessionEpoch.errno)
        else:
            self.epoch += 1
        for topic, partitions in request.topics:
            self.reads |= {(topic, each[0]): each[2] for each in partitions}
        for topic, partitions in request.forgotten_topics_data:
            for partition in partitions:
                del self.reads[topic, partition]
        return self.answer(0)

    def answer(self, error_code: int) -> Any:
        session_id = self.id if not error_code else NO_SESSION
        topics = [(topic, [(partition, 0)]) for topic, partition in self.reads] if not error_code else []
        return SimpleNamespace(API_VERSION=11, error_code=error_code, session_id=session_id, topics=topics)


def fetch(session: FetchSession, broker: Broker, positions: dict[tuple[str, int], int], fate: str = "") -> Any:
    """Send one fetch: `fate` may lose it on its way, or its answer."""
    request = session.of(fetch_of(positions)).build(FetchRequest_v11)

    async def sent() -> Any:
        if fate == "request lost":
            raise KafkaConnectionError("cut")
        response = broker.take(request)
        if fate == "answer lost":
            raise KafkaConnectionError("cut")
        return response

    return asyncio.run(session.exchange(sent()))


def test_the_second_fetch_names_only_what_is_read_from_elsewhere():
    session, broker = FetchSession(), Broker()
    fetch(session, broker, dict.fromkeys(PLACES, 7))
    request = session.of(fetch_of(dict.fromkeys(PLACES, 7) | {("results", 1): 8})).build(FetchRequest_v11)
    assert (request.session_id, request.session_epoch) == (1, 1)
    assert request.topics == [("results", [(1, -1, 8, -1, MAX_BYTES)])]
    assert request.forgotten_topics_data == []


def test_a_partition_that_is_not_read_any_more_is_forgotten_by_the_broker():
    session, broker = FetchSession(), Broker()
    fetch(session, broker, dict.fromkeys(PLACES, 7))
    fetch(session, broker, {("plans", 0): 7})
    assert broker.reads == {("plans", 0): 7}


def test_the_reader_asks_with_all_its_partitions_in_hand():
    session = FetchSession()
    full = fetch_of(dict.fromkeys(PLACES, 7))
    asked = session.of(full)
    asked.build(FetchRequest_v11)
    assert asked.topics == full.topics


@pytest.mark.parametrize("fate", ["request lost", "answer lost"])
def test_after_a_doubt_everything_is_named_again(fate: str):
    session, broker = FetchSession(), Broker()
    fetch(session, broker, dict.fromkeys(PLACES, 7))
    with pytest.raises(KafkaConnectionError):
        fetch(session, broker, dict.fromkeys(PLACES, 8), fate)
    request = session.of(fetch_of(dict.fromkeys(PLACES, 9))).build(FetchRequest_v11)
    assert request.session_epoch == FULL
    assert sum(len(partitions) for _, partitions in request.topics) == len(PLACES)


def test_a_broker_that_has_forgotten_the_session_is_asked_for_another():
    session, broker = FetchSession(), Broker()
    fetch(session, broker, dict.fromkeys(PLACES, 7))
    broker.id = 99
    assert fetch(session, broker, dict.fromkeys(PLACES, 8)).topics == []
    assert (session.id, session.epoch) == (NO_SESSION, FULL)
    fetch(session, broker, dict.fromkeys(PLACES, 8))
    assert broker.reads == dict.fromkeys(PLACES, 8)


def test_an_old_broker_is_asked_without_a_session():
    request = FetchSession().of(fetch_of({("plans", 0): 7})).build(FetchRequest_v4)
    assert request.topics == [("plans", [(0, 7, MAX_BYTES)])]


def test_what_was_not_asked_for_does_not_reach_the_reader():
    session, broker = FetchSession(), Broker()
    fetch(session, broker, {("plans", 0): 7})
    broker.reads["results", 1] = 3
    response = fetch(session, broker, {("plans", 0): 7})
    assert response.topics == [("plans", [(0, 0)]), ("results", [])]


@given(
    st.lists(
        st.tuples(
            st.dictionaries(st.sampled_from(PLACES), st.integers(0, 3), min_size=1),
            st.sampled_from(["", "", "", "request lost", "answer lost", "evicted"]),
        ),
        max_size=12,
    )
)
def test_a_broker_that_answers_reads_exactly_what_was_asked(steps: list[tuple[dict[tuple[str, int], int], str]]):
    session, broker = FetchSession(), Broker()
    for positions, fate in steps:
        if fate == "evicted":
            broker.id, broker.reads = NO_SESSION, {}
        try:
            response = fetch(session, broker, positions, fate)
        except KafkaConnectionError:
            continue
        if not response.error_code:
            assert broker.reads == positions

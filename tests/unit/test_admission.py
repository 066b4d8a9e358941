"""Who may begin and who waits: bookkeeping without I/O, so the rules are tested as they are said."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from uuid import UUID

from hypothesis import example, given
from hypothesis import strategies as st

from triptych.kernel.decider.admission import (
    HEAD,
    AdmissionControl,
    AdmissionLimits,
    LimitKey,
    QueueKey,
    WaitingRun,
    share,
)

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def run(number: int) -> UUID:
    return UUID(int=number)


def in_queue(number: int, tenant: str = "acme", playbook: str = "p", partition: int = 0) -> WaitingRun:
    return WaitingRun(QueueKey(partition, tenant, playbook), NOON + timedelta(seconds=number), run(number))


def room_for(active_runs: int, *, partitions: int = 1, **limits: dict[str, int]) -> AdmissionControl:
    return AdmissionControl(AdmissionLimits(active_runs, **limits), partitions)


def test_a_run_that_finds_room_begins_at_once_and_one_that_does_not_waits() -> None:
    admission = room_for(1)
    assert admission.enter(run(1), QueueKey(0, "acme", "p"))
    assert not admission.enter(run(2), QueueKey(0, "globex", "p"))


def test_a_tenant_with_thousands_in_line_does_not_hold_up_another() -> None:
    admission = room_for(2)
    admission.enter(run(0), QueueKey(0, "flood", "p"))
    admission.enter(run(1), QueueKey(0, "flood", "p"))
    for number in range(2, 400):
        admission.enqueue(in_queue(number, "flood"))
    admission.enqueue(in_queue(400, "quiet"))
    admission.release(run(0))
    assert admission.take(10) == [run(400)]


def test_the_oldest_of_a_tenant_is_the_first() -> None:
    admission = room_for(0 + 1)
    admission.load([], [in_queue(number, playbook=playbook) for number, playbook in ((1, "q"), (2, "p"), (3, "q"))])
    order = []
    while taken := admission.take(10):
        order.extend(taken)
        admission.release(taken[0])
    assert order == [run(1), run(2), run(3)]


def test_nobody_overtakes_who_waits_for_the_same_room() -> None:
    admission = room_for(10, tenants={"acme": 1})
    admission.enter(run(1), QueueKey(0, "acme", "p"))
    admission.enqueue(in_queue(2))
    admission.release(run(1))
    assert not admission.enter(run(3), QueueKey(0, "acme", "p"))
    assert admission.take(10) == [run(2)]


def test_who_waits_at_the_limit_of_a_playbook_does_not_hold_up_other_playbooks() -> None:
    admission = room_for(10, playbooks={"slow": 1})
    assert admission.enter(run(1), QueueKey(0, "acme", "slow"))
    assert not admission.enter(run(2), QueueKey(0, "acme", "slow"))
    admission.enqueue(in_queue(2, playbook="slow"))
    assert admission.enter(run(3), QueueKey(0, "acme", "quick"))
    assert admission.take(10) == []
    admission.release(run(1))
    assert admission.take(10) == [run(2)]


def test_a_tenant_without_a_limit_of_its_own_has_that_of_all_others() -> None:
    admission = room_for(10, tenants={"*": 1, "big": 2})
    assert [admission.enter(run(n), QueueKey(0, "small", "p")) for n in range(2)] == [True, False]
    assert [admission.enter(run(n), QueueKey(0, "big", "p")) for n in range(2, 5)] == [True, True, False]


def test_a_run_that_was_to_begin_and_was_not_committed_gives_its_room_back() -> None:
    admission = room_for(1)
    admission.enter(run(1), QueueKey(0, "acme", "p"))
    admission.cancel_unconfirmed()
    assert admission.active == 0
    admission.enter(run(2), QueueKey(0, "acme", "p"))
    assert admission.confirm(run(2))
    admission.cancel_unconfirmed()
    assert admission.active == 1


def test_a_run_that_a_person_resumes_takes_room_above_the_limit() -> None:
    admission = room_for(1)
    admission.enter(run(1), QueueKey(0, "acme", "p"))
    assert not admission.confirm(run(2))
    admission.occupy(run(2), QueueKey(0, "acme", "p"))
    admission.release(run(1))
    assert not admission.enter(run(3), QueueKey(0, "acme", "p"))


def test_only_the_head_of_a_line_is_held_and_it_is_filled_again_in_order() -> None:
    admission = room_for(1)
    admission.enter(run(0), QueueKey(0, "acme", "p"))
    everyone = [in_queue(number) for number in range(1, 3 * HEAD)]
    for waiting in everyone:
        admission.enqueue(waiting)
    (head,) = admission._heads.values()
    order: list[UUID] = []
    admission.release(run(0))
    while taken := admission.take(10):
        assert len(head.known) <= HEAD
        order.extend(taken)
        admission.release(taken[0])
        if short := admission.short():
            left = [waiting for waiting in everyone if waiting.run_id not in order]
            admission.fill(short, left[:HEAD])
    assert order == [waiting.run_id for waiting in everyone]


def test_what_waits_on_a_partition_that_lost_its_share_goes_on_one_at_a_time() -> None:
    admission = room_for(10, partitions=4, tenants={"acme": 1})
    admission.load([], [in_queue(1, partition=3), in_queue(2, partition=3)])
    assert admission.take(10) == [run(1)]
    assert admission.take(10) == []
    assert not admission.enter(run(3), QueueKey(3, "globex", "p")) or admission.active == 2


@given(st.integers(1, 1_000), st.integers(1, 64))
def test_the_shares_of_a_limit_add_up_to_it(limit: int, partitions: int) -> None:
    shares = [share(limit, partition, partitions) for partition in range(partitions)]
    assert sum(shares) == limit
    assert max(shares) - min(shares) <= 1


@given(st.integers(1, 10), st.integers(1, 10), st.integers(1, 8))
def test_a_task_belongs_on_a_partition_that_has_a_share_of_every_limit(
    tenant: int, playbook: int, partitions: int
) -> None:
    admission = room_for(10, partitions=partitions, tenants={"*": tenant}, playbooks={"p": playbook})
    for partition in range(partitions):
        home = admission.home(LimitKey("acme", "p"), partition)
        assert share(tenant, home, partitions)
        assert share(playbook, home, partitions)
        assert admission.home(LimitKey("acme", "p"), home) == home


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=60), st.integers(1, 7))
def test_whoever_waits_has_as_many_active_as_others_but_one(tenants: list[str], room: int) -> None:
    """Max-min fairness: nobody is given a second place while someone who waits has fewer."""
    admission = room_for(room)
    admission.load([], [in_queue(number, tenant) for number, tenant in enumerate(tenants)])
    begun = [tenants[run_id.int] for run_id in admission.take(100)]
    assert len(begun) == min(room, len(tenants))
    active, asked = Counter(begun), Counter(tenants)
    for one in asked:
        if active[one] < asked[one]:
            assert all(active[one] >= active[other] - 1 for other in asked)


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("pq"), st.integers(0, 2)), max_size=80))
@example(
    [("a", "p", 0), ("a", "q", 2), ("b", "q", 2), *[("a", "q", 0)] * 2, ("a", "q", 2), ("a", "q", 1), ("b", "q", 1)]
)
def test_no_limit_is_ever_exceeded_and_room_is_never_left_to_waste(runs: list[tuple[str, str, int]]) -> None:
    limits = {"tenants": {"a": 4}, "playbooks": {"q": 5}}
    admission = room_for(8, partitions=3, **limits)
    queues: dict[UUID, QueueKey] = {}
    active: set[UUID] = set()
    for number, (tenant, playbook, came_in) in enumerate(runs):
        partition = admission.home(LimitKey(tenant, playbook), came_in)
        queues[run(number)] = QueueKey(partition, tenant, playbook)
        if admission.enter(run(number), queues[run(number)]):
            active.add(run(number))
        else:
            admission.enqueue(in_queue(number, tenant, playbook, partition))
        if number % 3 == 2 and active:
            gone = min(active)
            admission.release(gone)
            active.remove(gone)
            active.update(admission.take(100))
        assert len(active) == admission.active <= 8
        assert sum(queues[each].tenant == "a" for each in active) <= 4
        assert sum(queues[each].playbook == "q" for each in active) <= 5
    begun = set(active)
    while active:
        admission.release(active.pop())
        taken = admission.take(100)
        active.update(taken)
        begun.update(taken)
    assert not admission._heads, "somebody waits for ever"

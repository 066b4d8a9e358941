"""The plan of the nemesis: the same seed, the same faults; and none that contradicts another."""

from __future__ import annotations

from collections import Counter

import pytest

from triptych_chaos.plan import MAX_PROCESSES, SERVICES, Kind, instance_name, plan


def test_the_same_seed_gives_the_same_faults_and_another_seed_others() -> None:
    assert plan(7, 600, 3) == plan(7, 600, 3)
    assert plan(7, 600, 3) != plan(8, 600, 3)


@pytest.mark.parametrize("seed", range(20))
def test_two_minutes_have_a_fault_of_every_kind(seed: int) -> None:
    assert {fault.kind for fault in plan(seed, 120, 3.2)} == set(Kind)


def test_an_hour_has_a_thousand_faults() -> None:
    assert len(plan(1, 3_600, 3.2)) >= 1_000


@pytest.mark.parametrize("seed", range(10))
def test_nothing_strikes_a_process_that_stands_still(seed: int) -> None:
    for pause in (faults := [f for f in plan(seed, 1_800, 3) if f.kind is not Kind.SCALE]):
        if pause.kind is Kind.PAUSE:
            during = [f for f in faults if f.target == pause.target and 0 < f.at_s - pause.at_s < pause.seconds]
            assert during == []


def test_only_processes_that_there_are_are_struck() -> None:
    processes = Counter(dict.fromkeys(SERVICES, 1))
    for fault in plan(3, 3_600, 3):
        if fault.kind is Kind.SCALE:
            assert 1 <= fault.amount <= MAX_PROCESSES
            assert fault.amount != processes[fault.target]
            processes[fault.target] = int(fault.amount)
        elif fault.kind in (Kind.PAUSE, Kind.CLOCK):
            service, _, index = instance_name(fault.target).rpartition("-")
            assert int(index) <= processes[service]


def test_the_tool_that_is_called_back_is_struck_like_any_other_and_its_clock_stays_within_what_webhooks_allow() -> None:
    faults = [fault for seed in range(10) for fault in plan(seed, 1_800, 3) if fault.target.startswith("webhook")]
    assert {fault.kind for fault in faults} == {Kind.KILL, Kind.PAUSE, Kind.SCALE, Kind.CLOCK, Kind.CALLBACK_KILL}
    assert max(abs(fault.amount) for fault in faults if fault.kind is Kind.CLOCK) < 300

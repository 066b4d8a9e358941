"""The breaker: when it opens, whom it lets through, and whose word counts."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from triptych.tools.guard.breaker import Breaker, BreakerOpenError
from triptych.tools.sdk.guard import BreakerPolicy

POLICY = BreakerPolicy(failures=2, open_ms=0)
PATIENT = BreakerPolicy(failures=2, open_ms=60_000)


def opened(policy: BreakerPolicy) -> Breaker:
    breaker = Breaker(policy)
    for _ in range(policy.failures):
        breaker.record(breaker.admit(), failed=True)
    return breaker


def test_failures_in_a_row_open_it_and_a_success_in_between_does_not():
    breaker = Breaker(PATIENT)
    for failed in (True, False, True):
        breaker.record(breaker.admit(), failed=failed)
    assert not breaker.is_open
    breaker.record(breaker.admit(), failed=True)
    assert breaker.is_open


def test_an_open_breaker_admits_nobody_and_says_for_how_long():
    breaker = opened(PATIENT)
    with pytest.raises(BreakerOpenError) as caught:
        breaker.admit(datetime.now(UTC) + timedelta(seconds=20))
    assert 30_000 < caught.value.retry_after_ms <= 40_000


def test_a_clock_that_is_set_back_holds_no_breaker_open():
    breaker = opened(PATIENT)
    assert breaker.admit(datetime.now(UTC) - timedelta(hours=1)).is_probe


def test_afterwards_it_admits_one_probe_at_a_time():
    breaker = opened(POLICY)
    probe = breaker.admit()
    with pytest.raises(BreakerOpenError):
        breaker.admit()
    breaker.record(probe, failed=False)
    assert not breaker.admit().is_probe


def test_a_failed_probe_opens_it_again_and_the_next_probe_may_try():
    breaker = opened(POLICY)
    breaker.record(breaker.admit(), failed=True)
    assert breaker.is_open
    assert breaker.admit().is_probe


def test_a_cancelled_probe_makes_room_for_another():
    breaker = opened(POLICY)
    breaker.forget(breaker.admit())
    assert breaker.admit().is_probe


def test_a_result_from_before_the_opening_does_not_count():
    breaker = Breaker(POLICY)
    early = breaker.admit()
    for _ in range(2):
        breaker.record(breaker.admit(), failed=True)
    breaker.record(early, failed=False)
    assert breaker.is_open
    probe = breaker.admit()
    breaker.record(early, failed=False)
    with pytest.raises(BreakerOpenError):
        breaker.admit()
    breaker.record(probe, failed=False)

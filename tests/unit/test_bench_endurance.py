"""What the endurance run complains of: what still grows in its second half, and nothing that levels off."""

from __future__ import annotations

from triptych_bench.endurance import Tenth, complaints


def tenths(*outbox_mb: float, steps_per_s: float = 100.0) -> list[Tenth]:
    return [
        Tenth(
            runs=number * 100,
            steps_per_s=steps_per_s if number < len(outbox_mb) else 100.0,
            memory_mb={"executor": 80.0},
            table_mb={"executor.outbox": mb, "critic.jobs": 10.0 * number},
            live_rows={"executor.outbox": 0, "critic.jobs": 1_000 * number},
            dead_rows={},
        )
        for number, mb in enumerate(outbox_mb, start=1)
    ]


def test_a_table_that_levels_off_has_not_bloated():
    assert complaints(tenths(5, 9, 30, 40, 41, 40, 39, 42, 41, 40)) == []


def test_a_table_that_goes_on_growing_has_bloated():
    (told,) = complaints(tenths(2, 4, 6, 8, 10, 12, 14, 16, 18, 20))
    assert told == "executor.outbox: 10.0 MB at most in the first half and 20.0 at last"


def test_small_tables_may_double():
    assert complaints(tenths(1, 1, 1, 1, 1, 2, 2, 2, 2, 4)) == []


def test_jobs_are_kept_and_may_grow_as_long_as_a_row_takes_no_more():
    assert complaints(tenths(*[1.0] * 10)) == []


def test_runs_that_slow_down_are_told():
    (told,) = complaints(tenths(*[1.0] * 10, steps_per_s=120.0))
    assert told == "120 steps/s at first and 100 at last"

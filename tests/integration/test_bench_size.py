"""The benchmark of large tables fills a database and plays runs on it, with the product's own code."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import psycopg

from triptych_bench.size.__main__ import postgres
from triptych_bench.size.fill import fill
from triptych_bench.size.measure import BATCH, searches, subject

STEPS = 1_000


async def test_what_is_measured_can_be_done_again_and_again(tmp_path: Path) -> None:
    with postgres(tmp_path) as dsn:
        filled = await fill(dsn, "small", STEPS, lambda _done: None)
        async with subject(filled) as measured:
            for _ in range(2):
                await measured.live()
                await measured.trace()
            assert await measured.search("newest", searches(datetime.now(UTC))["newest"]) > 0
        with psycopg.connect(filled.owner_dsn) as connection:
            row = connection.execute(
                "select count(*), count(*) filter (where task_id like 'live-%' and status = 'succeeded')"
                " from executor.runs"
            ).fetchone()
    assert row == (STEPS // 5 + 1 + 2 * BATCH, 2 * BATCH)
    assert {name: len(times) for name, times in measured.times.items() if name in {"admission", "step", "trace"}} == {
        "admission": 2,
        "step": 10,
        "trace": 2,
    }

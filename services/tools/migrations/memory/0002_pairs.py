"""Words in texts without spaces. The SQL stands beside this file, under the same name."""

from __future__ import annotations

from pathlib import Path

from triptych.kernel.postgres.migrate import run_sql

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    run_sql(str(Path(__file__).parents[1] / "terms.sql"))
    run_sql(__file__)

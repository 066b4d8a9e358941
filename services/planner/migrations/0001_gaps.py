"""What the planner remembers of tools that plans wanted. The SQL stands beside this file, under the same name."""

from __future__ import annotations

from triptych.kernel.postgres.migrate import run_sql

revision = "0001"
down_revision = None


def upgrade() -> None:
    run_sql(__file__)

"""What each task says, as a hash. The SQL stands beside this file, under the same name."""

from __future__ import annotations

from triptych.kernel.postgres.migrate import run_sql

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    run_sql(__file__)

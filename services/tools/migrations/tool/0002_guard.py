"""What spares and watches a tool's upstream. The SQL stands beside this file, under the same name."""

from __future__ import annotations

from triptych.kernel.postgres.migrate import run_sql

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    run_sql(__file__)

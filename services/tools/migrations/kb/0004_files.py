"""Documents remember their files. The SQL stands beside this file, under the same name."""

from __future__ import annotations

from triptych.kernel.postgres.migrate import run_sql

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    run_sql(__file__)

"""Write down the records that a process reads if they may end it. The SQL is in the file beside this one."""

from __future__ import annotations

from triptych.kernel.postgres.migrate import run_sql

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    run_sql(__file__)

"""Write down the record that a process works on where that record may end the process. The SQL is beside this file."""

from __future__ import annotations

from triptych.kernel.postgres.migrate import run_sql

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    run_sql(__file__)

"""Activated versions of playbooks. The SQL stands beside this file, under the same name."""

from __future__ import annotations

from triptych.kernel.postgres.migrate import run_sql

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    run_sql(__file__)

"""What the meaning of a fact is compared by. It waits until the database has the extension vector.

The SQL stands beside this file, under the same name.
"""

from __future__ import annotations

from triptych.kernel.postgres.migrate import need_extension, run_sql

revision = "0001"
down_revision = None


def upgrade() -> None:
    need_extension("vector")
    run_sql(__file__)

"""`triptych down`: stop the embedded stack."""

from __future__ import annotations

from triptych.commands.common.options import DEFAULT_DATA, DataDir
from triptych.commands.common.output import err
from triptych.commands.common.stack import stop
from triptych.embedded.layout import Layout


def down(*, data: DataDir = DEFAULT_DATA) -> None:
    """Stop the services, then Kafka, then Postgres. The data stays."""
    root = Layout.existing(data).root
    err.print(stop(root) or f"No stack is running in {root}.")

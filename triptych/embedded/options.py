"""What `triptych up` was asked for, as it is handed to the supervisor."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict


class StackOptions(BaseModel):
    """What `triptych up` was asked for. It comes on standard input, since a DSN holds a password."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: Path
    topic_prefix: str
    config: Path
    kafka: str | None = None
    postgres: str | None = None
    playbooks: Path | None = None

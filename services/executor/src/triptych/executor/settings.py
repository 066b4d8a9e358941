"""What the executor needs to know beyond what every service does."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from triptych.kernel.settings import ServiceSettings


class ExecutorSettings(ServiceSettings):
    """Settings of the executor."""

    playbooks: Annotated[Path, Field(description="Folder of the playbooks (`*.yaml`) that tasks may name.")] = Path(
        "playbooks"
    )

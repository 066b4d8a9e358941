"""What the executor needs to know beyond what every service does."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from triptych.kernel.process.settings import ServiceSettings
from triptych.schemas import TASK_MAX_BYTES

MAX_ACTIVE_RUNS = 2_000
INPUT_MAX_BYTES = 262_144


class ExecutorSettings(ServiceSettings):
    """Settings of the executor."""

    playbooks: Annotated[Path, Field(description="Folder of the playbooks (`*.yaml`) that tasks may name.")] = Path(
        "playbooks"
    )
    max_active_runs: Annotated[
        int, Field(ge=1, description="Active runs in one process; more wait in a queue, so memory is bounded.")
    ] = MAX_ACTIVE_RUNS
    tenant_active_runs: Annotated[
        dict[str, Annotated[int, Field(ge=1)]] | None,
        Field(
            description='Active runs of a tenant in all processes together, as JSON: `{"acme": 50, "*": 200}`. '
            "`*` is every tenant that is not named; without it these have no limit."
        ),
    ] = None
    input_max_bytes: Annotated[
        int,
        Field(
            ge=1_024,
            le=TASK_MAX_BYTES,
            description="Bytes of a task whose playbook sets no `limits.input_bytes`; a larger one is rejected unread.",
        ),
    ] = INPUT_MAX_BYTES

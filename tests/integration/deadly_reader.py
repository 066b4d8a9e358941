"""A parrot in a process of its own, which ends while it reads a request that says so."""

from __future__ import annotations

import os
import signal
from typing import Any

from parrot import CONFIG, Parrot

from triptych.kernel.postgres.database import connect
from triptych.kernel.process.service import Service, run
from triptych.kernel.process.settings import ServiceSettings, load_settings
from triptych.kernel.worker import run_worker
from triptych.kernel.worker.intake import Intake

decode = Intake._decode


def deadly_decode(self: Any, record: Any, resolved: Any) -> Any:
    """Read a request, and die of a deadly one."""
    if b"DEADLY" in (record.value or b""):
        os.kill(os.getpid(), signal.SIGKILL)
    if b"EXHAUSTING" in (record.value or b""):
        raise MemoryError
    return decode(self, record, resolved)


Intake._decode = deadly_decode  # type: ignore[method-assign]


async def _serve(service: Service, settings: ServiceSettings) -> None:
    async with await connect(settings.postgres.get_secret_value(), settings.instance) as pool:
        await run_worker(service, settings, Parrot(only_reads=True), CONFIG, pool=pool)


if __name__ == "__main__":
    run("tool-echo", load_settings(ServiceSettings), _serve)

"""A parrot in a process of its own, which ends at once when it is told `die`. `python deadly.py MAX_DELIVERIES`."""

from __future__ import annotations

import os
import sys
from dataclasses import replace

from parrot import CONFIG, Parrot

from triptych.kernel.postgres.database import connect
from triptych.kernel.process.service import Service, run
from triptych.kernel.process.settings import ServiceSettings, load_settings
from triptych.kernel.worker import JobAttempt, run_worker
from triptych.schemas import CallRequest

KILLED = 9


async def _die(request: CallRequest, _attempt: JobAttempt) -> None:
    if request.arguments["value"] == "die":
        os._exit(KILLED)


async def _serve(service: Service, settings: ServiceSettings) -> None:
    config = replace(CONFIG, max_deliveries=int(sys.argv[1]))
    async with await connect(settings.postgres.get_secret_value(), settings.instance) as pool:
        await run_worker(service, settings, Parrot(_die, only_reads=True), config, pool=pool)


if __name__ == "__main__":
    run("tool-echo", load_settings(ServiceSettings), _serve)

"""A loop that stops makes the liveness probe fail, and a process that is not alive is killed and started again."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from triptych.embedded import supervised_process
from triptych.embedded.command import Command
from triptych.embedded.layout import Layout
from triptych.embedded.ports import HOST, Ports
from triptych.embedded.stack_spec import HealthStatus, ProcessKind, ProcessSpec
from triptych.embedded.supervised_process import ProcessState, SupervisedProcess
from triptych.kernel.process.log import configure_logging

SERVICE = """
import asyncio
from pathlib import Path
from triptych.kernel.process.service import Service, run
from triptych.kernel.process.settings import ServiceSettings, load_settings

async def body(service: Service, settings: ServiceSettings) -> None:
    service.health.expect("work", 0.5)
    service.health.started()
    while not Path("hang").exists():
        service.health.beat("work")
        await asyncio.sleep(0.05)
    Path("hang").unlink()
    await asyncio.Event().wait()

run("worker", load_settings(ServiceSettings), body)
"""


@pytest.fixture
async def process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[SupervisedProcess]:
    """A service with one loop, which hangs when there is a file `hang`."""
    monkeypatch.setattr(supervised_process, "_STEADY_INTERVAL_S", 0.1)
    layout = Layout.at(tmp_path)
    port = Ports(layout).of("worker")
    environment = {
        "TRIPTYCH_POSTGRES": "postgresql://nobody@localhost/none",
        "TRIPTYCH_HEALTH_PORT": str(port),
        "TRIPTYCH_SHUTDOWN_TIMEOUT_MS": "100",
    }
    command = Command((sys.executable, "-c", SERVICE), environment, directory=tmp_path)
    async with httpx.AsyncClient(timeout=1.0) as http:

        async def probe() -> HealthStatus:
            try:
                live = await http.get(f"http://{HOST}:{port}/health/live")
            except httpx.HTTPError:
                return HealthStatus(alive=False, ready=False)
            return HealthStatus(alive=live.is_success, ready=live.is_success, detail=live.text)

        log = configure_logging("error", "console", service="test")
        process = SupervisedProcess(
            ProcessSpec("worker", ProcessKind.SERVICE, command, probe), layout, log, lambda: None
        )
        await process.ready(30)
        yield process
        await process.stop()


async def started_again(
    process: SupervisedProcess, dead: int | None, monkeypatch: pytest.MonkeyPatch, eventually
) -> None:
    with monkeypatch.context() as impatient:
        impatient.setattr(supervised_process, "PATIENCE_S", 2.0)
        await eventually(lambda: process.pid != dead)
    await eventually(lambda: process.pid not in {None, dead} and process.state is ProcessState.READY)
    assert process.describe()["restarts"] == 1
    assert "SIGKILL" in process.describe()["last_error"]


async def test_a_process_whose_loop_hangs_says_so_and_is_started_again(
    process: SupervisedProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, eventually
) -> None:
    dead = process.pid
    (tmp_path / "hang").touch()
    await eventually(lambda: process.state is ProcessState.UNREADY)
    assert '"stuck":{"work":' in process.describe()["detail"]
    assert process.pid == dead, "it gets some time to go on by itself"
    await started_again(process, dead, monkeypatch, eventually)


async def test_a_process_that_answers_nothing_is_started_again(
    process: SupervisedProcess, monkeypatch: pytest.MonkeyPatch, eventually
) -> None:
    dead = process.pid
    assert dead is not None
    os.kill(dead, signal.SIGSTOP)
    await started_again(process, dead, monkeypatch, eventually)

"""A process that is stuck ends itself, whoever has started it; a process that was only put to sleep goes on."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from triptych.kernel.process.watchdog import EXIT_CODE
from triptych.schemas import codec

SERVICE = """
import asyncio, re, sys, time
from triptych.kernel.process.service import Service, run
from triptych.kernel.process.settings import ServiceSettings, load_settings

async def body(service: Service, settings: ServiceSettings) -> None:
    service.health.expect("work", 0.5)
    service.health.started()
    for _ in range(10):
        service.health.beat("work")
        await asyncio.sleep(0.05)
    {how}
    while not service.stopping.is_set():
        service.health.beat("work")
        await asyncio.sleep(0.05)

run("worker", load_settings(ServiceSettings), body)
"""
WITHIN_S = 60.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def process(how: str, port: int = 0, **settings: str) -> Iterator[subprocess.Popen[bytes]]:
    """A service that works for half a second and then does `how`."""
    environment = os.environ | {
        "TRIPTYCH_POSTGRES": "postgresql://nobody@localhost/none",
        "TRIPTYCH_HEALTH_PORT": str(port),
        "TRIPTYCH_STUCK_EXIT_MS": "1500",
        **settings,
    }
    command = [sys.executable, "-c", SERVICE.replace("{how}", how)]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) as running:
        try:
            yield running
        finally:
            running.kill()


def last_words(running: subprocess.Popen[bytes]) -> dict[str, object]:
    assert running.stderr is not None
    lines = [codec.decode(line) for line in running.stderr.read().splitlines()]
    return next(line for line in lines if "stuck" in line["event"])


@pytest.mark.parametrize(
    ("how", "loop", "where"),
    [
        ("await asyncio.Event().wait()", "work", None),
        ("time.sleep(600)", "event loop", "time.sleep(600)"),
    ],
)
def test_a_process_of_which_a_loop_is_stuck_ends_itself_and_says_which(how, loop, where):
    with process(how) as running:
        assert running.wait(WITHIN_S) == EXIT_CODE
        said = last_words(running)
    assert loop in said["loops"]
    assert (said["service"], said["level"]) == ("worker", "critical")
    assert where is None or where.partition("(")[0] in said["stack"] or "body" in said["stack"]


def test_what_holds_the_interpreter_is_ended_by_the_kernel():
    with process("re.match('(a+)+$', 'a' * 60 + 'b')") as running:
        assert running.wait(WITHIN_S) == -signal.SIGPROF


def test_a_process_that_is_stuck_in_writing_its_log_ends_all_the_same():
    with process("sys.stderr.write('x' * 10_000_000)") as running:  # nobody reads it
        assert running.wait(WITHIN_S) == EXIT_CODE


def test_a_process_that_was_put_to_sleep_goes_on():
    with process("print('works', file=sys.stderr, flush=True)") as running:
        assert running.stderr is not None
        assert any(b"works" in line for line in running.stderr)
        running.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, running.pid, os.WSTOPPED | os.WNOWAIT)
        time.sleep(4)  # far more than it may be stuck for; nothing happens in it that could be waited for
        running.send_signal(signal.SIGCONT)
        with pytest.raises(subprocess.TimeoutExpired):
            running.wait(4)
        running.send_signal(signal.SIGTERM)
        assert running.wait(WITHIN_S) == 0


def test_a_process_that_is_told_never_to_end_itself_does_not():
    with process("await asyncio.Event().wait()", TRIPTYCH_STUCK_EXIT_MS="0") as running:
        with pytest.raises(subprocess.TimeoutExpired):
            running.wait(5)
        running.send_signal(signal.SIGKILL)


def test_a_process_is_not_ready_while_a_loop_is_stuck():
    port = free_port()
    with process("await asyncio.Event().wait()", port, TRIPTYCH_STUCK_EXIT_MS="60000") as running:
        seen: list[tuple[int, str]] = []
        deadline = time.monotonic() + WITHIN_S
        while not (seen and seen[-1][0] == 503 and "no progress" in seen[-1][1]):
            assert time.monotonic() < deadline, seen[-3:]
            try:
                answer = httpx.get(f"http://127.0.0.1:{port}/health/ready", timeout=2)
            except httpx.TransportError:
                time.sleep(0.05)
            else:
                seen.append((answer.status_code, answer.text))
        assert running.poll() is None

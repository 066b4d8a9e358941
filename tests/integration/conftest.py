"""Servers that several integration tests share."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

START_WITHIN_S = 30


@pytest.fixture(scope="module")
def model_server() -> Iterator[str]:
    """The URL of a scripted model server of the module's own."""
    yield from _served("/health", "-m", "triptych.examples.model_server", "--port")


@pytest.fixture(scope="module")
def openapi_upstream() -> Iterator[str]:
    """The URL of an API that describes itself."""
    yield from _served("/openapi.json", str(Path(__file__).with_name("openapi_upstream.py")))


@pytest.fixture(scope="module")
def crm_server() -> Iterator[str]:
    """The URL of the demo's CRM."""
    yield from _served("/health", "-m", "triptych.examples.crm", "--port")


@pytest.fixture(scope="module")
def calendar_server() -> Iterator[str]:
    """The URL of the demo's calendar."""
    yield from _served("/health", "-m", "triptych.examples.calendar", "--port")


def _served(health: str, *command: str) -> Iterator[str]:
    """A server that takes its port as the last argument, until it is not needed any more."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with subprocess.Popen([sys.executable, *command, str(port)]) as process:
        try:
            deadline = time.monotonic() + START_WITHIN_S
            while not _answers(url + health):
                assert process.poll() is None, f"{command} ended with {process.returncode}"
                assert time.monotonic() < deadline, f"{command} did not answer at {url}"
                time.sleep(0.05)
            yield url
        finally:
            process.kill()


def _answers(url: str) -> bool:
    try:
        return httpx.get(url).is_success
    except httpx.TransportError:
        return False

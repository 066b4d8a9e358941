"""Servers that several integration tests share."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import httpx
import pytest

START_WITHIN_S = 30


@pytest.fixture(scope="module")
def model_server() -> Iterator[str]:
    """The URL of a scripted model server of the module's own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "triptych.examples.model_server", "--port", str(port)]
    with subprocess.Popen(command) as process:
        try:
            deadline = time.monotonic() + START_WITHIN_S
            while not _answers(url):
                assert process.poll() is None, f"the model server ended with {process.returncode}"
                assert time.monotonic() < deadline, f"the model server did not answer at {url}"
                time.sleep(0.05)
            yield url
        finally:
            process.kill()


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health").is_success
    except httpx.TransportError:
        return False

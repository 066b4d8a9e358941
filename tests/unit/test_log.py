"""What a log never holds, and that nobody can keep a process busy with what it is made to log."""

from __future__ import annotations

import subprocess
import sys

import pytest

from triptych.kernel.log import mask_secrets
from triptych.schemas import codec


def masked(text: str) -> str:
    return mask_secrets(None, "warning", {"error": text})["error"]


def test_the_password_of_a_dsn_is_masked_wherever_it_stands() -> None:
    text = "cannot reach postgresql://triptych:hunter2@db:5432/x, nor (amqp://a:b:c/d@host)"
    assert masked(text) == "cannot reach postgresql://triptych:***@db:5432/x, nor (amqp://a:***@host)"


@pytest.mark.timeout(60)
@pytest.mark.parametrize("piece", ["n", "a://", "a://b:", "a://b:c"])
def test_a_long_text_that_looks_like_a_dsn_takes_no_minutes(piece: str) -> None:
    text = piece * (200_000 // len(piece)) + " https://errors.example"
    assert masked(text) == text


ODD_LIBRARY = """
import asyncio, gc, logging, threading, warnings
from triptych.kernel.log import configure_logging, log_what_python_says

log_what_python_says()
log = configure_logging("info", "json", service="worker", instance="one")
log.info("ours")
logging.getLogger("aiokafka.conn").error("cannot connect to %s", "postgresql://me:hunter2@db/x")
try:
    raise ValueError("a library\\nof many lines")
except ValueError:
    logging.getLogger("httpx").exception("failed")
logging.getLogger("uvicorn.error").warning("a lone surrogate: \\ud800, %d", 2**70)
log.warning("odd", number=2**70, text="\\ud800", what=object())
warnings.warn("this is old", DeprecationWarning)
warnings.warn("look out")

async def story():
    async def dies():
        raise RuntimeError("nobody waits for me")
    task = asyncio.ensure_future(dies())
    await asyncio.sleep(0)
    del task
    gc.collect()
    asyncio.get_running_loop().call_exception_handler({"message": "a callback failed"})

asyncio.run(story())

class Dies:
    def __del__(self):
        raise KeyError("in a finalizer")

Dies()
thread = threading.Thread(target=lambda: 1 / 0, name="aside")
thread.start()
thread.join()
logging.getLogger("x").error("too few arguments: %s %s", 1)
raise RuntimeError("the end")
"""


def test_whatever_a_library_or_the_interpreter_says_is_json_with_the_fields_of_the_process() -> None:
    done = subprocess.run([sys.executable, "-c", ODD_LIBRARY], capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout == ""
    lines = [codec.decode(line) for line in done.stderr.splitlines()]
    said = " ".join(str(line) for line in lines)
    for words in (
        "ours",
        "cannot connect",
        "a library",
        "a lone surrogate",
        "odd",
        "look out",
        "nobody waits for me",
        "a callback failed",
        "in a finalizer",
        "ZeroDivisionError",
        "too few arguments",
        "the end",
    ):
        assert words in said, words
    assert "hunter2" not in said
    for line in lines:
        assert {"event", "level", "timestamp", "service", "instance"} <= line.keys(), line
    assert "Traceback" in next(line for line in lines if line.get("logger") == "httpx")["exception"]

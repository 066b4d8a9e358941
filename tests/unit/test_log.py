"""What a log never holds, and that nobody can keep a process busy with what it is made to log."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from triptych.embedded.layout import begin_log, last_lines
from triptych.kernel.process.log import mask_secrets
from triptych.kernel.process.log_file import KEPT, cut, open_log
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
from triptych.kernel.process.log import configure_logging, log_what_python_says

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


TALKER = """
import ctypes, logging, sys
from pathlib import Path
from triptych.kernel.process.log import configure_logging
from triptych.kernel.process.log_file import LogFile

log = configure_logging("info", "json", file=LogFile(Path(sys.argv[1]), 10_000), service="talker")
for number in range(int(sys.argv[2]), int(sys.argv[2]) + 100):
    log.info("ours", number=number, more="x" * 50)
    logging.getLogger("library").warning("%s", f"theirs {number}")
    print(f"printed {number}", flush=True)
"""


def talk(file: Path, first: int) -> None:
    subprocess.run([sys.executable, "-c", TALKER, str(file), str(first)], check=True, timeout=60)


def written(file: Path) -> str:
    """What a log and its older parts hold, the oldest first."""
    parts = sorted(file.parent.glob(f"{file.name}.*"), reverse=True)
    return "".join(part.read_text() for part in (*parts, file))


def test_a_log_is_shifted_by_its_size_and_goes_on_after_a_restart_without_losing_a_line(tmp_path: Path) -> None:
    file = tmp_path / "talker.log"
    talk(file, 0)
    talk(file, 100)
    said = written(file)
    assert len(list(tmp_path.iterdir())) > 2
    for number in range(200):
        for line in (f'"number":{number},', f'theirs {number}"', f"printed {number}\n"):
            assert said.count(line) == 1, line
    assert max(part.stat().st_size for part in tmp_path.iterdir()) < 11_000


def test_only_so_many_older_logs_stay(tmp_path: Path) -> None:
    file = tmp_path / "a.log"
    for number in range(KEPT + 3):
        with os.fdopen(open_log(file, 10), "a") as log:
            log.write(f"start {number}, and more\n")
    assert sorted(part.name for part in tmp_path.iterdir()) == ["a.log", *(f"a.log.{n}" for n in range(1, KEPT + 1))]
    assert written(file).splitlines()[0] == "start 2, and more"


def test_what_another_program_writes_is_cut_while_it_goes_on(tmp_path: Path) -> None:
    file = tmp_path / "server.log"
    with file.open("ab", buffering=0) as server:
        server.write(b"before\n" * 10)
        cut(file, 100)
        assert file.stat().st_size == 70, "it is not too large"
        cut(file, 50)
        server.write(b"after\n")
    assert file.read_bytes() == b"after\n"
    assert (tmp_path / "server.log.1").read_bytes() == b"before\n" * 10


def test_a_log_that_cannot_be_copied_for_want_of_room_stays_with_its_older_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_log: Path, copy: Path) -> None:
        copy.write_text("bef")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    file = tmp_path / "server.log"
    file.write_text("before\n" * 10)
    file.with_name("server.log.1").write_text("long before\n")
    monkeypatch.setattr(shutil, "copyfile", full)
    cut(file, 50)
    assert written(file) == "long before\n" + "before\n" * 10
    assert len(list(tmp_path.iterdir())) == 2


def test_a_restart_keeps_the_log_and_the_last_lines_are_those_since(tmp_path: Path) -> None:
    file = tmp_path / "a.log"
    for said in (b"the cause\n", b"again\n"):
        with begin_log(file) as log:
            log.write(said)
    assert last_lines(file) == "again"
    begin_log(file).close()
    assert last_lines(file) == "(the log is empty)"
    assert b"the cause" in file.read_bytes()


FULL_DISK = """
import os
from pathlib import Path
from triptych.kernel.process.log import configure_logging
from triptych.kernel.process.log_file import LogFile

log = configure_logging("info", "json", file=LogFile(Path("/dev/full"), 10_000), service="talker")
log.info("lost")
os._exit(7)
"""


def test_a_full_disk_costs_lines_of_the_log_and_no_process() -> None:
    done = subprocess.run([sys.executable, "-c", FULL_DISK], capture_output=True, check=False, timeout=60)
    assert done.returncode == 7


ODD_NAMES = r"""
from triptych.kernel.process.log import configure_logging
log = configure_logging("info", "console", service="worker")
log.warning("run escalated", task_id="t\x1b[2J\x9b31m\u202e", tenant="\n2026[error]forged")
"""


def test_a_name_of_somebody_else_neither_controls_a_terminal_nor_makes_a_line_of_its_own() -> None:
    done = subprocess.run([sys.executable, "-c", ODD_NAMES], capture_output=True, text=True, check=True, timeout=60)
    (line,) = done.stderr.splitlines()
    assert r"t\x1b[2J\x9b31m\u202e" in line
    assert line.isprintable()

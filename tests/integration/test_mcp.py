"""MCP servers as tools, with real servers in processes of their own: three public ones, and one that misbehaves."""

from __future__ import annotations

import asyncio
import functools
import getpass
import http.server
import json
import socket
import subprocess
import sys
import threading
import tomllib
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from ends import call_request, open_ends

import triptych.tools
from triptych.kernel.errors import ConfigurationError
from triptych.kernel.postgres.database import connect
from triptych.kernel.postgres.migrate import WORKER
from triptych.kernel.process.health import Health
from triptych.kernel.process.log import configure_logging
from triptych.kernel.process.service import Service
from triptych.kernel.process.settings import ServiceSettings
from triptych.schemas import Effect, ErrorCode, Result, ResultStatus, ToolContracts
from triptych.tools import Source, Tool
from triptych.tools.adapters.mcp import tool as bridge
from triptych.tools.adapters.mcp.listing import ask
from triptych.tools.adapters.mcp.options import McpOptions
from triptych.tools.runtime.process import serve
from triptych.tools.testing import Calls, running

MIGRATIONS = Path(triptych.tools.__file__).with_name("migrations")
DOUBLE = Path(__file__).with_name("mcp_double.py")
ME = getpass.getuser()
"""Most servers here write where only we may."""
TOKEN_ENV = "DOUBLE_TOKEN"  # noqa: S105 - a variable's name


async def added(directory: Path, name: str, **options: Any) -> Tool:
    """The tool of a server, after its contracts were pinned as `add` pins them."""
    source = Source(
        name, {"pins": f"{name}.mcp.json", **({"user": ME} if "command" in options else {}), **options}, directory
    )
    (directory / f"{name}.mcp.json").write_text((await ask(source, source.read(McpOptions))).text())
    return bridge(source)


@pytest.fixture(scope="module")
async def double(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Tool]:
    """Builds the tool of the double, whose contracts were pinned once."""
    directory = tmp_path_factory.mktemp("pins")
    await added(directory, "double", command=[sys.executable, str(DOUBLE), str(directory)])

    def build(folder: Path, **options: Any) -> Tool:
        command = [sys.executable, str(DOUBLE), str(folder)]
        pins = str(directory / "double.mcp.json")
        return bridge(Source("double", {"pins": pins, "command": command, "user": ME, **options}, folder))

    return build


@pytest.fixture(scope="module")
async def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the double that most tests share says what happened to it."""
    return tmp_path_factory.mktemp("double")


@pytest.fixture(scope="module")
async def call(double: Callable[..., Tool], folder: Path) -> AsyncIterator[Calls]:
    """Calls to a double that most tests share."""
    async with running(double(folder)) as calls:
        yield calls


def error_of(result: Result) -> tuple[ErrorCode, str]:
    assert result.error is not None, result
    return result.error.code, result.error.message


def effects(tool: Tool) -> dict[str, Effect]:
    return {name.partition(".")[2]: each.contract.effect for name, each in tool.operations.items()}


async def test_the_time_server_answers_with_data_in_the_form_that_it_promised(tmp_path: Path) -> None:
    tool = await added(tmp_path, "time", command=[sys.executable, "-m", "mcp_server_time"])
    assert effects(tool) == {"get_current_time": Effect.READ, "convert_time": Effect.READ}
    async with running(tool) as call:
        now = await call("get_current_time", {"timezone": "Europe/Vienna"})
        nowhere = await call("get_current_time", {"timezone": "Mars/Olympus"})
        invented = await call("get_current_time", {"tz": "Europe/Vienna"})
    assert now.data["timezone"] == "Europe/Vienna"
    assert error_of(nowhere)[0] is ErrorCode.INVALID_ARGUMENTS
    assert "Mars/Olympus" in error_of(nowhere)[1]
    assert error_of(invented)[0] is ErrorCode.INVALID_ARGUMENTS


def git(repository: Path, *words: str) -> str:
    return subprocess.run(["git", "-C", repository, *words], check=True, capture_output=True, text=True).stdout


async def test_the_git_server_reads_and_writes_a_repository(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    repository.mkdir()
    git(repository, "init", ".")
    git(repository, "config", "user.name", "Ana")
    git(repository, "config", "user.email", "ana@example.com")
    (repository / "note.txt").write_text("hello\n")
    tool = await added(
        tmp_path, "git", command=[sys.executable, "-m", "mcp_server_git", "--repository", str(repository)]
    )
    assert {effects(tool)[name] for name in ("git_status", "git_log")} == {Effect.READ}
    assert effects(tool)["git_commit"] is Effect.ONCE
    async with running(tool) as call:
        here = {"repo_path": str(repository)}
        assert "note.txt" in (await call("git_status", here)).data["text"]
        assert (await call("git_add", here | {"files": ["note.txt"]})).status is ResultStatus.OK
        done = await call("git_commit", here | {"message": "Say hello"})
        elsewhere = await call("git_status", {"repo_path": "/"})
    assert done.status is ResultStatus.OK
    assert done.data["attachments"] == []
    assert git(repository, "log", "--format=%s") == "Say hello\n"
    assert elsewhere.status is ResultStatus.ERROR


async def test_the_fetch_server_reads_a_page(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text("<html><body><h1>Opening hours</h1><p>Nine to five.</p></body></html>")
    handler = functools.partial(_Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as site:
        threading.Thread(target=site.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{site.server_port}/page.html"
        command = [sys.executable, "-m", "mcp_server_fetch", "--ignore-robots-txt", "--allow-private-ips"]
        tool = await added(tmp_path, "fetch", command=command)
        async with running(tool) as call:
            page = await call("fetch", {"url": url})
            missing = await call("fetch", {"url": f"{url}.txt"})
        site.shutdown()
    assert "Nine to five." in page.data["text"]
    assert missing.status is ResultStatus.ERROR


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """A test says nothing of each request."""


async def test_results_have_one_fixed_form_where_the_server_promises_none(call: Calls) -> None:
    assert (await call("add", {"a": 2, "b": 3})) == Result.ok({"total": 5})
    assert (await call("picture", {})).data == {
        "text": "A dot.",
        "attachments": [{"type": "image", "data": "aGk=", "mimeType": "image/png"}],
    }
    assert (await call("nothing", {})) == Result.empty()


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ("429 Too Many Requests", ErrorCode.RATE_LIMITED),
        ("Unauthorized: log in first", ErrorCode.UNAUTHENTICATED),
        ("You are not permitted to do that", ErrorCode.FORBIDDEN),
        ("upstream timed out", ErrorCode.TIMEOUT),
        ("connection refused", ErrorCode.UNAVAILABLE),
        ("no such customer", ErrorCode.INVALID_ARGUMENTS),
        ("it went wrong", ErrorCode.INTERNAL),
    ],
)
async def test_what_a_tool_says_of_its_failure_becomes_a_code(call: Calls, said: str, code: ErrorCode) -> None:
    result = await call("fail", {"why": said})
    assert error_of(result)[0] is code
    assert "effect" not in result.error.details, "a failed write may have happened: words do not undo it"


async def test_neither_pages_nor_traces_of_a_server_reach_the_model(call: Calls) -> None:
    page = await call("fail", {"why": "<!doctype html><body>Oops</body>"})
    trace = await call("fail", {"why": 'Boom\nTraceback (most recent call last):\n  File "secret.py"'})
    assert "Oops" not in error_of(page)[1]
    assert error_of(trace)[1].endswith("Boom")


async def test_a_server_that_wants_a_person_gets_none(call: Calls) -> None:
    code, message = error_of(await call("ask", {}))
    assert code is ErrorCode.CONTRACT_VIOLATION
    assert "no attempt has one" in message


async def test_at_the_time_limit_the_server_is_told_to_stop(call: Calls, folder: Path, eventually: Any) -> None:
    assert error_of(await call("slow", {"seconds": 600}, timeout_ms=300))[0] is ErrorCode.TIMEOUT
    await eventually((folder / "cancelled").exists)
    (folder / "cancelled").unlink()


async def test_a_cancelled_call_is_cancelled_on_the_server(call: Calls, folder: Path, eventually: Any) -> None:
    (folder / "begun").unlink()
    waiting = asyncio.create_task(call("slow", {"seconds": 600}))
    await eventually((folder / "begun").exists)
    waiting.cancel()
    await asyncio.wait({waiting})
    assert waiting.cancelled()
    await eventually((folder / "cancelled").exists)


async def test_a_server_that_dies_is_started_again_and_calls_are_unavailable_meanwhile(
    double: Callable[..., Tool], tmp_path: Path, eventually: Any
) -> None:
    async with running(double(tmp_path)) as call:
        assert error_of(await call("die", {}))[0] is ErrorCode.UNAVAILABLE
        assert (tmp_path / "died").exists()
        code, message = error_of(await call("add", {"a": 1, "b": 1}))
        assert code is ErrorCode.UNAVAILABLE
        assert "not there" in message

        async def adds() -> bool:
            return (await call("add", {"a": 1, "b": 1})).status is ResultStatus.OK

        await eventually(adds)


async def test_a_compatible_change_is_taken_over_and_a_new_tool_is_not_offered(
    double: Callable[..., Tool], tmp_path: Path, eventually: Any
) -> None:
    tool = double(tmp_path)
    async with running(tool) as call:
        await call("change", {"how": "wider"})
        await eventually(tool.changed.is_set)
        assert "c" in tool.operations["double.add"].contract.arguments["properties"]
        assert (await call("add", {"a": 1, "b": 2, "c": 3})).data == {"total": 6}
    assert "double.brand_new" not in tool.operations


@pytest.mark.parametrize(("how", "told"), [("narrower", "arguments: c: the field is"), ("gone", "does not offer it")])
async def test_a_breaking_change_is_refused_with_the_difference(
    double: Callable[..., Tool], tmp_path: Path, eventually: Any, how: str, told: str
) -> None:
    tool = double(tmp_path)
    pinned = tool.contracts
    async with running(tool) as call:
        await call("change", {"how": how})

        async def refused() -> bool:
            # Until it has been listed again, the server itself refuses the call.
            error = (await call("add", {"a": 1, "b": 2})).error
            return error is not None and error.code is ErrorCode.CONTRACT_VIOLATION

        await eventually(refused)
        result = await call("add", {"a": 1, "b": 2})
    code, message = error_of(result)
    assert code is ErrorCode.CONTRACT_VIOLATION
    assert told in message
    assert tool.contracts == pinned, "what was pinned is what is announced"


async def test_the_idempotency_key_goes_where_the_server_wants_it_and_no_planner_sees_it(
    double: Callable[..., Tool], tmp_path: Path
) -> None:
    tool = double(tmp_path, operations={"send_note": {"key_argument": "client_token"}}, only=["send_note"])
    (operation,) = tool.operations.values()
    assert set(operation.contract.arguments["properties"]) == {"text"}
    async with running(tool) as call:
        assert (await call("send_note", {"text": "hi"}, idempotency_key="k-1")).data == {"result": "sent hi"}
    assert (tmp_path / "notes").read_text() == "k-1 hi\n"


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """The double over streamable HTTP."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with subprocess.Popen([sys.executable, str(DOUBLE), str(tmp_path), str(port)]) as process:
        try:
            while True:
                try:
                    httpx.get(f"http://127.0.0.1:{port}/")
                    break
                except httpx.TransportError:
                    assert process.poll() is None
            yield f"http://127.0.0.1:{port}/mcp"
        finally:
            process.kill()


async def test_over_http_a_token_is_sent_and_statuses_are_told_apart(
    tmp_path: Path, served: str, monkeypatch: pytest.MonkeyPatch, eventually: Any
) -> None:
    monkeypatch.setenv(TOKEN_ENV, "s3cret-token")
    tool = await added(tmp_path, "far", url=served, token_env=TOKEN_ENV)
    async with running(tool) as call:
        assert (await call("add", {"a": 2, "b": 3})).data == {"total": 5}
        (tmp_path / "busy").touch()
        busy = await call("add", {"a": 2, "b": 3})
        assert error_of(busy)[0] is ErrorCode.RATE_LIMITED
        assert busy.error.retry_after_ms == 7_000
        (tmp_path / "busy").unlink()
        assert error_of(await call("slow", {"seconds": 600}, timeout_ms=300))[0] is ErrorCode.TIMEOUT
        await eventually((tmp_path / "cancelled").exists)
        assert error_of(await call("die", {}))[0] is ErrorCode.UNAVAILABLE
        assert error_of(await call("add", {"a": 2, "b": 3}))[0] is ErrorCode.UNAVAILABLE


async def test_a_wrong_token_is_an_identity_problem_and_is_never_shown(
    tmp_path: Path, served: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TOKEN_ENV, "wrong-token-1")
    with pytest.raises(ConfigurationError, match="401") as caught:
        await added(tmp_path, "far", url=served, token_env=TOKEN_ENV)
    assert "wrong-token-1" not in str(caught.value)


CONFIG = """# What a person wrote.
[tools.model]  # stays
adapter = "triptych.tools.adapters.model:tool"
"""


def test_the_command_adds_a_server_once_and_says_what_it_left_out(tmp_path: Path) -> None:
    (tmp_path / "triptych.toml").write_text(CONFIG)

    def add(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "triptych", "tools", "add", "mcp", *words, "--", "mcp-server-time"]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    done = add("--name", "clock", "--only", "convert_time", "--effect", "convert_time=idempotent", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert [(each["operation"], each["effect"]) for each in report["operations"]] == [
        ("clock.convert_time", "idempotent")
    ]
    assert report["left_out"] == [{"name": "get_current_time", "why": "not among `only`"}]
    written = (tmp_path / "triptych.toml").read_text()
    assert written.startswith(CONFIG)
    assert list(bridge(Source("clock", tomllib.loads(written)["tools"]["clock"]["options"], tmp_path)).operations) == [
        "clock.convert_time"
    ]
    again = add("--name", "clock")
    assert again.returncode == 1
    assert "--replace" in again.stderr
    unknown = add("--name", "other", "--only", "nothing")
    assert unknown.returncode == 2
    assert "the server offers no nothing, only convert_time, get_current_time" in unknown.stderr


def test_a_server_that_cannot_be_asked_is_told_with_the_cure(tmp_path: Path) -> None:
    (tmp_path / "triptych.toml").write_text(CONFIG)

    def told(*words: str) -> str:
        command = [sys.executable, "-m", "triptych", "tools", "add", "mcp", "--name", "notes", *words]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        return done.stderr

    assert "needs NOTES_TOKEN, and it is not set" in told("--token-env", "NOTES_TOKEN", "http://127.0.0.1:1/mcp")
    assert "answers at false: MCPError: Connection closed; run it by hand" in told("--", "false")
    assert (tmp_path / "triptych.toml").read_text() == CONFIG


async def test_through_a_real_worker_calls_are_answered_and_changed_contracts_are_announced(
    *,
    double: Callable[..., Tool],
    tmp_path: Path,
    servers: Any,
    prefix: str,
    database: Any,
    create_topics: Any,
    eventually: Any,
) -> None:
    await create_topics("calls.double", "results", "dead-letters")
    await create_topics("contracts", partitions=1)
    dsn = database.prepare({"tool_double": (WORKER, MIGRATIONS / "tool")}).services["tool_double"]
    settings = ServiceSettings(kafka=servers.kafka, postgres=dsn, topic_prefix=prefix, shutdown_timeout_ms=4_000)
    tool = double(tmp_path)
    service = Service("tool-double", configure_logging("warning", "console"), Health("double", "1"), asyncio.Event())
    async with await connect(dsn, "test") as pool, open_ends(settings, pool, "contracts") as ends:
        working = asyncio.create_task(serve(service, settings, tool, None))

        async def answer(operation: str, arguments: dict[str, Any], **changes: Any) -> Result:
            contract = tool.operations[f"double.{operation}"].contract
            fields = {"contract_hash": contract.hash, "timeout_ms": contract.timeout_ms} | changes
            one = call_request(contract.operation, arguments=arguments, **fields)
            await ends.ask(one)
            return (await ends.answer_to(one)).result

        def announced() -> list[ToolContracts]:
            return [ToolContracts.model_validate_json(record.value) for record in ends.others]

        assert await answer("add", {"a": 2, "b": 3}) == Result.ok({"total": 5})
        planned_before = tool.operations["double.add"].contract_hash
        assert (await answer("change", {"how": "wider"})).status is ResultStatus.OK
        await eventually(lambda: len(announced()) == 2)
        assert await answer("add", {"a": 1, "b": 2, "c": 3}) == Result.ok({"total": 6})
        assert await answer("add", {"a": 2, "b": 3}, contract_hash=planned_before) == Result.ok({"total": 5})
        assert (await answer("change", {"how": "gone"})).status is ResultStatus.OK
        alert = "select message from alerts where (operation, kind) = ('double.add', 'drift') and closed_at is null"

        async def is_told() -> bool:
            # Before that, the other words of the wider tool were told in the same row.
            return "does not offer it" in (await pool.fetchval(alert) or "")

        await eventually(is_told)
        service.stopping.set()
        await working
    before, after = announced()
    assert before != after == tool.contracts

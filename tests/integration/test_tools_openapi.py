"""A real HTTP API becomes a tool through the command line, and is called through the runtime."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from triptych.commands.main import app
from triptych.embedded.config import StackConfig
from triptych.kernel.errors import ConfigurationError
from triptych.schemas import Effect, ErrorCode, Result, ResultStatus
from triptych.tools import Call, Resources, Source, Tool, ToolFailure
from triptych.tools.adapters.openapi import tool as openapi_tool
from triptych.tools.sdk.guard import Guard
from triptych.tools.testing import call, request_for

KEY = "s3cret-of-the-upstream"


@pytest.fixture(scope="module")
def upstream(openapi_upstream: str) -> str:
    return openapi_upstream


def triptych(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["tools", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("project") / "triptych.toml"
    file.write_text('# mine\n[tools.echo]\nadapter = "triptych.tools.adapters.echo:tool"\n\n# theirs\n[processes]\n')
    return file


@pytest.fixture(scope="module")
def report(upstream: str, config: Path) -> dict[str, Any]:
    """What `add` says of the upstream's own document."""
    told = triptych("add", "openapi", f"{upstream}/openapi.json", "--name", "shop", "--config", str(config), "--json")
    read: dict[str, Any] = json.loads(told)
    return read


@pytest.fixture
def shop(report: dict[str, Any], config: Path, monkeypatch: pytest.MonkeyPatch) -> Tool:
    assert report["tool"] == "shop"
    monkeypatch.setenv("SHOP_KEY", KEY)
    return built(config)


def built(config: Path, **more: Any) -> Tool:
    table = StackConfig.load(config).table.tools["shop"]
    return openapi_tool(Source("shop", {**table.options, **more}, config.parent))


# Adding


def test_adding_reports_every_operation_and_stores_the_document_beside_the_configuration(
    report: dict[str, Any], config: Path, upstream: str
) -> None:
    assert report["operations"] == len(report["generated"]) == 16
    assert report["left_out"] == []
    assert report["variables"] == ["SHOP_KEY"]
    assert json.loads((config.parent / "tools/shop.openapi.json").read_text())["info"]["title"] == "Upstream"
    text = config.read_text()
    assert text.index("[tools.shop]") < text.index("# theirs")
    assert StackConfig.load(config).table.tools["shop"].options == {
        "spec": "tools/shop.openapi.json",
        "source": f"{upstream}/openapi.json",
        "auth": {"kind": "api_key", "name": "X-Api-Key", "key_env": "SHOP_KEY"},
        "hosts": [upstream],
    }


def test_a_name_that_is_taken_is_refused_unless_it_is_to_be_replaced(
    report: dict[str, Any], config: Path, upstream: str
) -> None:
    again = ("add", "openapi", f"{upstream}/openapi.json", "--name", "shop", "--config", str(config))
    before = config.read_text()
    refused = CliRunner().invoke(app, ["tools", *again])
    assert refused.exit_code == 1
    assert "--replace" in str(refused.exception)
    triptych(*again, "--dry-run")
    assert config.read_text() == before
    triptych(*again, "--replace")
    assert config.read_text() == before


def test_a_document_whose_contracts_do_not_fit_into_a_message_is_refused_with_the_cure(tmp_path: Path) -> None:
    answer = {"200": {"content": {"application/json": {"schema": {"enum": [f"{n:090000}" for n in range(10)]}}}}}
    paths = {f"/{n}": {"get": {"responses": answer}} for n in range(10)}
    document = {"openapi": "3.1.0", "info": {}, "servers": [{"url": "http://127.0.0.1"}], "paths": paths}
    (tmp_path / "large.json").write_text(json.dumps(document))
    (tmp_path / "triptych.toml").touch()
    command = ["tools", "add", "openapi", str(tmp_path / "large.json"), "--name", "large"]
    command += ["--config", str(tmp_path / "triptych.toml"), "--json"]
    refused = CliRunner().invoke(app, command)
    assert "--include" in str(refused.exception)
    assert not (tmp_path / "tools").exists()
    some = CliRunner().invoke(app, [*command, "--include", "GET /[1-3]", "--rate", "60/min"], catch_exceptions=False)
    assert [each["path"] for each in json.loads(some.stdout)["generated"]] == ["/1", "/2", "/3"]
    assert StackConfig.load(tmp_path / "triptych.toml").table.tools["large"].guard == Guard(rate="60/min")


def test_ls_and_show_tell_what_a_configuration_offers(report: dict[str, Any], config: Path) -> None:
    listed = json.loads(triptych("ls", "--config", str(config), "--json"))
    assert [tool["tool"] for tool in listed] == ["echo", "shop"]
    (order,) = json.loads(triptych("show", "shop.place_order", "--config", str(config), "--json"))
    assert order["effect"] == "idempotent"
    assert list(order["arguments"]["$defs"]) == ["Line", "Order"]
    assert "shop.place_order" in triptych("ls", "--config", str(config))
    assert "effect idempotent" in triptych("show", "shop.place_order", "--config", str(config))


# Calling


async def test_every_style_of_a_parameter_arrives_as_openapi_has_it(shop: Tool) -> None:
    arguments = {
        "id": "a/b c",
        "labels": ["x", "y"],
        "matrix": ["1", "2"],
        "id_in_query": "ü&=",
        "tags": ["red", "blue"],
        "sizes": [1, 2],
        "piped": ["p", "q"],
        "filter": {"state": "open", "by": "ana"},
        "json": {"a": "1"},
        "X-Trace": ["t1", "t2"],
        "theme": "dark",
    }
    result = await call(shop, "echo_everything", arguments)
    assert result.status is ResultStatus.OK, result
    assert result.data["path"] == "/items/a%2Fb%20c/.x.y/;matrix=1,2"
    assert result.data["query"] == [
        ["id", "ü&="], ["tags", "red"], ["tags", "blue"], ["sizes", "1,2"], ["piped", "p|q"],
        ["filter[state]", "open"], ["filter[by]", "ana"], ["json", '{"a":"1"}'],
    ]  # fmt: skip
    assert result.data["headers"]["x-trace"] == "t1,t2"
    assert result.data["cookies"] == {"theme": "dark"}


async def test_a_write_sends_its_key_and_a_repeat_is_the_same_write(shop: Tool) -> None:
    order = {"customer": "C-1", "cents": 100, "follows": {"customer": "C-2", "cents": 1}}
    first = await call(shop, "place_order", {"body": order}, idempotency_key="k-1")
    second = await call(shop, "place_order", {"body": order}, idempotency_key="k-1")
    assert first.data["number"] == second.data["number"]
    assert second.data["requests"] == 2


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"body": {"customer": "C-1"}}, "cents"),
        ({"body": {"customer": "C-1", "cents": 1, "follows": {"cents": "much"}}}, "arguments.body.follows"),
        ({"body": {"customer": "C-1", "cents": 1}, "invented": 1}, "invented"),
        ({}, "body"),
    ],
)
async def test_arguments_that_do_not_fit_never_leave_the_house(
    shop: Tool, arguments: dict[str, Any], told: str
) -> None:
    refused = await call(shop, "place_order", arguments, idempotency_key="never-sent")
    assert refused.error is not None
    assert refused.error.code is ErrorCode.INVALID_ARGUMENTS
    assert told in refused.error.message
    assert (await call(shop, "find_order", {"key": "never-sent"})).status is ResultStatus.EMPTY


@pytest.mark.parametrize("name", ["..", ".", ""])
async def test_an_argument_cannot_change_where_a_request_goes(shop: Tool, name: str) -> None:
    refused = await call(shop, "get_orders_number", {"number": name})
    assert refused.error is not None
    assert refused.error.code is ErrorCode.INVALID_ARGUMENTS


async def test_a_line_break_cannot_stand_in_a_header(shop: Tool) -> None:
    arguments = {"id": "a", "labels": ["x"], "matrix": ["1"], "X-Trace": ["a\r\nX-Api-Key: mine"]}
    refused = await call(shop, "echo_everything", arguments)
    assert refused.error is not None
    assert refused.error.code is ErrorCode.INVALID_ARGUMENTS


async def test_the_address_may_stand_in_a_variable(
    shop: Tool, config: Path, upstream: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = built(config, base_url_env="SHOP_URL")
    with pytest.raises(ConfigurationError, match="tool shop needs SHOP_URL"):
        await call(tool, "text", {})
    monkeypatch.setenv("SHOP_URL", f"{upstream}/")
    assert await call(tool, "text", {}) == Result.ok("näh")


async def test_forms_and_files_arrive(shop: Tool) -> None:
    form = await call(shop, "send_form", {"body": {"name": "Ana & Co", "tags": ["a", "b"]}})
    assert form.data["body"] == [["name", "Ana & Co"], ["tags", "a"], ["tags", "b"]]
    file = {"filename": "a.csv", "content_type": "text/csv", "text": "x,y"}
    upload = await call(shop, "upload", {"body": {"note": "n", "file": file}})
    assert upload.data["body"] == [["note", "n"], ["file", ["a.csv", "text/csv", "x,y"]]]


async def test_answers_have_the_form_that_they_say(shop: Tool) -> None:
    assert await call(shop, "text", {}) == Result.ok("näh")
    assert await call(shop, "bytes", {}) == Result.ok({"content_type": "image/png", "base64": "iVBORw==", "bytes": 4})
    assert await call(shop, "remove", {"id": "1"}) == Result.ok(None)
    assert await call(shop, "get_orders_number", {"number": "O-99"}) == Result.empty()


@pytest.mark.parametrize(
    ("operation", "told"),
    [
        ("huge", "more than 4194304 bytes"),
        ("page", "text/html where JSON belongs"),
        ("lost", "404 Not Found: it states no reason"),
    ],
)
async def test_an_answer_that_breaks_the_contract_is_never_data(shop: Tool, operation: str, told: str) -> None:
    refused = await call(shop, operation, {})
    assert refused.error is not None
    assert refused.error.code is ErrorCode.CONTRACT_VIOLATION
    assert told in refused.error.message
    assert "<html" not in refused.error.message


async def test_an_answer_that_is_not_as_the_document_says_is_data_with_warnings_unless_an_option_says_otherwise(
    shop: Tool, config: Path
) -> None:
    passed = await call(shop, "wrong", {})
    assert (passed.status, passed.data) == (ResultStatus.OK, {"number": 7})
    assert "number" in {each.place for each in passed.warnings}
    refused = await call(built(config, operations={"wrong": {"result": "strict"}}), "wrong", {})
    assert refused.error is not None
    assert refused.error.code is ErrorCode.CONTRACT_VIOLATION
    assert "result.number" in refused.error.message


async def test_an_answer_of_200_that_is_an_error_by_its_own_account_is_one(shop: Tool, config: Path) -> None:
    assert (await call(shop, "sorry", {})).status is ResultStatus.OK
    failed = await call(built(config, operations={"sorry": {"success": "body.ok"}}), "sorry", {})
    assert failed.error is not None
    assert "out of order" in failed.error.message
    with pytest.raises(ConfigurationError, match=r"operations\.sorry\.success"):
        built(config, operations={"sorry": {"success": "answer.ok"}})


@pytest.mark.parametrize(
    ("status", "code"),
    [(400, "invalid_arguments"), (401, "unauthenticated"), (403, "forbidden"), (409, "conflict"), (429, "rate_limited"),
     (500, "unavailable"), (503, "unavailable")],
)  # fmt: skip
async def test_a_status_means_what_it_means_for_every_tool(shop: Tool, status: int, code: str) -> None:
    failed = await call(shop, "status", {"code": status})
    assert failed.error is not None
    assert failed.error.code == code
    assert failed.error.retry_after_ms == 2_000


async def test_a_deletion_that_is_made_again_and_finds_nothing_has_worked(shop: Tool) -> None:
    first = request_for(shop, "remove", {"id": "gone"})
    again = first.model_copy(update={"attempt": 2})
    operation = shop.operations["shop.remove"]
    async with shop.lifespan(Resources(None, None)) as state:
        with pytest.raises(ToolFailure, match="not_found"):
            await operation.invoke(first.arguments, Call.of(first, state))
        assert await operation.invoke(again.arguments, Call.of(again, state)) == Result.ok(None)


# What became of a write whose answer was lost


async def test_a_lookup_tells_what_became_of_a_write_that_the_upstream_does_not_recognise(
    shop: Tool, config: Path
) -> None:
    lookup = {
        "operation": "find_order",
        "arguments": {"key": "${{ arguments.body.customer }}"},
        "found": "result.exists(each, each.order.cents == arguments.body.cents) ? result[0] : null",
    }
    tool = built(config, operations={"post_orders_unsafe": {"lookup": lookup}})
    order = {"customer": "C-lost", "cents": 5}
    placed = await call(tool, "post_orders_unsafe", {"body": order})
    operation = tool.operations["shop.post_orders_unsafe"]
    assert operation.contract.effect is Effect.ONCE
    async with tool.lifespan(Resources(None, None)) as state:

        def asked(arguments: dict[str, Any]) -> Call[Any]:
            return Call.of(request_for(tool, "post_orders_unsafe", arguments), state)

        assert await operation.ask_what_happened(asked({"body": order})) == placed
        assert await operation.ask_what_happened(asked({"body": {"customer": "C-none", "cents": 5}})) is None
        assert await operation.ask_what_happened(asked({"body": {"customer": "C-lost", "cents": 6}})) is None


@pytest.mark.parametrize(
    ("lookup", "told"),
    [
        ({"operation": "gone"}, "there is no gone"),
        ({"operation": "place_order"}, "place_order is not a read"),
        ({"operation": "find_order", "found": "results[0]"}, "found: .*results"),
        ({"operation": "find_order", "arguments": {"key": "${{ input.customer }}"}}, "arguments: .*input"),
    ],
)
def test_a_lookup_that_cannot_work_is_found_when_the_tool_is_built(
    shop: Tool, config: Path, lookup: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigurationError, match=f"post_orders_unsafe.lookup.*{told}"):
        built(config, operations={"post_orders_unsafe": {"lookup": lookup}})


# Credentials


async def test_a_wrong_key_is_unauthenticated_and_told_nowhere(
    report: dict[str, Any], config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOP_KEY", "wr0ng")
    refused = await call(built(config), "send_form", {"body": {"name": "Ana"}})
    assert refused.error is not None
    assert refused.error.code is ErrorCode.UNAUTHENTICATED
    assert "wr0ng" not in refused.model_dump_json()


@pytest.mark.parametrize(
    "auth",
    [
        {"kind": "api_key", "place": "query", "name": "key", "key_env": "SHOP_KEY"},
        {"kind": "api_key", "place": "cookie", "name": "key", "key_env": "SHOP_KEY"},
        {"kind": "basic", "username_env": "SHOP_USERNAME", "password_env": "SHOP_KEY"},
    ],
)
async def test_every_way_to_authenticate_is_understood(
    shop: Tool, config: Path, auth: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOP_USERNAME", "triptych")
    result = await call(built(config, auth=auth), "send_form", {"body": {"name": "Ana"}})
    assert result.status is ResultStatus.OK, result


async def test_a_token_that_nobody_gives_is_unauthenticated_and_nothing_was_done(
    shop: Tool, config: Path, upstream: str
) -> None:
    auth = {"kind": "client_credentials", "token_url": f"{upstream}/status/401", "client_id_env": "SHOP_KEY",
            "client_secret_env": "SHOP_KEY"}  # fmt: skip
    refused = (await call(built(config, auth=auth), "send_form", {"body": {"name": "Ana"}})).error
    assert refused is not None
    assert refused.code is ErrorCode.UNAUTHENTICATED
    assert refused.details["effect"] == "none"
    assert KEY not in refused.model_dump_json()


async def test_a_token_is_fetched_once_and_again_when_it_is_refused(
    report: dict[str, Any], config: Path, upstream: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOP_CLIENT_ID", "triptych")
    monkeypatch.setenv("SHOP_CLIENT_SECRET", "cl13nt-s3cret")
    auth = {"kind": "client_credentials", "token_url": f"{upstream}/token", "client_id_env": "SHOP_CLIENT_ID",
            "client_secret_env": "SHOP_CLIENT_SECRET", "scopes": ["orders"]}  # fmt: skip
    tool = built(config, auth=auth)
    first = await call(tool, "send_form", {"body": {"name": "Ana"}})
    assert first.data["headers"]["authorization"] == "Bearer token-1"
    async with httpx.AsyncClient() as client:
        await client.post(f"{upstream}/revoke")
    again = await call(tool, "send_form", {"body": {"name": "Ana"}})
    assert again.data["headers"]["authorization"] == "Bearer token-3"

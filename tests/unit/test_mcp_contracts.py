"""From an MCP server's tools to contracts: names, effects, schemas, and what is left out."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from mcp.types import CallToolResult

from triptych.kernel.errors import ConfigurationError
from triptych.playbook.loader import parse_playbook
from triptych.schemas import Contract, Effect
from triptych.tools import Source
from triptych.tools.adapters.mcp import tool as bridge
from triptych.tools.adapters.mcp.answers import data_of
from triptych.tools.adapters.mcp.contracts import CONTENT, NAME_MAX_CHARS, as_2020_12, mcp_operations, operation_names
from triptych.tools.adapters.mcp.options import McpOptions, Override
from triptych.tools.adapters.mcp.pins import PinnedTool
from triptych.tools.sdk.contract_diff import breaking_changes
from triptych.tools.sdk.failure import ToolFailure

OBJECT: dict[str, Any] = {"type": "object", "properties": {"id": {"type": "string"}}, "required": ["id"]}


def options(**more: Any) -> McpOptions:
    return McpOptions.model_validate({"pins": "x.mcp.json", "command": ["server"], **more})


def pinned(name: str = "get_user", **more: Any) -> PinnedTool:
    return PinnedTool.model_validate({"name": name, "inputSchema": OBJECT, **more})


def contract(**more: Any) -> Contract:
    (offer,), _ = mcp_operations("crm", [pinned(**more)], options())
    return offer.contract


@pytest.mark.parametrize(
    ("name", "operation"),
    [
        ("get_user", "get_user"),
        ("getUser", "get_user"),
        ("get-user", "get_user"),
        ("GetHTTPUser2", "get_http_user2"),
        ("admin/users.list", "admin_users_list"),
        ("42things", "tool_42things"),
        ("größe", "gr_e"),
    ],
)
def test_a_servers_name_becomes_one_of_ours(name: str, operation: str) -> None:
    assert operation_names([name]) == {name: operation}


def test_names_that_would_meet_are_told_apart_whatever_their_order() -> None:
    names = operation_names(["getUser", "get_user", "other"])
    assert names["other"] == "other"
    assert len({*names.values()}) == 3
    assert all(name.startswith("get_user_") for name in (names["getUser"], names["get_user"]))
    assert operation_names(["other", "get_user", "getUser"]) == names


def test_a_long_name_is_cut_and_stays_unique() -> None:
    one, two = operation_names([f"{'x' * 90}1", f"{'x' * 90}2"]).values()
    assert len(one) == len(two) == NAME_MAX_CHARS
    assert one != two


@pytest.mark.parametrize(
    ("hints", "effect"),
    [
        ({"readOnlyHint": True, "idempotentHint": True}, Effect.READ),
        ({"idempotentHint": True}, Effect.IDEMPOTENT),
        ({"destructiveHint": False}, Effect.ONCE),
        (None, Effect.ONCE),
    ],
)
def test_the_effect_follows_the_hints_and_without_any_is_the_most_careful(hints: Any, effect: Effect) -> None:
    assert contract(annotations=hints).effect is effect


def test_what_an_option_says_of_an_operation_comes_before_the_server() -> None:
    stated = options(operations={"get_user": {"effect": "read", "timeout_ms": 1_000}}, timeout_ms=2_000)
    offered, _ = mcp_operations("crm", [pinned(), pinned("other")], stated)
    assert [(each.contract.effect, each.contract.timeout_ms) for each in offered] == [
        (Effect.READ, 1_000),
        (Effect.ONCE, 2_000),
    ]


def test_a_result_without_a_schema_has_the_fixed_form() -> None:
    assert contract().result == CONTENT
    assert contract(outputSchema=OBJECT).result == OBJECT


def test_nothing_is_dropped_silently() -> None:
    tools = [
        pinned("ok"),
        pinned("list_it", inputSchema={"type": "array"}),
        pinned("broken", outputSchema={"type": "strnig"}),
        pinned("extra"),
    ]
    offered, left_out = mcp_operations("crm", tools, options(only=["ok", "list_it", "broken"]))
    assert [offer.tool.name for offer in offered] == ["ok"]
    assert {each.name: each.why.partition(":")[0] for each in left_out} == {
        "list_it": "its arguments are not an object",
        "broken": "the schema of its result is not a JSON Schema",
        "extra": "not among `only`",
    }


def test_tuples_of_draft_7_are_written_as_2020_12_has_them() -> None:
    old = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "properties": {"at": {"items": [{"type": "number"}, {"type": "number"}], "additionalItems": False}},
    }
    assert as_2020_12(old) == {
        "properties": {"at": {"prefixItems": [{"type": "number"}, {"type": "number"}], "items": False}}
    }


def test_what_changes_a_contract_compatibly_and_what_breaks_it() -> None:
    before = contract()
    wider = {**OBJECT, "properties": {**OBJECT["properties"], "page": {"type": "integer"}}}
    assert breaking_changes(before, contract(description="Now better.")) == []
    assert breaking_changes(before, contract(inputSchema=wider)) == []
    assert breaking_changes(before, contract(inputSchema={**wider, "required": ["id", "page"]})) != []
    assert breaking_changes(before, contract(annotations={"readOnlyHint": True})) == ["the effect was once and is read"]
    strange = {"type": "object", "properties": {"id": {"$ref": "#/definitions/id"}}, "definitions": {"id": {}}}
    assert breaking_changes(before, contract(inputSchema=strange)) == [
        "arguments: the schema has changed in a way that cannot be compared"
    ]


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"pins": "p"}, "either command"),
        ({"pins": "p", "command": ["a"], "url": "http://localhost/"}, "either command"),
        ({"pins": "p", "command": ["a"], "token_env": "T"}, "gets its secrets through env"),
        ({"pins": "p", "url": "http://localhost/", "env": ["T"]}, "token_env and headers_env"),
        ({"pins": "nowhere.json", "command": ["a"]}, "nowhere.json: No such file.*--replace"),
    ],
)
def test_a_wrong_option_is_named(given: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        bridge(Source("crm", given))


def test_every_option_has_a_line_in_the_guide() -> None:
    page = (
        (Path(__file__).parents[2] / "docs" / "reference" / "adapters.md")
        .read_text("utf-8")
        .partition("\n## MCP\n")[2]
        .partition("\n## ")[0]
    )
    described = set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))
    assert set(McpOptions.model_fields) <= described
    assert all(f"`{field}`" in page for field in Override.model_fields)


def test_the_playbook_of_the_guide_is_good() -> None:
    page = Path(__file__).parents[2] / "docs" / "how-to" / "add-an-mcp-server.md"
    (block,) = re.findall(r"^```yaml\n(.*?)^```$", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    assert parse_playbook(block, page).allows("clock.get_current_time")


@pytest.mark.parametrize(
    "reference", ["http://127.0.0.1:1/s.json", "file:///etc/passwd", "urn:other:schema", "other.json"]
)
def test_a_tool_whose_schema_refers_to_another_document_is_left_out_and_the_others_are_offered(reference: str) -> None:
    odd = {"type": "object", "properties": {"a": {"$ref": reference}}}
    tools = [pinned("ok"), pinned("asks", inputSchema=odd), pinned("answers", outputSchema=odd)]
    offered, left_out = mcp_operations("crm", tools, options())
    assert [offer.tool.name for offer in offered] == ["ok"]
    assert [each.name for each in left_out] == ["asks", "answers"]
    assert all(f"it refers to {reference}" in each.why and "nothing is fetched" in each.why for each in left_out)


def test_a_tool_whose_schema_applies_itself_a_million_times_is_left_out() -> None:
    parts = {f"a{n + 1}": {"allOf": [{"$ref": f"#/$defs/a{n}"}] * 2} for n in range(20)}
    odd = {"type": "object", "$defs": {"a0": {}, **parts}, "properties": {"a": {"$ref": "#/$defs/a20"}}}
    offered, left_out = mcp_operations("crm", [pinned("ok"), pinned("odd", inputSchema=odd)], options())
    assert [offer.tool.name for offer in offered] == ["ok"]
    assert "units of work" in left_out[0].why


@pytest.mark.parametrize(
    ("result", "data"),
    [
        ({"structuredContent": {"n": 1}, "content": [{"type": "text", "text": '{"n": 2}'}]}, {"n": 1}),
        ({"structuredContent": {}, "content": []}, {}),
        ({"content": [{"type": "text", "text": '{"n": 2}'}]}, {"n": 2}),
    ],
)
def test_a_structured_result_that_is_only_written_out_as_text_is_one(result: dict[str, Any], data: Any) -> None:
    (offer,), _ = mcp_operations("crm", [pinned(outputSchema={"type": "object"})], options())
    assert data_of(CallToolResult.model_validate(result), offer) == data


@pytest.mark.parametrize("texts", [[], ["done"], ["[1]"], ["{}", "{}"]])
def test_a_promised_structured_result_that_nobody_sent_is_a_contract_violation(texts: list[str]) -> None:
    (offer,), _ = mcp_operations("crm", [pinned(outputSchema={"type": "object"})], options())
    result = CallToolResult.model_validate({"content": [{"type": "text", "text": text} for text in texts]})
    with pytest.raises(ToolFailure, match="promises a structured result and the server sent none"):
        data_of(result, offer)

"""Tools that are built from configuration: a factory, its options, and what is said when they are wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from triptych.kernel.errors import ConfigurationError
from triptych.schemas import Contract, Json, Result
from triptych.tools import Call, Effect, Operation, Options, Source, Tool
from triptych.tools.runtime.process import load_tool
from triptych.tools.sdk.failure import ToolDefinitionError
from triptych.tools.testing import call

GREETING = {"type": "object", "required": ["who"], "properties": {"who": {"type": "string"}}}


class Greeting(Options):
    words: str
    times: int = 1


def contract(operation: str) -> Contract:
    return Contract(
        operation=operation, description="Greets.", arguments=GREETING, result={"type": "string"}, effect=Effect.READ
    )


def greeter(source: Source) -> Tool:
    """The factory under test."""
    options = source.read(Greeting)
    tool = Tool(source.name)

    async def greet(arguments: dict[str, Json], _call: Call[None]) -> Json:
        return " ".join([options.words] * options.times + [arguments["who"]]) if arguments["who"] else None

    tool.add(Operation(contract(f"{source.name}.greet"), greet, may_be_empty=True))
    return tool


async def test_a_factory_builds_a_tool_under_the_name_of_its_table() -> None:
    tool = load_tool(f"{__name__}:greeter", Source("doorman", {"words": "Good evening,", "times": 1}))
    assert list(tool.operations) == ["doorman.greet"]
    assert await call(tool, "greet", {"who": "Ana"}) == Result.ok("Good evening, Ana")
    assert await call(tool, "greet", {"who": ""}) == Result.empty()


async def test_what_is_performed_is_held_to_the_contract_both_ways() -> None:
    async def wrong(_arguments: dict[str, Json], _call: Call[None]) -> Json:
        return 7

    tool = Tool("doorman")
    tool.add(Operation(contract("doorman.greet"), wrong))
    violated, refused = await call(tool, "greet", {"who": "Ana"}), await call(tool, "greet", {"whom": "Ana"})
    assert violated.error is not None
    assert violated.error.code == "contract_violation"
    assert refused.error is not None
    assert refused.error.code == "invalid_arguments"


def test_a_source_travels_through_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    source = Source("doorman", {"words": "Grüß Gott,", "times": 2}, Path("/srv/stack"))
    for name, value in source.environment().items():
        monkeypatch.setenv(name, value)
    assert Source.from_environment() == source
    assert load_tool(f"{__name__}:greeter").name == "doorman"


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({}, "tools.doorman.options.words: Field required"),
        ({"words": "Hi", "tmies": 2}, "tools.doorman.options.tmies: .*known: words, times"),
        ({"words": "Hi", "times": "often"}, "tools.doorman.options.times: "),
    ],
)
def test_a_wrong_option_is_named_with_its_place(options: dict[str, object], complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        greeter(Source("doorman", options))


def test_an_unset_secret_is_named_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    source = Source("doorman")
    with pytest.raises(ConfigurationError, match=r"DOOR_KEY.*tools\.doorman\.env"):
        source.secret("DOOR_KEY")
    monkeypatch.setenv("DOOR_KEY", "s3cret")
    assert source.secret("DOOR_KEY").get_secret_value() == "s3cret"
    assert "s3cret" not in f"{source.secret('DOOR_KEY')!r}"


@pytest.mark.parametrize(
    ("operation", "complaint"), [("porter.greet", "name it doorman"), ("doorman.greet", "offered twice")]
)
def test_an_operation_belongs_to_its_tool_once(operation: str, complaint: str) -> None:
    tool = greeter(Source("doorman", {"words": "Hi"}))
    with pytest.raises(ToolDefinitionError, match=complaint):
        tool.add(Operation(contract(operation), lambda _arguments, _call: None))  # type: ignore[arg-type,return-value]


def test_a_broken_schema_is_found_when_the_tool_is_built() -> None:
    broken = contract("doorman.greet").model_copy(update={"result": {"type": "strnig"}})
    with pytest.raises(ToolDefinitionError, match="greet, result: not a JSON Schema"):
        Operation(broken, lambda _arguments, _call: None)  # type: ignore[arg-type,return-value]


def test_an_address_in_a_variable_is_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRM_URL", "https://crm.example.com")
    monkeypatch.setenv("CRM_TOKEN", "s3cret")
    source = Source("crm")
    assert source.variable("CRM_URL") == "https://crm.example.com"
    assert source.secrets == []
    assert source.secret("CRM_TOKEN").get_secret_value() == "s3cret"
    assert len(source.secrets) == 1

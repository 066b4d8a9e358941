"""What a process of the stack gets of the environment of who starts it, and who may enter its folders."""

from __future__ import annotations

import os
import pwd
import subprocess
from pathlib import Path

import pytest

from triptych.embedded.environment import inherited, named_in
from triptych.embedded.layout import Layout
from triptych.kernel.process.folder_access import let_enter


def test_a_process_gets_what_every_program_needs_and_no_secret_of_the_shell(monkeypatch) -> None:
    for name in ("GITHUB_TOKEN", "OPENAI_API_KEY", "PGPASSWORD", "TRIPTYCH_MODEL_API_KEY", "TRIPTYCH_POSTGRES"):
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("TRIPTYCH_BATCH_MAX_RECORDS", "7")
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    given = inherited()
    assert (given["PATH"], given["LC_ALL"], given["TRIPTYCH_BATCH_MAX_RECORDS"]) == (os.environ["PATH"], "C.UTF-8", "7")
    assert "secret" not in given.values()


def test_a_table_names_variables_by_name_or_by_beginning(monkeypatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPEN_SESAME", "TRIPTYCH_MODEL_API_KEY"):
        monkeypatch.setenv(name, "x")
    given = inherited(["OPENAI_*", "TRIPTYCH_MODEL_API_KEY"])
    assert {"OPENAI_API_KEY", "OPENAI_BASE_URL", "TRIPTYCH_MODEL_API_KEY"} <= given.keys()
    assert "OPEN_SESAME" not in given


def test_the_options_of_a_tool_name_variables() -> None:
    options = {
        "base_url_env": "CRM_URL",
        "auth": {"kind": "api_key", "name": "X-Key", "key_env": "CRM_KEY"},
        "headers_env": {"X-Team": "TEAM_TOKEN"},
        "env": ["GIT_TOKEN"],
        "servers": [{"token_env": "SERVER_TOKEN"}],
        "environment": "production",
    }
    assert set(named_in(options)) == {"CRM_URL", "CRM_KEY", "TEAM_TOKEN", "GIT_TOKEN", "SERVER_TOKEN"}


def test_a_data_directory_is_closed_to_all_but_its_owner(tmp_path) -> None:
    layout = Layout.at(tmp_path / "new")
    (tmp_path / "new").chmod(0o755)
    Layout.at(tmp_path / "new")
    folders = (layout.root, layout.logs, layout.secrets, layout.kafka)
    assert [folder.stat().st_mode & 0o777 for folder in folders] == [0o700] * 4


def test_a_folder_with_other_files_keeps_its_mode_and_what_is_ours_in_it_is_closed(tmp_path) -> None:
    (tmp_path / "mine").mkdir(mode=0o755)
    (tmp_path / "mine" / "notes.txt").touch()
    layout = Layout.at(tmp_path / "mine")
    assert [folder.stat().st_mode & 0o777 for folder in (layout.root, layout.secrets)] == [0o755, 0o700]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root lets other users in")
def test_one_user_is_let_in_and_the_folder_stays_closed_to_others(tmp_path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    file = closed / "program"
    file.write_text("x")
    file.chmod(0o644)
    nobody, other = pwd.getpwnam("nobody"), pwd.getpwnam("daemon")
    assert not _reads(file, nobody)
    let_enter(file, nobody.pw_uid)
    let_enter(file, nobody.pw_uid)
    assert _reads(file, nobody)
    assert not _reads(file, other)
    assert not closed.stat().st_mode & 0o001
    assert subprocess.run(["ls", str(closed)], user=nobody.pw_uid, capture_output=True, check=False).returncode != 0


def _reads(file: Path, account: pwd.struct_passwd) -> bool:
    command = ["cat", str(file)]
    done = subprocess.run(
        command, user=account.pw_uid, group=account.pw_gid, extra_groups=[], capture_output=True, check=False
    )
    return done.returncode == 0

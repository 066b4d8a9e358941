"""What compose does before the services start, without the containers: secrets, then topics, roles and schemas."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from aiokafka.admin import AIOKafkaAdminClient

ROOT = Path(__file__).resolve().parents[2]


def make_secrets() -> ModuleType:
    """A script of deploy/, which is no package."""
    spec = importlib.util.spec_from_file_location("deploy_make_secrets", ROOT / "deploy/make_secrets.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def secrets(database: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("deploy") / "secrets"
    made = make_secrets()
    owner = urlsplit(database.owner_dsn)
    made.DATABASE = owner.path.removeprefix("/")
    made.SERVER = f"{owner.hostname}:{owner.port}/{made.DATABASE}"
    made.main(folder, ROOT / "examples/demo/triptych.toml")
    return folder


class Setup:
    """`triptych setup` as compose calls it: settings in the environment, no script installed."""

    def __init__(self, **environment: str) -> None:
        self.environment = environment

    def run(self, *options: str, code: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "triptych", "setup", *options],
            cwd=ROOT / "examples/demo",
            env=os.environ | self.environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stderr


@pytest.fixture(scope="module")
def setup(servers: Any, prefix: str, database: Any, secrets: Path) -> Setup:
    return Setup(
        TRIPTYCH_KAFKA=servers.kafka,
        TRIPTYCH_POSTGRES=database.owner_dsn,
        TRIPTYCH_TOPIC_PREFIX=prefix,
        TRIPTYCH_ROLES=str(secrets),
        COLUMNS="400",
    )


def test_secrets_that_are_there_stay_and_others_cannot_enter_the_folder(secrets: Path) -> None:
    before = {path.name: path.read_text() for path in secrets.iterdir()}
    make_secrets().main(secrets, ROOT / "examples/demo/triptych.toml")
    assert {path.name: path.read_text() for path in secrets.iterdir()} == before
    assert secrets.stat().st_mode & 0o077 == 0


async def test_every_service_can_log_in_and_finds_its_topics(
    servers: Any, setup: Setup, secrets: Path, database: Any, prefix: str
) -> None:
    assert f"topics {prefix}.*" in setup.run()
    setup.run()  # a second time changes nothing
    name_of_database = urlsplit(database.owner_dsn).path.removeprefix("/")
    for name in ("executor", "planner", "critic", "tool_kb", "tool_helpdesk", "tool_model", "operator"):
        with psycopg.connect((secrets / name).read_text()) as connection:
            assert connection.info.user == f"{name_of_database}_{name}"
    admin = AIOKafkaAdminClient(bootstrap_servers=servers.kafka)
    await admin.start()
    names = [name for name in await admin.list_topics() if name.startswith(f"{prefix}.")]
    assert {f"{prefix}.{noun}" for noun in ("tasks", "outcomes", "contracts", "calls.kb", "calls.model")} <= {*names}
    await admin.delete_topics(names)
    await admin.close()


def test_a_secret_of_another_role_is_named_with_its_folder(setup: Setup, secrets: Path, tmp_path: Path) -> None:
    for path in secrets.iterdir():
        (tmp_path / path.name).write_text(path.read_text())
    (tmp_path / "critic").write_text((secrets / "planner").read_text())
    said = setup.run("--roles", str(tmp_path), code=2)
    assert "the DSN in critic must be of the role" in said
    assert str(tmp_path) in said
    (tmp_path / "critic").unlink()
    assert "there is no file critic" in setup.run("--roles", str(tmp_path), code=2)


def test_a_database_of_another_prefix_is_refused(setup: Setup, prefix: str) -> None:
    assert f"belongs to the topic prefix '{prefix}'" in setup.run("--prefix", "another", code=2)


def test_a_server_that_does_not_answer_and_a_dsn_that_is_none_are_named_without_a_password(
    setup: Setup, secrets: Path, database: Any
) -> None:
    lost = database.owner_dsn.replace(f":{urlsplit(database.owner_dsn).port}/", ":1/")
    said = setup.run("--postgres", lost, code=2)
    assert "cannot be used" in said
    assert "--postgres is not a DSN" in setup.run("--postgres", "nonsense hidden", code=2)

"""What compose does before the services start, without the containers: secrets, then topics, roles and schemas."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from aiokafka.admin import AIOKafkaAdminClient
from psycopg.conninfo import conninfo_to_dict

from triptych.kernel.migrate import WrongPrefixError

ROOT = Path(__file__).resolve().parents[2]


def script(name: str) -> ModuleType:
    """A script of deploy/, which is no package."""
    spec = importlib.util.spec_from_file_location(f"deploy_{name}", ROOT / f"deploy/{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where pydantic looks annotations up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def secrets(database: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("deploy") / "secrets"
    made = script("make_secrets")
    owner = urlsplit(database.owner_dsn)
    made.DATABASE = owner.path.removeprefix("/")
    made.SERVER = f"{owner.hostname}:{owner.port}/{made.DATABASE}"
    made.main(folder, ROOT / "triptych.toml")
    return folder


@pytest.fixture(scope="module")
def settings(servers: Any, prefix: str, database: Any, secrets: Path) -> Any:
    values = {"kafka": servers.kafka, "postgres": database.owner_dsn, "topic_prefix": prefix}
    return script("setup").SetupSettings(roles=secrets, config=ROOT / "triptych.toml", **values)


def test_secrets_that_are_there_stay_and_others_cannot_enter_the_folder(secrets: Path) -> None:
    before = {path.name: path.read_text() for path in secrets.iterdir()}
    script("make_secrets").main(secrets, ROOT / "triptych.toml")
    assert {path.name: path.read_text() for path in secrets.iterdir()} == before
    assert secrets.stat().st_mode & 0o077 == 0


async def test_every_service_can_log_in_and_finds_its_topics(settings: Any, secrets: Path, prefix: str) -> None:
    module = script("setup")
    await run_in_thread(module.main, settings)
    await run_in_thread(module.main, settings)  # a second time changes nothing
    for name in ("executor", "planner", "critic", "tool_kb", "tool_helpdesk", "tool_model", "operator"):
        with psycopg.connect((secrets / name).read_text()) as connection:
            assert connection.info.user == f"{conninfo_to_dict((secrets / name).read_text())['dbname']}_{name}"
    admin = AIOKafkaAdminClient(bootstrap_servers=settings.kafka)
    await admin.start()
    names = [name for name in await admin.list_topics() if name.startswith(f"{prefix}.")]
    assert {f"{prefix}.{noun}" for noun in ("tasks", "outcomes", "contracts", "calls.kb", "calls.model")} <= {*names}
    await admin.delete_topics(names)
    await admin.close()


def test_a_secret_of_another_role_is_named_with_its_folder(settings: Any, secrets: Path, tmp_path: Path) -> None:
    module = script("setup")
    for path in secrets.iterdir():
        (tmp_path / path.name).write_text(path.read_text())
    (tmp_path / "critic").write_text((secrets / "planner").read_text())
    with pytest.raises(module.WrongRolesError, match=r"critic.*role.*_critic") as raised:
        module.main(settings.model_copy(update={"roles": tmp_path}))
    assert str(tmp_path) in str(raised.value)
    (tmp_path / "critic").unlink()
    with pytest.raises(module.WrongRolesError, match="no file critic"):
        module.main(settings.model_copy(update={"roles": tmp_path}))


async def test_a_database_of_another_prefix_is_refused(settings: Any) -> None:
    with pytest.raises(WrongPrefixError):
        await run_in_thread(script("setup").main, settings.model_copy(update={"topic_prefix": "another"}))


async def run_in_thread(function: Any, *arguments: Any) -> None:
    """The scripts run an event loop of their own."""
    await asyncio.to_thread(function, *arguments)

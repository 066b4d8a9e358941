"""Prepares Kafka and Postgres for the services of a triptych.toml: topics, roles, schemas, migrations.

Run it once before the services start, and again after each upgrade; repeating it changes nothing. Each
role's password comes from the DSN that its service gets, so both sides read the same secret.
"""

# ruff: noqa: INP001 - a script, not a package
from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Annotated

from psycopg import Error
from psycopg.conninfo import conninfo_to_dict
from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from triptych.cli.stack.config import StackConfig
from triptych.cli.stack.errors import StackError
from triptych.cli.stack.topics import create_topics
from triptych.kernel.errors import ConfigurationError
from triptych.kernel.migrate import Schema, prepare
from triptych.kernel.settings import load_settings

OPERATOR = "operator"


class SetupSettings(BaseSettings):
    """What the preparation needs to know. Environment prefix `TRIPTYCH_`."""

    model_config = SettingsConfigDict(env_prefix="TRIPTYCH_", frozen=True, extra="ignore")

    kafka: Annotated[str, Field(description="Bootstrap servers, `host:port[,host:port]`.")]
    postgres: Annotated[SecretStr, Field(description="DSN of a role that may create databases and roles.")]
    topic_prefix: Annotated[str, Field(description="All topics are `<prefix>.<noun>`.")] = "triptych"
    roles: Annotated[
        Path, Field(description="Folder with a file for each schema and for `operator`: the DSN of its role.")
    ] = Path("/run/roles")
    config: Annotated[Path, Field(description="The triptych.toml that names the services.")] = Path("triptych.toml")


class WrongRolesError(ConfigurationError):
    """The folder of the roles' DSNs does not fit the services."""

    def __init__(self, problem: str, folder: Path) -> None:
        self.problem, self.folder = problem, folder
        super().__init__(f"{problem} (TRIPTYCH_ROLES={folder}). Let deploy/make_secrets.py write the files.")


def passwords(folder: Path, database: str, names: set[str]) -> dict[str, str]:
    """By name, the password that stands in the DSN of each of these roles.

    Raises:
        WrongRolesError: a file is missing, or its DSN is of another role than the one that is prepared.
    """
    found: dict[str, str] = {}
    for name in sorted(names):
        try:
            parts = conninfo_to_dict((folder / name).read_text("utf-8").strip())
        except FileNotFoundError:
            raise WrongRolesError(f"there is no file {name}", folder) from None
        except Error as error:
            raise WrongRolesError(f"the file {name} holds no DSN", folder) from error
        role = f"{database}_{name}"
        if parts.get("user") != role or not parts.get("password"):
            raise WrongRolesError(f"the DSN in {name} must be of the role {role}, with its password", folder)
        found[name] = str(parts["password"])
    return found


def main(settings: SetupSettings) -> None:
    """Prepare everything, the database first.

    Raises:
        ConfigurationError, StackError, psycopg.Error: it cannot be done; the message says what to change.
    """
    config = StackConfig.load(settings.config)
    migrations = config.schema_migrations()
    owner = settings.postgres.get_secret_value()
    database = str(conninfo_to_dict(owner).get("dbname") or "triptych")
    known = passwords(settings.roles, database, {*migrations, OPERATOR})
    schemas = [Schema(name, known[name], directories) for name, directories in migrations.items()]
    prepare(owner, settings.topic_prefix, schemas, known[OPERATOR])
    asyncio.run(create_topics(settings.kafka, settings.topic_prefix, config.table.tools))
    sys.stderr.write(f"ready: database {database}, topics {settings.topic_prefix}.*\n")


if __name__ == "__main__":
    try:
        main(load_settings(SetupSettings))
    except (ConfigurationError, StackError, Error) as error:
        sys.exit(str(error))

"""`triptych.toml`: which processes make a stack. Read and checked as a whole before anything starts.

It describes processes; it never says where Kafka, Postgres or a data directory is.
"""

from __future__ import annotations

import importlib.util
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from triptych.embedded.errors import ConfigInvalidError
from triptych.tools.sdk.guard import Guard

Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]{0,30}$")]
TOOL_NAME = r"[a-z][a-z0-9_-]{0,30}"
ToolName = Annotated[str, StringConstraints(pattern=rf"^{TOOL_NAME}$")]
MigrationsReference = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][\w.]*:[\w./-]+$")]

EnvironmentPattern = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*\*?$")]
"""The name of a variable, or its beginning and a star."""

SERVERS = ("postgres", "kafka")
"""Names that a process cannot have, since these are always there."""

_TOOL = ("triptych.kernel:migrations/worker", "triptych.tools:migrations/tool")
"""Every tool is a worker, and keeps a ledger of its effects."""

MOST_DAYS = 36_500
"""A hundred years. There must be a moment so long ago."""

PLACEHOLDER = re.compile(r"\{([A-Za-z0-9_.-]+)\}")

PARTITIONS = 2
"""Few, on one machine: each batch pays for every partition it touches (docs/discussions/scaling.md)."""
_MOST_PARTITIONS = 512


class _Table(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


class ServiceTable(_Table):
    """A service: `python -m MODULE`, with a schema and a role of its own."""

    module: Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][\w.]*$")]
    migrations: list[MigrationsReference] = []
    env: dict[str, str] = {}
    pass_env: list[EnvironmentPattern] = []


class ToolTable(_Table):
    """A tool: one adapter in a process of its own, with a topic, a schema and a role of its own."""

    adapter: Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]
    options: dict[str, Any] = {}
    guard: Guard | None = None
    path: str | None = None
    migrations: list[MigrationsReference] = []
    env: dict[str, str] = {}
    pass_env: list[EnvironmentPattern] = []


class ProcessTable(_Table):
    """Any other process that the stack keeps running; it gets neither Kafka nor Postgres."""

    command: Annotated[list[str], Field(min_length=1)]
    health: Annotated[str, StringConstraints(pattern=r"^/")]
    env: dict[str, str] = {}
    pass_env: list[EnvironmentPattern] = []


class StackTable(_Table):
    """The whole file."""

    playbooks: str = "playbooks"
    retention_days: Annotated[int, Field(ge=1, le=MOST_DAYS)] = 90
    partitions: Annotated[int, Field(ge=1, le=_MOST_PARTITIONS)] = PARTITIONS
    env: dict[str, str] = {}
    pass_env: list[EnvironmentPattern] = []
    services: dict[Name, ServiceTable] = {}
    tools: dict[ToolName, ToolTable] = {}
    processes: dict[Name, ProcessTable] = {}


@dataclass(frozen=True, slots=True)
class StackConfig:
    """A checked configuration and where it was read."""

    file: Path
    table: StackTable

    @classmethod
    def load(cls, file: Path) -> StackConfig:
        """Read and check a configuration. Raises ConfigInvalidError, which names the file and the key."""
        file = file.expanduser().resolve()
        try:
            content = tomllib.loads(file.read_text("utf-8"))
        except FileNotFoundError:
            raise ConfigInvalidError(
                file, "", "there is no such file", "Name one with --config, or write one with `triptych init`."
            ) from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigInvalidError(file, "", str(error), "It must be valid TOML (https://toml.io).") from None
        try:
            table = StackTable.model_validate(content)
        except ValidationError as error:
            raise _first_problem(file, error) from None
        config = cls(file, table)
        config._check_names()
        config._check_placeholders()
        return config

    @property
    def directory(self) -> Path:
        return self.file.parent

    def directories(self, references: Iterable[str], key: str) -> tuple[Path, ...]:
        """Find the directories that `package:directory` references name, without importing the package."""
        return tuple(self._migrations_directory(reference, key) for reference in references)

    def schema_migrations(self) -> dict[str, tuple[Path, ...]]:
        """Return the migrations of every schema that this configuration needs, by the schema's name."""
        schemas = {
            name: self.directories(service.migrations, f"services.{name}.migrations")
            for name, service in self.table.services.items()
        }
        for name, tool in self.table.tools.items():
            schemas[f"tool_{name}"] = self.directories((*_TOOL, *tool.migrations), f"tools.{name}.migrations")
        return schemas

    def _migrations_directory(self, reference: str, key: str) -> Path:
        package, _, directory = reference.partition(":")
        try:
            found = importlib.util.find_spec(package)
        except ModuleNotFoundError:
            found = None
        for location in (found.submodule_search_locations if found else None) or ():
            if (path := Path(location) / directory).is_dir():
                return path
        raise ConfigInvalidError(
            self.file, key, f"{reference!r} names no directory", "Write it as package:directory, as in my_tools:sql."
        )

    def _check_names(self) -> None:
        seen = dict.fromkeys(SERVERS, "the stack itself")
        for section in ("services", "tools", "processes"):
            for name in getattr(self.table, section):
                if name in seen:
                    raise ConfigInvalidError(
                        self.file, f"{section}.{name}", f"{seen[name]} has this name already", "Choose another name."
                    )
                seen[name] = f"{section}.{name}"

    def _check_placeholders(self) -> None:
        urls = {f"{name}.url" for name in self.table.processes}
        for key, text in self._texts():
            known = {"python", "data"} | urls | ({"port"} if key.startswith("processes.") else set())
            for name in PLACEHOLDER.findall(text):
                if name not in known and not re.fullmatch(r"secret\.[a-z][a-z0-9-]*", name):
                    allowed = ", ".join(f"{{{each}}}" for each in sorted(known)) + " and {secret.NAME}"
                    raise ConfigInvalidError(self.file, key, f"unknown placeholder {{{name}}}", f"Known are {allowed}.")

    def _texts(self) -> Iterator[tuple[str, str]]:
        """Yield every text that may hold a placeholder, with its key."""
        environments: dict[str, Mapping[str, str]] = {"env": self.table.env}
        for section in ("services", "tools", "processes"):
            for name, entry in getattr(self.table, section).items():
                environments[f"{section}.{name}.env"] = entry.env
        for key, environment in environments.items():
            for variable, text in environment.items():
                yield f"{key}.{variable}", text
        for name, process in self.table.processes.items():
            for index, argument in enumerate(process.command):
                yield f"processes.{name}.command[{index}]", argument


def fill(text: str, value_of: Callable[[str], str]) -> str:
    """Replace the placeholders of a text. They were checked when the file was read."""
    return PLACEHOLDER.sub(lambda found: value_of(found[1]), text)


def _first_problem(file: Path, error: ValidationError) -> ConfigInvalidError:
    problem = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in problem["loc"] if part != "[key]")
    if problem["type"] == "extra_forbidden":
        table = _table_at(problem["loc"])
        known = ", ".join(table.model_fields)
        return ConfigInvalidError(file, key, "unknown key", f"Known here are {known}.")
    return ConfigInvalidError(file, key, problem["msg"], "See the comments in the triptych.toml that is shipped.")


def _table_at(location: tuple[int | str, ...]) -> type[_Table]:
    tables: dict[int | str, type[_Table]] = {"services": ServiceTable, "tools": ToolTable, "processes": ProcessTable}
    return tables.get(location[0], StackTable) if len(location) > 1 else StackTable

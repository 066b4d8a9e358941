"""The options that commands share, and how they find the stack that is meant."""

from __future__ import annotations

import getpass
import re
from dataclasses import replace
from pathlib import Path
from typing import Annotated
from urllib.parse import quote, urlsplit, urlunsplit

import typer
from pydantic import ValidationError

from triptych.client import Address, NoStackError
from triptych.embedded.layout import Layout

_PREFIX = re.compile(r"[a-z][a-z0-9_-]{0,39}")


def topic_prefix(text: str) -> str:
    """Check a prefix: the names of topics and of roles of the database begin with it, and both limit it."""
    if not _PREFIX.fullmatch(text):
        raise typer.BadParameter(
            f"{text!r} cannot begin the names of topics; use 1 to 40 of a-z, 0-9, _ and -, a letter first"
        )
    return text


DataDir = Annotated[Path, typer.Option("--data", metavar="DIR", help="The data directory of the stack.")]
Kafka = Annotated[
    str | None, typer.Option("--kafka", metavar="HOST:PORT", help="This broker, instead of the one of --data.")
]
Prefix = Annotated[
    str | None,
    typer.Option(
        "--prefix", parser=topic_prefix, metavar="PREFIX", help="The topics' prefix, instead of the one of --data."
    ),
]
Postgres = Annotated[
    str | None,
    typer.Option("--postgres", metavar="DSN", help="The operator's database, instead of the one of --data."),
]
Principal = Annotated[str | None, typer.Option(help="Who you are; user:<login> when left out.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON on standard output, for machines.")]
ConfigFile = Annotated[
    Path, typer.Option("--config", metavar="FILE", help="The triptych.toml: which processes make the stack.")
]

TopicPrefix = Annotated[
    str,
    typer.Option(
        "--prefix", parser=topic_prefix, metavar="PREFIX", help="Topics are PREFIX.noun; the database has this name."
    ),
]
ExistingKafka = Annotated[
    str | None, typer.Option("--kafka", metavar="HOST:PORT", help="Use this Kafka instead of an embedded one.")
]
ExistingPostgres = Annotated[
    str | None, typer.Option("--postgres", metavar="DSN", help="Use this Postgres instead; the DSN of an owner.")
]
OtherConfig = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="Use this triptych.toml, and not the running stack.")
]

DEFAULT_CONFIG = Path("triptych.toml")
DEMO_CONFIG = Path(__file__).parents[2] / "examples" / "demo" / "triptych.toml"
"""The configuration of the demo, which ships with the package."""
DEFAULT_DATA = Path(".triptych")
DEFAULT_PREFIX = "triptych"


def configuration(named: Path) -> Path:
    """Return the configuration to start: the named one, or the demo's where this folder has none."""
    if named == DEFAULT_CONFIG and not named.exists():
        return DEMO_CONFIG
    return named


def principal_of(given: str | None) -> str:
    """Return who gives a command: the principal that is named, else the user of this machine."""
    return given or f"user:{getpass.getuser()}"


def wrong_option(error: ValidationError) -> typer.BadParameter:
    """Return an error about the first option that does not have its form."""
    problem = error.errors(include_url=False)[0]
    name = ".".join(str(part) for part in problem["loc"])
    return typer.BadParameter(f"{name}: {problem['msg']}")


def broker(data: Path, kafka: str | None, prefix: str | None) -> Address:
    """Return where to publish and consume: the broker that is named, else that of the stack in `data`.

    Raises:
        NoStackError: neither is there.
    """
    if kafka is not None:
        return Address(kafka, prefix or DEFAULT_PREFIX)
    address = Address.from_stack(data)
    return replace(address, topic_prefix=prefix or address.topic_prefix)


def database(data: Path, postgres: str | None) -> str:
    """Return the operator's DSN: the one that is named, else that of the stack in `data`.

    Raises:
        NoStackError: neither is there.
    """
    found = postgres or Address.from_stack(data).postgres
    if found is None:
        raise NoStackError(data, "it names no database")
    return found


def tool_role(data: Path, postgres: str | None, tool: str) -> str:
    """Return the DSN of the tool's own role.

    Raises:
        NoStackError: none is named, and no stack runs in `data`.
    """
    if postgres is not None:
        return postgres
    address = Address.from_stack(data)
    if address.postgres is None:
        raise NoStackError(data, "it names no database")
    layout, secret = Layout.existing(data), f"postgres-tool_{tool}"
    if not (layout.secrets / secret).exists():
        raise NoStackError(data, f"it has no tool {tool}")
    parts = urlsplit(address.postgres)
    role = f"{parts.path.strip('/')}_tool_{tool}"
    password = quote(layout.secret(secret), safe="")
    return urlunsplit(parts._replace(netloc=f"{role}:{password}@{parts.netloc.rpartition('@')[2]}"))

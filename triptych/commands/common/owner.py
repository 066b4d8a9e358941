"""The role that owns the tables: its option, its DSN in an embedded stack, and a connection."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote, urlsplit, urlunsplit

import psycopg
import typer

from triptych.client import Address, DatabaseUnreachableError, NoStackError
from triptych.embedded.layout import Layout
from triptych.embedded.postgres import OWNER, owner_at

OwnerPostgres = Annotated[
    str | None,
    typer.Option(
        "--postgres",
        envvar="TRIPTYCH_POSTGRES",
        metavar="DSN",
        help="The role that owns the tables, as `setup` has it.",
    ),
]


def owner_of(data: Path) -> str:
    """Return the owner's DSN of the embedded stack in `data`: the operator's address, and the secret beside it.

    Raises:
        NoStackError: none runs there, or its database is not embedded.
    """
    address, layout = Address.from_stack(data), Layout.existing(data)
    if address.postgres is None or not layout.postgres.exists():
        raise NoStackError(data, "its database is not embedded: name its owner with --postgres")
    parts = urlsplit(address.postgres)
    where = f"{parts.hostname}:{parts.port}"
    return urlunsplit(parts._replace(netloc=f"{OWNER}:{quote(layout.secret('postgres-owner'))}@{where}"))


@contextmanager
def connected(dsn: str) -> Iterator[psycopg.Connection[Any]]:
    """Open a connection whose work is one transaction.

    Raises:
        DatabaseUnreachableError: the server does not answer, refuses the role, or fails at a query.
    """
    try:
        with psycopg.connect(dsn) as connection:
            yield connection
    except psycopg.Error as error:
        raise DatabaseUnreachableError(owner_at(dsn), error) from error

"""What the helpdesk remembers: every effect, once for each idempotency key, in one SQLite file.

The effects are the state; a ticket is what its effects add up to. An effect and its key are committed
in one transaction, with a sync to disk, before anybody is told of it.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

SCHEMA = """
CREATE TABLE IF NOT EXISTS effects (
    seq         INTEGER PRIMARY KEY AUTOINCREMENT,
    key         TEXT NOT NULL UNIQUE,
    operation   TEXT NOT NULL,
    ticket      TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    body        TEXT NOT NULL,
    answer      TEXT NOT NULL,
    at          TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS effects_of_ticket ON effects (ticket, seq);
CREATE TABLE IF NOT EXISTS arrivals (
    key       TEXT PRIMARY KEY,
    operation TEXT NOT NULL,
    ticket    TEXT NOT NULL,
    requests  INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS arrivals_of_ticket ON arrivals (ticket);
"""


class KeyReusedError(Exception):
    """An idempotency key came back with another request; a client that means a new write needs a new key."""

    def __init__(self, key: str, operation: str, ticket: str) -> None:
        super().__init__(
            f"Idempotency-Key {key!r} was used for another request ({operation} of ticket {ticket}). "
            "Send the same request again, or a new key."
        )
        self.key, self.operation, self.ticket = key, operation, ticket


@dataclass(frozen=True, slots=True)
class StoredWrite:
    """A write that took effect."""

    seq: int
    key: str
    operation: str
    ticket: str
    body: dict[str, Any]
    answer: dict[str, Any]
    at: str


class Store:
    """The only user of the file. Calls are short and synchronous: SQLite has one writer anyway."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._effects = _connect(path, synchronous="FULL")
        self._effects.executescript(SCHEMA)
        # Counts survive the process but need no sync to disk: nothing promises them.
        self._arrivals = _connect(path, synchronous="NORMAL")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._arrivals.close()
        self._effects.close()

    def arrive(self, key: str, operation: str, ticket: str) -> int:
        """Count a request for a write, with any result. Return the ticket's count so far."""
        self._arrivals.execute(
            "INSERT INTO arrivals VALUES (?, ?, ?, 1) ON CONFLICT (key) DO UPDATE SET requests = requests + 1",
            (key, operation, ticket),
        )
        (total,) = self._arrivals.execute("SELECT sum(requests) FROM arrivals WHERE ticket = ?", (ticket,)).fetchone()
        return int(total)

    def apply(self, key: str, operation: str, ticket: str, body: dict[str, Any]) -> tuple[StoredWrite, bool]:
        """Write once; returns the effect and whether it had happened before. Raises KeyReusedError."""
        fingerprint = _fingerprint(operation, ticket, body)
        with _transaction(self._effects):
            row = self._effects.execute("SELECT * FROM effects WHERE key = ?", (key,)).fetchone()
            if row is not None:
                if row["fingerprint"] != fingerprint:
                    raise KeyReusedError(key, row["operation"], row["ticket"])
                return _effect(row), True
            at = datetime.now(UTC).isoformat(timespec="milliseconds")
            (last,) = self._effects.execute("SELECT coalesce(max(seq), 0) FROM effects").fetchone()
            answer = {"ticket_id": ticket, "id": f"{operation}-{last + 1}", "created_at": at}
            row = self._effects.execute(
                "INSERT INTO effects (key, operation, ticket, fingerprint, body, answer, at)"
                " VALUES (?, ?, ?, ?, ?, ?, ?) RETURNING *",
                (key, operation, ticket, fingerprint, json.dumps(body), json.dumps(answer), at),
            ).fetchone()
            return _effect(row), False

    def effect(self, key: str) -> StoredWrite | None:
        """Return the result of a key, for a client that has to reconcile."""
        row = self._effects.execute("SELECT * FROM effects WHERE key = ?", (key,)).fetchone()
        return None if row is None else _effect(row)

    def effects(self, ticket: str | None = None) -> list[StoredWrite]:
        """List all effects in the order they happened, or those of one ticket."""
        rows = self._effects.execute(
            "SELECT * FROM effects WHERE :ticket IS NULL OR ticket = :ticket ORDER BY seq", {"ticket": ticket}
        )
        return [_effect(row) for row in rows]

    def arrivals(self) -> dict[str, int]:
        """Count the requests that came in with each idempotency key."""
        return {row["key"]: row["requests"] for row in self._arrivals.execute("SELECT key, requests FROM arrivals")}


def _connect(path: Path, *, synchronous: str) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, timeout=10)
    connection.row_factory = sqlite3.Row
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute(f"PRAGMA synchronous = {synchronous}")
    return connection


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def _effect(row: sqlite3.Row) -> StoredWrite:
    return StoredWrite(
        seq=row["seq"],
        key=row["key"],
        operation=row["operation"],
        ticket=row["ticket"],
        body=json.loads(row["body"]),
        answer=json.loads(row["answer"]),
        at=row["at"],
    )


def _fingerprint(operation: str, ticket: str, body: dict[str, Any]) -> str:
    canonical = json.dumps([operation, ticket, body], sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()

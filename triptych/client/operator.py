"""Looking into runs: what an operator's read-only database role can see.

It reads the executor's projections and journal and changes nothing; commands to a run go over Kafka,
as `Client.control`.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import asyncpg

from triptych.client.errors import (
    DatabaseUnreachableError,
    DsnInvalidError,
    FilterUnknownError,
    RunAmbiguousError,
    RunNotFoundError,
)
from triptych.client.reasons import REASONS
from triptych.kernel.postgres.database import Queries
from triptych.kernel.run_ids import ids_admitted
from triptych.schemas import ErrorCode, Json, Playbook, codec

_QUERIES = Queries.load("triptych.client", "operator.sql")
_MAX_CANDIDATES = 10
_CONNECT_TIMEOUT_S = 10
_SESSION = {
    "application_name": "triptych-operator",
    "plan_cache_mode": "force_custom_plan",
    "jit": "off",
    "enable_partitionwise_join": "on",
}
"""A search is planned for what it asks; compiling the plan would take longer than it runs. Runs and steps are joined
week by week: what is rare was otherwise looked for along all runs."""
_ID_DIGITS = 32
_NO_ID = UUID(int=0)
_RUN_ID_START = re.compile(r"[0-9a-f]{6,32}")
"""Six digits or more: fewer are more likely to be a task id."""


RUN_STATUSES = (
    "queued", "planning", "running", "reviewing", "escalated", "undoing", "succeeded", "failed", "cancelled",
)  # fmt: skip
"""How a run can stand; the last three are final."""
OPEN_STATUSES = RUN_STATUSES[:-3]
"""Those of runs that are not over."""


@dataclass(frozen=True, slots=True)
class RunFilter:
    """Which runs to list; None means any. All that is asked of steps must be true of one step."""

    statuses: tuple[str, ...] = ()
    """One of these; none: any."""
    playbook: str | None = None
    tenant: str | None = None
    reason: str | None = None
    tool: str | None = None
    """A step of this tool (`helpdesk`), or of this operation (`helpdesk.create_ticket`)."""
    error_code: str | None = None
    """A step that stands with this error; an attempt that a later one made good does not count."""
    since: datetime | None = None
    """Admitted then or later."""
    until: datetime | None = None
    """Admitted before then."""
    older_than: UUID | None = None
    """Only runs that come after this one in the list: the last run of a page asks for the next."""
    limit: int = 50

    def __post_init__(self) -> None:
        """Raises FilterUnknownError for an unknown status or error code."""
        for status in self.statuses:
            if status not in RUN_STATUSES:
                raise FilterUnknownError("status", status, RUN_STATUSES)
        if self.error_code is not None and self.error_code not in tuple(ErrorCode):
            raise FilterUnknownError("error code", self.error_code, tuple(ErrorCode))

    @property
    def ids(self) -> tuple[UUID, UUID]:
        """The run ids that the times allow: from the first on, and less than the second."""
        span = ids_admitted(self.since, self.until)
        return span.first, span.end if self.older_than is None else min(span.end, self.older_than)

    @property
    def is_about_steps(self) -> bool:
        """Tell whether the filter asks for anything that only steps know."""
        return self.tool is not None or self.error_code is not None


@dataclass(frozen=True, slots=True)
class RunRow:
    """One run as it stands now."""

    run_id: UUID
    tenant: str
    task_id: str
    principal: str
    playbook: str
    playbook_version: str
    partition: int
    status: str
    reason_code: str | None
    reason_message: str | None
    revision: int
    steps_used: int
    tool_calls: int
    tokens: int
    usd_micros: int
    replans: int
    started_at: datetime
    updated_at: datetime
    finished_at: datetime | None
    parent_run_id: UUID | None = None


@dataclass(frozen=True, slots=True)
class StepRow:
    """One step of a run as it stands now."""

    step_id: str
    revision: int
    operation: str
    status: str
    attempts: int
    error_code: str | None
    started_at: datetime | None
    finished_at: datetime | None


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """One event of a run. `data` has the shape of the event's type."""

    seq: int
    type: str
    at: datetime
    data: dict[str, Json]


@asynccontextmanager
async def operator_connection(dsn: str) -> AsyncIterator[asyncpg.Connection]:
    """Open a connection under the operator's role.

    Raises:
        DatabaseUnreachableError: the server does not answer, refuses the role, fails at a query, or is not the database
            of a stack.
        DsnInvalidError: this is not a DSN.
    """
    where = shown(dsn)
    try:
        connection = await asyncpg.connect(dsn, timeout=_CONNECT_TIMEOUT_S, server_settings=_SESSION)
    except (OSError, asyncpg.PostgresError, TimeoutError, ValueError) as error:
        raise DatabaseUnreachableError(where, error) from error
    try:
        yield connection
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise DatabaseUnreachableError(where, error) from error
    finally:
        await connection.close()


class Operator:
    """Reads runs, steps and journals. Open one with `Operator.connect`."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection

    @classmethod
    @asynccontextmanager
    async def connect(cls, dsn: str) -> AsyncIterator[Operator]:
        """Connect with the operator's DSN, as `stack.json` has it under `postgres`.

        Raises:
            DatabaseUnreachableError: the server does not answer, or refuses the role.
        """
        async with operator_connection(dsn) as connection:
            yield cls(connection)

    async def runs(self, wanted: RunFilter = RunFilter()) -> list[RunRow]:
        """Return the newest runs that fit a filter, newest first."""
        names = (wanted.tenant, list(wanted.statuses) or None, wanted.playbook, wanted.reason)
        of_run = (*wanted.ids, *names, wanted.limit, wanted.since, wanted.until)
        if wanted.is_about_steps:
            tool, _, operation = (wanted.tool or "").partition(".")
            of_step = (tool or None, wanted.tool if operation else None, wanted.error_code)
            records = await self._connection.fetch(_QUERIES["runs_by_step"], *of_run, *of_step)
        else:
            records = await self._connection.fetch(_QUERIES["runs"], *of_run)
        return [_run(record) for record in records]

    async def check(self, wanted: RunFilter) -> None:
        """Tell a filter that nothing fits at the moment from one that nothing can fit.

        Raises:
            FilterUnknownError: it names a tenant, playbook, reason or tool that neither a run nor a playbook has.
        """
        tool, _, operation = (wanted.tool or "").partition(".")
        asked = [
            ("tenant", wanted.tenant, (wanted.tenant,)),
            ("playbook", wanted.playbook, (wanted.playbook,)),
            ("reason", wanted.reason, (wanted.reason, list(REASONS))),
            ("tool", wanted.tool, (tool, wanted.tool if operation else None)),
        ]
        for name, value, arguments in asked:
            if value is not None and not await self._connection.fetchval(_QUERIES[f"is_{name}"], *arguments):
                known = {row[0] for row in await self._connection.fetch(_QUERIES[f"known_{name}s"])}
                raise FilterUnknownError(name, value, sorted({*known, *REASONS} if name == "reason" else known))

    async def command_answers(
        self, run_ids: Sequence[UUID], command_ids: Sequence[str], since: datetime
    ) -> list[tuple[UUID, JournalEntry]]:
        """Return the events that answer these commands, which were sent at `since` or later."""
        records = await self._connection.fetch(_QUERIES["command_answers"], list(run_ids), list(command_ids), since)
        return [(UUID(int=record["run_id"].int), _entry(record)) for record in records]

    async def run(self, reference: str) -> RunRow:
        """Return the one run with this id, with an id that begins so, or of the task with this id.

        Raises:
            RunNotFoundError: no run fits.
            RunAmbiguousError: several fit; for a task id, one in each of several tenants.
        """
        first, last = _id_range(reference)
        records = await self._connection.fetch(_QUERIES["runs_by_reference"], first, last, reference, _MAX_CANDIDATES)
        if not records:
            raise RunNotFoundError(reference)
        if len(records) > 1:
            raise RunAmbiguousError(reference, [f"{record['run_id']} ({record['tenant']})" for record in records])
        return _run(records[0])

    async def task(self, tenant: str, task_id: str) -> RunRow:
        """Return the run of a task.

        Raises:
            RunNotFoundError: the task does not have a run; it is not admitted yet, was rejected, or was never
                published.
        """
        record = await self._connection.fetchrow(_QUERIES["run_of_task"], tenant, task_id)
        if record is None:
            raise RunNotFoundError(task_id)
        return _run(record)

    async def playbooks(self) -> list[Playbook]:
        """Return the playbooks that were ever deployed, each in its last version."""
        records = await self._connection.fetch(_QUERIES["playbooks"])
        return [codec.read(Playbook, record["definition"], limits=codec.STORED) for record in records]

    async def budgets(self, run: RunRow) -> dict[str, Any]:
        """Return the limits that the run's playbook sets, before any extension."""
        found = await self._connection.fetchval(_QUERIES["budgets"], run.playbook, run.playbook_version)
        budgets: dict[str, Any] = codec.decode(found, limits=codec.STORED) if found else {}
        return budgets

    async def children(self, run_id: UUID) -> list[RunRow]:
        """Return the runs that a run has handed over to, oldest first."""
        return [_run(record) for record in await self._connection.fetch(_QUERIES["children"], run_id)]

    async def steps(self, run_id: UUID) -> list[StepRow]:
        """Return the steps of a run, in the order in which they started."""
        return [StepRow(**record) for record in await self._connection.fetch(_QUERIES["steps"], run_id)]

    async def journal(self, run_id: UUID) -> list[JournalEntry]:
        """Return every event of a run, in order."""
        return [_entry(record) for record in await self._connection.fetch(_QUERIES["journal"], run_id)]


def _entry(record: asyncpg.Record) -> JournalEntry:
    data = codec.decode(record["data"], limits=codec.STORED)
    return JournalEntry(record["seq"], record["type"], record["at"], data)


def _run(record: asyncpg.Record) -> RunRow:
    """Return a row with a plain UUID: writers of JSON do not know asyncpg's own kind of UUID."""
    parent = record["parent_run_id"]
    ids = {"run_id": UUID(int=record["run_id"].int), "parent_run_id": UUID(int=parent.int) if parent else None}
    return RunRow(**{**record, **ids})


def _id_range(reference: str) -> tuple[UUID, UUID]:
    """Return the first and the last id that begin like `reference`; a range without runs when it is not an id."""
    digits = reference.replace("-", "").lower()
    if not _RUN_ID_START.fullmatch(digits):
        return _NO_ID, _NO_ID
    return UUID(digits.ljust(_ID_DIGITS, "0")), UUID(digits.ljust(_ID_DIGITS, "f"))


def shown(dsn: str) -> str:
    """Return the address in a DSN, without its secrets.

    Raises:
        DsnInvalidError: the password cannot be told from the rest.
    """
    try:
        parts = urlsplit(dsn)
        port = parts.port or 5432
    except ValueError:
        raise DsnInvalidError from None
    if parts.scheme not in {"postgres", "postgresql"} or parts.fragment or "@" in parts.path:
        raise DsnInvalidError
    return f"{parts.hostname or 'local socket'}:{port}{parts.path}"

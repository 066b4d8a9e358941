"""Play the cases of the effect ledger against a tool, and check the outcome of each.

When an answer was lost, the effect class alone decides the outcome. A read or an idempotent call is made again. A call
that takes effect once is reconciled or in doubt, and never blindly made again.
"""

from __future__ import annotations

import asyncio
import inspect
import multiprocessing
import os
import secrets
import signal
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

import triptych.tools
from triptych.kernel.postgres.migrate import WORKER, Schema, prepare
from triptych.schemas.base import Json
from triptych.schemas.contract import Reading
from triptych.schemas.result import ErrorCode, Result, ResultStatus
from triptych.schemas.work import CallRequest
from triptych.tools.conformance.call_process import CallProcess, read_answer, run_call
from triptych.tools.conformance.faults import STRANGE, InjectedFault, strange_to
from triptych.tools.conformance.report import Case, CaseResult, CaseStatus, ConformanceReport
from triptych.tools.conformance.upstream import Callback, CallbackTiming
from triptych.tools.runtime.process import load_tool
from triptych.tools.sdk.operation import Operation
from triptych.tools.sdk.source import Source
from triptych.tools.sdk.tool import Tool
from triptych.tools.testing import request_for

LIFE_MAX_S = 120.0
LATE_FLOOR_MS, LATE_FACTOR = 1_000, 5
"""In the case `slow`, the time limit is so much longer than a call that nothing happens to."""

_MIGRATIONS = Path(triptych.tools.__file__).with_name("migrations") / "tool"
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["triptych.tools.conformance.call_process"])

Witness = Callable[[str], int | Awaitable[int]]
"""How often a call with this idempotency key has taken effect, as the system behind the tool knows it."""


@dataclass(frozen=True, slots=True)
class Subject:
    """The tool that is checked."""

    reference: str
    """`module:attribute`, as in triptych.toml."""
    path: Path | str | None = None
    """A folder for the Python path."""
    source: Source | None = None
    """For a tool that is built from options."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """What its process is given beside the environment of this one."""
    migrations: Sequence[Path] = ()
    """Folders of the tool's own tables."""


@dataclass(frozen=True, slots=True)
class Example:
    """A call that works."""

    operation: str
    """Without the tool's name."""
    arguments: dict[str, Json]
    callback: Json = None
    """What the upstream says when it calls back, where a callback completes the call."""


@dataclass(frozen=True, slots=True)
class _Lived:
    """How a life ended."""

    result: Result | None
    took_s: float = 0.0
    told: str = ""

    @property
    def code(self) -> ErrorCode | None:
        return self.result.error.code if self.result is not None and self.result.error is not None else None


class _Broken(Exception):
    """A case did not go as it must."""


async def check(
    subject: Subject, example: Example, *, postgres: str, witness: Witness | None = None
) -> ConformanceReport:
    """Play every case against an operation and report how it went.

    `postgres` is the DSN of an owner, who may create a database; it is dropped again. Without a `witness`, what
    the tool answers is checked, and not how often it took effect.

    Raises:
        ConfigurationError: there is no such tool.
        ToolDefinitionError: it has no such operation.
    """
    tool = _loaded(subject)
    request_for(tool, example.operation, example.arguments)
    with _database(postgres, tool.name, subject.migrations) as dsn, tempfile.TemporaryDirectory() as folder:
        suite = _Suite(subject, example, tool, dsn=dsn, folder=Path(folder), witness=witness)
        return ConformanceReport(f"{tool.name}.{example.operation}", await suite.play())


class _Suite:
    def __init__(
        self, subject: Subject, example: Example, tool: Tool, *, dsn: str, folder: Path, witness: Witness | None
    ) -> None:
        self._subject, self._example, self._tool = subject, example, tool
        self._dsn, self._folder, self._witness = dsn, folder, witness
        self._operation: Operation = tool.operations[f"{tool.name}.{example.operation}"]
        self._effect = self._operation.contract.effect
        self._at_once = asyncio.Semaphore(os.cpu_count() or 1)
        self._late_ms = LATE_FLOOR_MS

    async def play(self) -> list[CaseResult]:
        first = await self._case(Case.ANSWERS, self._answers)
        is_called_back = self._operation.completion is not None
        after_call = "callbacks.before_park" if is_called_back else "tool.after_call"
        cases: dict[Case, Callable[[], Awaitable[str]]] = {
            Case.DUPLICATE: self._duplicate,
            Case.KILLED_BEFORE: lambda: self._killed("tool.before_call", may_have_happened=False),
            Case.KILLED_AFTER: lambda: self._killed(after_call, may_have_happened=True),
            Case.SLOW: lambda: self._suffered(InjectedFault.LATE, ErrorCode.TIMEOUT),
            Case.LOST: lambda: self._suffered(InjectedFault.LOST, ErrorCode.UNAVAILABLE),
            Case.WRONG_SHAPE: self._wrong_callback if is_called_back else self._wrong_shape,
        }
        if is_called_back:
            cases |= {
                Case.EARLY: lambda: self._called_back(CallbackTiming.EARLY),
                Case.TWICE: lambda: self._called_back(CallbackTiming.TWICE),
                Case.FORGED: lambda: self._called_back(CallbackTiming.FORGED),
                Case.OVERDUE: self._overdue,
            }
        if first.verdict is CaseStatus.FAILED:
            return [first, *(CaseResult(case, CaseStatus.SKIPPED, "the call does not even work") for case in cases)]
        return [first, *await asyncio.gather(*(self._case(case, played) for case, played in cases.items()))]

    async def _case(self, case: Case, played: Callable[[], Awaitable[str]]) -> CaseResult:
        try:
            return CaseResult(case, CaseStatus.PASSED, await played())
        except _Broken as error:
            return CaseResult(case, CaseStatus.FAILED, str(error))
        except LookupError as error:
            return CaseResult(case, CaseStatus.SKIPPED, str(error))

    async def _answers(self) -> str:
        if self._operation.completion is not None and self._example.callback is None:
            raise _Broken("its upstream calls back: say with which body (Example.callback, or --callback JSON)")
        lived = await self._live(self._request())
        told = _worked(lived)
        self._late_ms = max(LATE_FLOOR_MS, int(lived.took_s * 1_000 * LATE_FACTOR))
        return told

    async def _duplicate(self) -> str:
        one = self._request()
        first = await self._live(one)
        _worked(first)
        if (second := await self._live(one)).result != first.result:
            raise _Broken(f"the same request was answered otherwise: {_outcome_of(second)}")
        third = await self._live(_again(one))
        if self._effect.writes and third.result != first.result:
            raise _Broken(f"another attempt under the same key was answered otherwise: {_outcome_of(third)}")
        await self._took_effect(one, 1)
        return "answered alike each time"

    async def _killed(self, place: str, *, may_have_happened: bool) -> str:
        one = self._request()
        killed = await self._live(one, die_at=place)
        if killed.result is not None:
            raise _Broken(f"it was not killed at {place}: {_outcome_of(killed)}")
        return await self._recovered(one, await self._live(one), may_have_happened=may_have_happened)

    async def _suffered(self, fault: InjectedFault, code: ErrorCode) -> str:
        limit_ms = self._late_ms if fault is InjectedFault.LATE else None
        one = self._request(timeout_ms=limit_ms)
        suffered = await self._live(one, fault=fault)
        if suffered.code is not code:
            raise _Broken(f"it should have been answered {code.value}, and was {_outcome_of(suffered)}")
        return await self._recovered(one, await self._live(_again(one)), may_have_happened=True)

    async def _wrong_shape(self) -> str:
        strange_to(self._operation)
        lived = await self._live(self._request(), fault=InjectedFault.STRANGE)
        if self._operation.contract.reading is Reading.LENIENT:
            if lived.result is None or not lived.result.warnings:
                raise _Broken(f"it should have been let pass with a warning, and was {_outcome_of(lived)}")
            return "let pass with a warning, as its contract is read leniently"
        if lived.code is not ErrorCode.CONTRACT_VIOLATION:
            raise _Broken(f"it should have been answered contract_violation, and was {_outcome_of(lived)}")
        return "answered contract_violation, never as data"

    async def _wrong_callback(self) -> str:
        lived = await self._live(self._request(), telling=CallbackTiming.ONCE, callback=STRANGE[0])
        if lived.result is not None and lived.result.error is None:
            raise LookupError("its code makes a fitting result of any body")
        return "refused, never as data"

    async def _called_back(self, telling: CallbackTiming) -> str:
        one = self._request()
        told = _worked(await self._live(one, telling=telling))
        await self._took_effect(one, 1)
        return told

    async def _overdue(self) -> str:
        one = self._request()
        waiting = await self._live(one, telling=CallbackTiming.NEVER)
        if waiting.code is not ErrorCode.UNAVAILABLE:
            raise _Broken(f"it should have waited for its upstream, and was {_outcome_of(waiting)}")
        _worked(await self._live(_again(one), telling=CallbackTiming.LATE))
        await self._took_effect(one, 1)
        return "the next attempt got the answer and made no call"

    async def _recovered(self, one: CallRequest, lived: _Lived, *, may_have_happened: bool) -> str:
        """Check the next attempt after one whose answer was lost."""
        if self._effect.must_be_reconciled and lived.code is ErrorCode.IN_DOUBT:
            await self._took_effect(one, 1 if may_have_happened else 0)
            cannot = "" if self._operation.reconcile is not None else "; offer a reconcile, and it need not be"
            return f"in doubt, for a person to decide{cannot}"
        if self._effect.must_be_reconciled and self._operation.reconcile is None:
            raise _Broken(f"it cannot be known what happened, and yet it was {_outcome_of(lived)}")
        _worked(lived)
        await self._took_effect(one, 1)
        return "reconciled" if self._effect.must_be_reconciled else "made again"

    async def _took_effect(self, one: CallRequest, times: int) -> None:
        if self._witness is None or not self._effect.writes:
            return
        seen = self._witness(one.idempotency_key)
        count = await seen if inspect.isawaitable(seen) else seen
        if count != times:
            raise _Broken(f"it took effect {count} times under one key, and should have {times} times")

    def _request(self, timeout_ms: int | None = None) -> CallRequest:
        return request_for(self._tool, self._example.operation, self._example.arguments, timeout_ms=timeout_ms)

    async def _live(
        self,
        request: CallRequest,
        *,
        fault: InjectedFault | None = None,
        die_at: str | None = None,
        telling: CallbackTiming = CallbackTiming.ONCE,
        callback: Json = None,
    ) -> _Lived:
        """Run one process. Without a result, it was killed or could not work."""
        body = self._example.callback if callback is None else callback
        folder = self._folder / secrets.token_hex(6)
        folder.mkdir()
        life = CallProcess(
            reference=self._subject.reference,
            path=str(self._subject.path) if self._subject.path is not None else None,
            environment={
                **os.environ,  # the process that lives are forked from knows an older one
                **(self._subject.source.environment() if self._subject.source else {}),
                **self._subject.environment,
            },
            dsn=self._dsn,
            request=request.to_bytes(),
            folder=folder,
            fault=fault,
            die_at=die_at,
            callback=Callback(body, telling) if self._operation.completion is not None else None,
            instance=f"run-{request.run_id}",
        )
        async with self._at_once:
            code = await asyncio.to_thread(_run, life)
        if life.answer.exists():
            return _Lived(*read_answer(life))
        if code == -signal.SIGKILL and die_at is not None:
            return _Lived(None, told="killed")
        raise _Broken(f"its process ended with code {code} and no answer")


def _run(life: CallProcess) -> int | None:
    process = _PROCESSES.Process(target=run_call, args=(life,))
    process.start()
    process.join(LIFE_MAX_S)
    if process.is_alive():
        process.kill()
        process.join()
    return process.exitcode


def _again(one: CallRequest) -> CallRequest:
    """Return the next attempt of the same call."""
    return one.model_copy(update={"request_id": str(uuid4()), "attempt": one.attempt + 1})


def _worked(lived: _Lived) -> str:
    if lived.result is None or lived.result.status is ResultStatus.ERROR:
        raise _Broken(f"it was {_outcome_of(lived)}")
    return f"answered {lived.result.status.value}"


def _outcome_of(lived: _Lived) -> str:
    if lived.result is None:
        return lived.told
    error = lived.result.error
    return f"answered {lived.result.status.value}" if error is None else f"{error.code.value}: {error.message}"


def _loaded(subject: Subject) -> Tool:
    if subject.path is not None and str(subject.path) not in sys.path:
        sys.path.insert(0, str(subject.path))
    return load_tool(subject.reference, subject.source)


@contextmanager
def _database(owner_dsn: str, tool: str, migrations: Sequence[Path]) -> Iterator[str]:
    """Make the tool's schema in a database of its own, and yield the DSN of its role."""
    name = f"conformance_{secrets.token_hex(4)}"
    schema = Schema(f"tool_{tool}"[:40], secrets.token_hex(8), (WORKER, _MIGRATIONS, *migrations))
    prepared = prepare(make_conninfo(owner_dsn, dbname=name), name, [schema], secrets.token_hex(8))
    try:
        yield prepared.services[schema.name]
    finally:
        with psycopg.connect(owner_dsn, autocommit=True) as connection:
            connection.execute(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name)))
            for (role,) in connection.execute("select rolname from pg_roles where rolname like %s", [f"{name}\\_%"]):
                connection.execute(sql.SQL("drop role {}").format(sql.Identifier(role)))

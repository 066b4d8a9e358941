"""Defects to be found: each takes away something that a guarantee stands on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from http import HTTPStatus
from typing import Any

from simulated.postgres import ExecutorTables, Schema, WorkerTables, _OutboxRow
from triptych.executor import child_runs, compensation, intake, messages, plan_cache, requests, store, trust
from triptych.executor.keys import Holding
from triptych.executor.plan_cache import PlanCache
from triptych.executor.state import OpenRequest, Run
from triptych.executor.store import ExecutorStore
from triptych.kernel.decider import Batch
from triptych.kernel.decider.session import Session
from triptych.kernel.kafka import cloudevents
from triptych.kernel.process.outage import POSTGRES_GONE
from triptych.kernel.run_ids import derive_run_id
from triptych.kernel.values import changed
from triptych.kernel.worker.job_runner import JobRunner
from triptych.kernel.worker.jobs import Jobs
from triptych.kernel.worker.outbox import Outbox
from triptych.tools.runtime.effect_ledger import EffectEntry, EffectState, PostgresEffectLedger
from triptych.tools.sdk import refusals


def epochs_are_not_checked() -> None:
    """Commit a batch without a look at who owns its partitions now."""
    ExecutorTables.owns = lambda *_: True  # type: ignore[method-assign]


def answered_requests_are_answered_again() -> None:
    """Let a second answer to a request count like the first."""
    believed, decide = trust.Trust.verified, intake.decide
    open_again: dict[str, OpenRequest] = {}

    def credulous(self: trust.Trust, run: Run, answer: Any, source: str | None) -> Any:
        known = vars(self).setdefault("known", {})
        open_again.clear()
        if answer.request_id in run.requests:
            known[run.run_id, answer.request_id] = run.requests[answer.request_id]
        elif (run.run_id, answer.request_id) in known and run.status.is_active:
            open_again[answer.request_id] = known[run.run_id, answer.request_id]
            return answer
        return believed(self, run, answer, source)

    def undiscerning(run: Run, message: Any, now: datetime, known_plan: Any) -> Any:
        if getattr(message, "request_id", None) in open_again:
            run = changed(run, requests={**run.requests, **open_again})
        return decide(run, message, now, known_plan)

    trust.Trust.verified = credulous  # type: ignore[method-assign]
    intake.decide = undiscerning


def offsets_are_stored_before_the_state() -> None:
    """Use two statements instead of one, so that a crash may come between them."""
    commit = ExecutorStore.commit

    async def apart(self: ExecutorStore, batch: Batch[Run]) -> set[Any]:
        offsets: Batch[Run] = Batch(at=batch.at, epochs=batch.epochs, offsets=batch.offsets)
        await commit(self, offsets)
        return await commit(self, dataclasses.replace(batch, offsets={}))

    ExecutorStore.commit = apart  # type: ignore[method-assign]


def messages_are_published_before_the_commit() -> None:
    """Send the messages of a batch before the batch is stored."""
    commit = Session._commit

    async def hasty(self: Session[Any], batch: Batch[Any]) -> set[Any]:
        await self._publisher.publish([row.outgoing for row in batch.outbox])
        return await commit(self, batch)

    Session._commit = hasty  # type: ignore[method-assign]


def the_outbox_of_the_dead_is_not_published() -> None:
    """Skip the search of a new owner for what the one before it has committed and not published."""

    async def nothing(*_args: Any) -> list[Any]:
        return []

    ExecutorStore.left_behind = nothing  # type: ignore[method-assign]


def intents_are_not_heeded() -> None:
    """Make a call that may have happened already as if it were the first."""
    begin = PostgresEffectLedger.begin

    async def unheeding(self: PostgresEffectLedger, *args: Any) -> EffectEntry:
        entry = await begin(self, *args)
        return EffectEntry(EffectState.NEW) if entry.state is EffectState.UNKNOWN else entry

    PostgresEffectLedger.begin = unheeding  # type: ignore[method-assign]


def odd_answers_count_as_nothing_done() -> None:
    """Take a status below 500 for a refusal, also where no list says so."""
    refusals.is_refusal_by_status = lambda status: status < HTTPStatus.INTERNAL_SERVER_ERROR


def leases_are_not_checked() -> None:
    """Let a worker that lost its job store its answer, even over one that was published."""
    settle = WorkerTables.settle

    def lenient(self: WorkerTables, lease: int, run_ids: Any, request_ids: Any, *rest: Any) -> Any:
        for key in zip(run_ids, request_ids, strict=True):
            if (job := self.jobs.get(key)) is not None and job.lease != lease:
                job.lease, job.state, job.answer = lease, "started", None
        return settle(self, lease, run_ids, request_ids, *rest)

    WorkerTables.settle = lenient  # type: ignore[method-assign]


def known_answers_are_replaced() -> None:
    """Store a job together with its answer even over a job that has one."""
    settle = WorkerTables.settle

    def careless(self: WorkerTables, lease: int, *rest: Any) -> Any:
        for key, answer in zip(zip(rest[5], rest[6], strict=True), rest[12], strict=True):
            if answer is not None and (job := self.jobs.get(key)) is not None:
                job.lease, job.state, job.answer = lease, "started", None
        return settle(self, lease, *rest)

    WorkerTables.settle = careless  # type: ignore[method-assign]


def jobs_that_nobody_knows_of_stay_where_they_are() -> None:
    """Let a worker ignore jobs that the table has given it without its knowing."""
    WorkerTables.reclaim = lambda *_args: []  # type: ignore[method-assign, assignment]


def answers_are_acknowledged_before_kafka_has_them() -> None:
    """Delete the row of a commit of answers, and publish them after that."""
    publish = Outbox._publish

    async def hasty(self: Outbox) -> bool:
        commits = {one.commit for one in self._stored if one.commit is not None}
        with suppress(*POSTGRES_GONE):
            await self._jobs.commit_answers([], [], [], None, acknowledged=sorted(commits))
        return await publish(self)

    Outbox._publish = hasty  # type: ignore[method-assign]


def the_answers_of_the_dead_are_not_published() -> None:
    """Take over no commit of answers that a process has left behind."""

    async def nothing(*_args: Any) -> None:
        return None

    Jobs.take_over_answers = nothing  # type: ignore[method-assign]


def answers_that_nobody_knows_of_stay_where_they_are() -> None:
    """Let a worker ignore a commit of answers of its own that took effect without its knowing."""
    take_over = WorkerTables.take_over_answers

    def trusting(self: WorkerTables, lease: int, *known: Any) -> Any:
        own = [key for key, commit in self.outbox.items() if commit.lease == lease]
        stored_by, numbers = zip(*zip(*known, strict=True), *own, strict=True) if own or known[0] else ((), ())
        return take_over(self, lease, stored_by, numbers)

    WorkerTables.take_over_answers = trusting  # type: ignore[method-assign]


def children_are_not_withdrawn() -> None:
    """Let a run that ends leave its child runs alone."""
    messages._withdrawals = lambda *_args: []


def calls_of_a_run_that_is_over_are_not_called_off() -> None:
    """Let a run that ends leave its waiting calls to the workers."""
    messages._called_off = lambda *_args: []


def withdrawn_calls_are_begun_all_the_same() -> None:
    """Begin a job without a look whether it was answered as withdrawn meanwhile."""
    start = WorkerTables.start

    def unheeding(self: WorkerTables, lease: int, run_id: Any, request_id: str) -> Any:
        job = self.jobs.get((run_id, request_id))
        if job is not None and job.answer is not None and b"withdrawn" in job.answer:
            return [(True,)]
        return start(self, lease, run_id, request_id)

    WorkerTables.start = unheeding  # type: ignore[method-assign]
    JobRunner.withdraw = lambda *_args: None  # type: ignore[method-assign]


def what_has_begun_is_answered_as_withdrawn() -> None:
    """Withdraw a job without a look whether it has begun."""
    withdraw = WorkerTables.withdraw

    def careless(self: WorkerTables, lease: int, *columns: Any) -> Any:
        for key in zip(columns[0], columns[1], strict=True):
            if (job := self.jobs.get(key)) is not None and job.state == "started":
                job.state, job.started_at = "received", None
        return withdraw(self, lease, *columns)

    WorkerTables.withdraw = careless  # type: ignore[method-assign]


def business_keys_are_granted_to_everybody() -> None:
    """Skip the check whether another call has the key."""
    ExecutorTables.reserve_key = lambda *_args: [(True,)]  # type: ignore[method-assign]


def the_key_of_a_call_under_way_is_given_on() -> None:
    """Give a key to the next call that asks, even while the call that has it is under way."""
    store.holding_under = lambda *_args: Holding(is_free=True)


def undos_are_made_under_the_key_of_the_write() -> None:
    """Take an undo for a repeat of the write, or of an earlier undo."""
    request = messages._undo_request

    def under_the_same_key(run: Run, event: Any) -> Any:
        state = run.state(event.step)
        return request(run, dataclasses.replace(event, idempotency_key=f"{run.name}:{state.id}:{state.call}"))

    messages._undo_request = under_the_same_key


def callbacks_that_are_quicker_than_the_acceptance_are_overlooked() -> None:
    """Park a call without a look whether its callback has come already."""
    WorkerTables.callbacks_lock = lambda *_args: []  # type: ignore[method-assign]


def callbacks_answer_what_is_not_parked_any_more() -> None:
    """Let a callback after the deadline be a second answer."""
    answer = WorkerTables.callbacks_answer

    def insistent(self: WorkerTables, run_id: Any, request_id: str, lease: int, encoded: bytes) -> list[Any]:
        if (job := self.jobs.get((run_id, request_id))) is not None and job.answer is not None:
            job.state, job.lease = "parked", None
        return answer(self, run_id, request_id, lease, encoded)

    WorkerTables.callbacks_answer = insistent  # type: ignore[method-assign]


def answers_are_believed_whoever_gives_them() -> None:
    """Take every message that names an open request for its answer."""
    trust.Trust.verified = lambda _self, run, answer, _source: answer if answer.request_id in run.requests else None  # type: ignore[method-assign]


def children_begin_as_the_message_says() -> None:
    """Skip the check of the parent's journal."""
    intake.asked_task = lambda _parent, told, *_: told


def the_id_of_a_child_depends_on_when_it_is_asked_for() -> None:
    """Let a parent that asks again after a failover ask for another child."""

    def child_of(run: Run, key: str) -> Any:
        return derive_run_id(run.tenant, key, int(cloudevents.utc_now().timestamp() * 1_000))

    child_runs.child_of = child_of


def deaths_are_not_counted() -> None:
    """Let each process forget that a record has killed its readers."""
    note = Schema.reading

    def forgetful(self: Schema, *columns: Any) -> list[Any]:
        self.readings_.clear()
        return note(self, *columns)

    Schema.reading = forgetful  # type: ignore[method-assign]


def a_restored_ledger_is_believed() -> None:
    """Treat what an older state of the database does not know as not done."""
    begin = WorkerTables.effects_begin

    def believing(self: WorkerTables, *columns: Any) -> list[Any]:
        self.restored_at_ms = 0
        return begin(self, *columns)

    WorkerTables.effects_begin = believing  # type: ignore[method-assign]


def a_new_owner_forgets_who_is_active() -> None:
    """Let a process that claims partitions count only the runs that it begins itself."""

    async def nobody(*_args: Any) -> list[Any]:
        return []

    ExecutorStore.active = nobody  # type: ignore[method-assign]


def the_rows_of_the_dead_are_not_caught_up() -> None:
    """Let a process that claims partitions believe that all rows of `runs` and `steps` show what the journals say."""
    ExecutorTables.behind = lambda *_: []  # type: ignore[method-assign]


def outbox_rows_go_before_kafka_has_them() -> None:
    """Count the messages of a batch as published when the batch is committed."""
    finish = Session._finish_write

    async def hasty(self: Session[Any], batch: Batch[Any], duplicates: set[Any]) -> None:
        await self._context.store.forget([row.key for row in batch.outbox_rows()])
        await finish(self, batch, duplicates)

    Session._finish_write = hasty  # type: ignore[method-assign]


def what_a_repeated_task_would_send_is_sent() -> None:
    """Publish left-behind messages also of runs that were not created."""
    left_behind = ExecutorTables.left_behind

    def all_of_them(self: ExecutorTables, partitions: Sequence[int]) -> list[Any]:
        return [_OutboxRow((*row[:-1], [])) for row in left_behind(self, partitions)]

    ExecutorTables.left_behind = all_of_them  # type: ignore[method-assign]


def plans_are_reused_after_a_change_of_contracts() -> None:
    """Keep known plans when the contracts change."""
    find = PlanCache.find

    def trusting(self: PlanCache, *args: Any) -> Any:
        self._changes = self._contracts.changes if self._contracts is not None else 0
        return find(self, *args)

    PlanCache.find = trusting  # type: ignore[method-assign]


def plans_are_reused_across_versions() -> None:
    """Know plans by the name of their playbook alone."""
    plan_cache._key = lambda playbook, _others: (playbook.name,)


def ids_of_requests_only_count() -> None:
    """Number the requests of a run, so that each life of it has the same ids for other questions."""

    def counted(run: Run, what: str, _content: list[Any]) -> str:
        return f"{run.name}:{what}:{run.requested + 1}"

    requests.next_request_id = compensation.next_request_id = counted  # type: ignore[attr-defined]


MUTATIONS: dict[str, Callable[[], None]] = {
    mutation.__name__: mutation
    for mutation in (
        epochs_are_not_checked,
        answered_requests_are_answered_again,
        offsets_are_stored_before_the_state,
        messages_are_published_before_the_commit,
        the_outbox_of_the_dead_is_not_published,
        outbox_rows_go_before_kafka_has_them,
        what_a_repeated_task_would_send_is_sent,
        the_rows_of_the_dead_are_not_caught_up,
        intents_are_not_heeded,
        odd_answers_count_as_nothing_done,
        leases_are_not_checked,
        known_answers_are_replaced,
        jobs_that_nobody_knows_of_stay_where_they_are,
        answers_are_acknowledged_before_kafka_has_them,
        the_answers_of_the_dead_are_not_published,
        answers_that_nobody_knows_of_stay_where_they_are,
        a_new_owner_forgets_who_is_active,
        answers_are_believed_whoever_gives_them,
        children_begin_as_the_message_says,
        children_are_not_withdrawn,
        calls_of_a_run_that_is_over_are_not_called_off,
        withdrawn_calls_are_begun_all_the_same,
        what_has_begun_is_answered_as_withdrawn,
        business_keys_are_granted_to_everybody,
        the_key_of_a_call_under_way_is_given_on,
        undos_are_made_under_the_key_of_the_write,
        callbacks_that_are_quicker_than_the_acceptance_are_overlooked,
        callbacks_answer_what_is_not_parked_any_more,
        deaths_are_not_counted,
        a_restored_ledger_is_believed,
        the_id_of_a_child_depends_on_when_it_is_asked_for,
        plans_are_reused_after_a_change_of_contracts,
        plans_are_reused_across_versions,
        ids_of_requests_only_count,
    )
}

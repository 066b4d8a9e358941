"""Every schedule that a seed can think of ends as the guarantees say, and a seed gives the same schedule each time.

More of them: `make simulate SEEDS=100000`, or TRIPTYCH_TEST_SCHEDULES here. docs/how-to/testing.md says what is simulated.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from simulated.invariants import is_lost_child
from simulated.postgres import ExecutorTables

from triptych.kernel.kafka.cloudevents import utc_now

HERE = Path(__file__).parent
SCHEDULES = int(os.environ.get("TRIPTYCH_TEST_SCHEDULES", "2000"))
MUTATIONS = {
    "epochs_are_not_checked": "was committed in epoch",
    "answered_requests_are_answered_again": "the journal",
    "offsets_are_stored_before_the_state": "not over",
    "messages_are_published_before_the_commit": "before it was committed",
    "the_outbox_of_the_dead_is_not_published": "not over",
    "outbox_rows_go_before_kafka_has_them": "not over",
    "what_a_repeated_task_would_send_is_sent": "dead letters",
    "the_rows_of_the_dead_are_not_caught_up": "steps says",
    "intents_are_not_heeded": "took effect 2 times",
    "odd_answers_count_as_nothing_done": "took effect 2 times",
    "leases_are_not_checked": "with two bodies",
    "known_answers_are_replaced": "with two bodies",
    "jobs_that_nobody_knows_of_stay_where_they_are": "not over",
    "answers_are_acknowledged_before_kafka_has_them": "not over | was stored and never published",
    "the_answers_of_the_dead_are_not_published": "not over",
    "answers_that_nobody_knows_of_stay_where_they_are": "not over",
    "a_new_owner_forgets_who_is_active": "whose limit is",
    "answers_are_believed_whoever_gives_them": "a forgery was believed",
    "children_begin_as_the_message_says": "a forgery was believed",
    "children_are_not_withdrawn": "not over",
    "calls_of_a_run_that_is_over_are_not_called_off": "were not called off",
    "withdrawn_calls_are_begun_all_the_same": "was withdrawn before it began, and was done",
    "what_has_begun_is_answered_as_withdrawn": "was withdrawn before it began, and was done",
    "business_keys_are_granted_to_everybody": "took effect under",
    "the_key_of_a_call_under_way_is_given_on": "took effect under",
    "undos_are_made_under_the_key_of_the_write": "could not be undone",
    "callbacks_that_are_quicker_than_the_acceptance_are_overlooked": "its callback has come already",
    "callbacks_answer_what_is_not_parked_any_more": "with two bodies",
    "deaths_are_not_counted": "not over",
    "a_restored_ledger_is_believed": "took effect 2 times",
    "the_id_of_a_child_depends_on_when_it_is_asked_for": "became 2 runs",
    "plans_are_reused_after_a_change_of_contracts": "reuses a plan",
    "plans_are_reused_across_versions": "reuses a plan",
}


def simulate(*arguments: str, hash_seed: str = "0") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "simulated", *arguments],
        cwd=HERE,
        env={**os.environ, "PYTHONPATH": str(HERE), "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.timeout(3600)
def test_every_schedule_ends_as_the_guarantees_say():
    played = simulate("--seeds", str(SCHEDULES))
    assert played.returncode == 0, played.stdout + played.stderr


@pytest.mark.parametrize("seed", ["185", "259"])
def test_a_seed_gives_the_same_schedule_in_every_process(seed):
    first = simulate("--seed", seed, "--digest", hash_seed="1")
    second = simulate("--seed", seed, "--digest", hash_seed="2")
    assert len(first.stdout.strip()) == 64, first.stderr
    assert first.stdout == second.stdout


@pytest.mark.parametrize(("mutation", "told"), MUTATIONS.items())
def test_a_defect_is_found(mutation, told):
    played = simulate("--seeds", "5000", "--mutation", mutation)
    assert played.returncode == 1, f"{mutation} was not found: {played.stdout}{played.stderr}"
    assert any(each in played.stdout for each in told.split(" | ")), played.stdout


PARENT = UUID(int=1)
LOST = f"{PARENT}:s9:2"


def restored(*, asks_for: str = f"{PARENT}:s9:1", known: str = "task-1", is_restored: bool = True) -> Any:
    """Return a world whose parent run has asked for one child run, and whose tables know one task."""
    tables = ExecutorTables(utc_now)
    tables.tasks["acme", known] = PARENT
    lines = f'CallRequested {{"idempotency_key": "{asks_for}"}}\nChildResumed {{"child": "{LOST}"}}'
    tables.journal[PARENT] = {1: (utc_now(), lines)}
    return SimpleNamespace(restore=SimpleNamespace(is_there=is_restored), schemas={"executor": tables})


@pytest.mark.parametrize(
    "task_id",
    [
        pytest.param(LOST, id="its parent takes another course"),
        pytest.param(f"{UUID(int=2)}:s9:1", id="the task of its parent has become another run"),
    ],
)
def test_a_child_that_no_run_asks_for_after_a_restore_owes_no_outcome(task_id):
    assert is_lost_child(restored(), SimpleNamespace(task_id=task_id))


@pytest.mark.parametrize(
    ("world", "task_id"),
    [
        pytest.param(restored(is_restored=False), LOST, id="without a restore"),
        pytest.param(restored(asks_for=LOST), LOST, id="its parent asks for it again"),
        pytest.param(restored(known=LOST), LOST, id="the database knows it"),
        pytest.param(restored(), "task-2", id="a client asked for it"),
    ],
)
def test_every_other_run_owes_its_outcome_also_after_a_restore(world, task_id):
    assert not is_lost_child(world, SimpleNamespace(task_id=task_id))

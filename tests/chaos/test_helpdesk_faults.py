"""A helpdesk that fails in each way it can: its clients get through, and nothing is written twice."""

from __future__ import annotations

from itertools import product

from support_desk import WRITES_PER_RUN, SupportDesk, outcomes_of, submit_tickets, ticket_of

from triptych.client import Client
from triptych.examples.faults import FaultKind

CURED_BY_TIME = [kind for kind in FaultKind if kind not in {FaultKind.SHAPE, FaultKind.ERROR_IN_BODY}]
"""An answer that is not what was agreed is for a person, since a write has happened; see docs/reference/faults.md."""
TICKETS = 4
FAULTS_PER_TICKET = 2
HANG_MS = 6_000
"""Longer than the tool waits: the work is done after it has stopped listening."""


async def test_whatever_way_the_helpdesk_fails_each_write_takes_effect_once(desk: SupportDesk) -> None:
    kinds = [kind.value.replace("_", "-") for kind in CURED_BY_TIME]
    for (kind, name), number in product(zip(CURED_BY_TIME, kinds, strict=True), range(TICKETS)):
        desk.helpdesk(
            "POST",
            "/faults",
            {
                "fault": kind.value,
                "ticket": ticket_of(f"{name}-{number}"),
                "times": FAULTS_PER_TICKET,
                "hang_ms": HANG_MS,
                "retry_after_s": 0.5,
            },
        )
    async with Client.from_stack(desk.folder) as client:
        task_ids = [task_id for name in kinds for task_id in await submit_tickets(client, name, TICKETS)]
        outcomes = await outcomes_of(client, task_ids, within_s=240)
    assert {(outcome.task_id, outcome.status.value) for outcome in outcomes if outcome.final} == {
        (task_id, "succeeded") for task_id in task_ids
    }
    assert desk.helpdesk("GET", "/faults") == [], "every fault was met"
    assert desk.writes(task_ids) == len(task_ids) * WRITES_PER_RUN

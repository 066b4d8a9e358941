"""Two runs want the same business key at once, on two executors: one effect. Executors, planner and tool are real."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest
from pipeline import COMPACTED, TOPICS, Pipeline, pipeline, playbook
from pydantic import BaseModel

from triptych.schemas import BusinessKey, Outcome, OutcomeStatus
from triptych.tools import Effect, ErrorCode, Tool, ToolFailure

RACERS = 4


class Refund(BaseModel):
    number: int


@dataclass
class Bank:
    """Pays whatever it is told to, each time anew."""

    paid: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    """So many calls for an invoice are refused first, and certainly do nothing."""

    wait_s: dict[str, float] = field(default_factory=dict)
    """So long the payment of an invoice takes."""

    def tool(self) -> Tool:
        tool = Tool("bank")
        receipt = BusinessKey(value="refund:${{ arguments.invoice }}", on_repeat="receipt")

        @tool.operation(effect=Effect.ONCE, business_key=receipt)
        async def refund(invoice: str) -> Refund:
            """Refunds an invoice."""
            return await self.pay(invoice)

        @tool.operation(effect=Effect.ONCE)
        async def pay_out(invoice: str) -> Refund:
            """Pays an invoice out."""
            return await self.pay(invoice)

        return tool

    async def pay(self, invoice: str) -> Refund:
        await asyncio.sleep(self.wait_s.get(invoice, 0.05))
        if self.refusals[invoice]:
            self.refusals[invoice] -= 1
            raise ToolFailure(ErrorCode.FORBIDDEN, "not now", undone=True)
        self.paid[invoice] += 1
        return Refund(number=self.paid.total())


ARGUMENTS = {"invoice": "${{ input.invoice }}"}
OUTPUT = {"number": "${{ steps.pay.data.number }}"}
PLAYBOOKS = [
    playbook("refund", [{"id": "pay", "operation": "bank.refund", "arguments": ARGUMENTS}], output=OUTPUT),
    playbook(
        "pay-out",
        [
            {
                "id": "pay",
                "operation": "bank.pay_out",
                "arguments": ARGUMENTS,
                "business_key": {"value": "payout:${{ arguments.invoice }}", "for": "30d"},
            }
        ],
        output=OUTPUT,
    ),
    playbook(
        "hasty",
        [
            {
                "id": "pay",
                "operation": "bank.pay_out",
                "arguments": ARGUMENTS,
                "business_key": {"value": "hasty:${{ arguments.invoice }}", "for": "1s"},
            }
        ],
        output=OUTPUT,
    ),
]


@pytest.fixture(scope="module")
def bank() -> Bank:
    return Bank()


@pytest.fixture(scope="module")
async def desk(servers, prefix, database, create_topics, *, tmp_path_factory, bank) -> AsyncIterator[Pipeline]:
    await create_topics(*TOPICS, "calls.bank")
    await create_topics(*COMPACTED, partitions=1)
    folder = tmp_path_factory.mktemp("keys")
    running = pipeline(servers, prefix, database, folder, tool=bank.tool(), playbooks=PLAYBOOKS, executors=2)
    async with running as desk:
        yield desk


async def race(desk: Pipeline, book: str, invoice: str, runs: int = RACERS, tenant: str = "acme") -> list[Outcome]:
    """Publish so many tasks at once, and wait for what becomes of each."""
    ids = [f"{book}-{invoice}-{tenant}-{number}" for number in range(runs)]
    await asyncio.gather(*(desk.client.submit(book, {"invoice": invoice}, task_id=one, tenant=tenant) for one in ids))
    return list(await asyncio.gather(*(desk.client.wait(one, tenant=tenant, timeout_s=60, final=False) for one in ids)))


async def test_runs_that_want_one_key_at_once_make_one_write_and_share_its_receipt(desk: Pipeline, bank: Bank) -> None:
    outcomes = await race(desk, "refund", "R-1")
    assert {outcome.status for outcome in outcomes} == {OutcomeStatus.SUCCEEDED}
    assert len({outcome.output["number"] for outcome in outcomes}) == 1
    assert bank.paid["R-1"] == 1
    rows = await desk.rows("select distinct partition from executor.runs where task_id like 'refund-R-1-%'")
    assert len(rows) == 2, "they were on different partitions, so on different executors"


async def test_all_but_one_get_a_conflict_that_names_the_first_where_that_is_declared(
    desk: Pipeline, bank: Bank
) -> None:
    outcomes = await race(desk, "pay-out", "P-1")
    (done,) = [outcome for outcome in outcomes if outcome.status is OutcomeStatus.SUCCEEDED]
    refused = [outcome for outcome in outcomes if outcome is not done]
    assert {outcome.reason.code for outcome in refused} == {"conflict"}
    assert all(str(done.run_id) in outcome.reason.message for outcome in refused)
    assert bank.paid["P-1"] == 1


async def test_a_key_is_unique_in_a_tenant_and_free_in_another(desk: Pipeline, bank: Bank) -> None:
    await race(desk, "refund", "T-1", runs=1)
    await race(desk, "refund", "T-1", runs=1, tenant="globex")
    assert bank.paid["T-1"] == 2


async def test_a_key_whose_write_was_refused_is_free_for_the_next(desk: Pipeline, bank: Bank) -> None:
    bank.refusals["F-1"] = 1
    (refused,) = await race(desk, "refund", "F-1", runs=1)
    assert refused.reason.code == "identity"
    (again,) = await race(desk, "refund", "F-1", runs=1, tenant="acme-2")
    assert again.status is OutcomeStatus.SUCCEEDED
    await desk.client.submit("refund", {"invoice": "F-1"}, task_id="f-1-next", tenant="acme")
    assert (await desk.client.wait("f-1-next", tenant="acme", final=False)).status is OutcomeStatus.SUCCEEDED
    assert bank.paid["F-1"] == 2


async def test_a_key_is_free_again_when_its_time_is_over(desk: Pipeline, bank: Bank, eventually) -> None:
    await race(desk, "hasty", "H-1", runs=1)

    async def is_over() -> bool:
        """The time of the key begins with the answer, which came before the run was over."""
        rows = await desk.rows(
            "select 1 from executor.business_keys k join executor.runs r on r.run_id = k.run_id "
            "where k.key = 'hasty:H-1' and r.finished_at + (k.expires_at - k.reserved_at) < now()"
        )
        return bool(rows)

    await eventually(is_over)
    await desk.client.submit("hasty", {"invoice": "H-1"}, task_id="later", tenant="acme")
    assert (await desk.client.wait("later", tenant="acme", final=False)).status is OutcomeStatus.SUCCEEDED
    assert bank.paid["H-1"] == 2


async def test_the_time_of_a_key_begins_with_the_answer_to_its_write(desk: Pipeline, bank: Bank) -> None:
    bank.wait_s["L-1"] = 2.5
    (first,) = await race(desk, "hasty", "L-1", runs=1)
    assert first.status is OutcomeStatus.SUCCEEDED
    await desk.client.submit("hasty", {"invoice": "L-1"}, task_id="at-once", tenant="acme")
    second = await desk.client.wait("at-once", tenant="acme", final=False)
    assert (second.reason.code, bank.paid["L-1"]) == ("conflict", 1)


async def test_the_audit_knows_the_keys(desk: Pipeline) -> None:
    await race(desk, "refund", "V-1", runs=1)
    assert await desk.problems() == []
    await desk.change("update executor.business_keys set idempotency_key = 'nobody' where key = 'refund:V-1'")
    assert any("refund:V-1" in problem for problem in await desk.problems())

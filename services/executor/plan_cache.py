"""The plan cache: fixed plans that the planner has made, for later runs of the same playbook version.

A first fixed plan follows from the playbook, the playbooks that it may hand over to, and the contracts. The input of a
run is not among them. So the planner is asked once, and any change of a contract empties the cache. A plan from here is
an input of a decision: the journal holds it as the planner's, and replay needs no cache.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from datetime import datetime

from triptych.contracts.compiled_contract import CompiledContract, compiled_handoff_contract
from triptych.executor.state import Run
from triptych.executor.transition import KnownPlan
from triptych.executor.trust import Contracts
from triptych.playbook.plans import PlanContext, check_steps, make_plan
from triptych.schemas import HANDOFF, CallAnswer, ErrorCode, FixedPlan, Limits, Plan, PlanAnswer, Playbook

MAX_KNOWN = 256

_Key = tuple[str, ...]


class PlanCache:
    """Keeps plans while the contracts stay as they are."""

    def __init__(self, contracts: Contracts | None) -> None:
        """Take the contracts. Without them, no plan is kept: for tests of other things."""
        self._contracts = contracts
        self._known: OrderedDict[_Key, KnownPlan] = OrderedDict()
        self._changes = 0
        """The changes of the contracts when the plans were kept."""

    def find(self, playbook: Playbook, others: Iterable[Playbook]) -> KnownPlan | None:
        """Return the plan of a playbook version, or None when the planner must be asked."""
        if self._contracts is None or not isinstance(playbook.plan, FixedPlan):
            return None
        if self._changes != self._contracts.changes:
            self._known.clear()
            return None
        return self._known.get(_key(playbook, others))

    def keep(self, run: Run, answer: PlanAnswer, now: datetime) -> None:
        """Keep the plan that a run has accepted as its first, if the contracts of today give the same one."""
        if self._contracts is None or answer.plan is None or run.revision != 1:
            return
        playbook, plan = run.playbook, answer.plan
        if not isinstance(playbook.plan, FixedPlan) or plan != _plan_of_today(playbook, run.others, self._contracts):
            return
        if self._changes != self._contracts.changes:
            self._changes = self._contracts.changes
            self._known.clear()
        self._known[_key(playbook, run.others)] = KnownPlan(plan, answer.worker, now)
        while len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)

    def drop_if_outdated(self, run: Run, answer: CallAnswer) -> None:
        """Drop the plan of a run whose tool says that it pins another contract than the tool offers.

        The tool tells everybody on the topic of contracts, too, but this process may hear of it later.
        """
        error = answer.result.error
        if error is not None and error.code is ErrorCode.CONTRACT_VIOLATION and "planned" in error.details:
            self._known.pop(_key(run.playbook, run.others), None)


def _key(playbook: Playbook, others: Iterable[Playbook]) -> _Key:
    return (playbook.name, playbook.version, *(part for other in others for part in (other.name, other.version)))


def _plan_of_today(playbook: Playbook, others: tuple[Playbook, ...], contracts: Contracts) -> Plan | None:
    """Make the first plan of a fixed playbook as the planner does; None when the contracts do not allow it."""
    assert isinstance(playbook.plan, FixedPlan)  # noqa: S101 - the caller has looked
    offers: dict[str, CompiledContract] = dict(contracts.operations(playbook.tools))
    known = tuple(other.as_other for other in others)
    if playbook.handoffs:
        offers[HANDOFF] = compiled_handoff_contract(playbook.handoffs, known)
    context = PlanContext(
        offers=offers,
        max_steps=playbook.budgets.steps,
        retry=playbook.retry,
        others=known,
        limits=playbook.limits or Limits(),
    )
    return None if check_steps(playbook.plan.steps, context) else make_plan(playbook.plan.steps, context)

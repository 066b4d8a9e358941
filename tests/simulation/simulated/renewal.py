"""A playbook gets another version and a tool other contracts, while runs of that playbook begin before and after.

It draws from a seed of its own, so that the other faults of a schedule are drawn as they are without it. The tool takes
calls under both contracts: whether a plan is the right one is checked here, at the moment at which it is reused.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from simulated import desk
from triptych.contracts.compiled_contract import CompiledContract
from triptych.executor import events as ev
from triptych.executor.deployments import Deployment
from triptych.executor.intake import Executor
from triptych.executor.state import Run
from triptych.kernel.decider import Transition
from triptych.kernel.worker import JobAttempt
from triptych.planner.worker import Planner
from triptych.schemas import PlanRequest, Playbook

if TYPE_CHECKING:
    from simulated.world import Process, World

SHARE = 0.12
"""In so many schedules it happens."""


class View(desk.Registry):
    """The contracts as one process knows them: those of before, until it hears of the others."""

    def __init__(self, *, is_renewed: bool) -> None:
        self.is_renewed, self.changes = is_renewed, 1

    def renew(self) -> None:
        """Hear of the other contracts."""
        self.changes += not self.is_renewed
        self.is_renewed = True

    def get(self, operation: str) -> CompiledContract | None:
        return self.operations(()).get(operation)

    def remembered(self, contract_hash: str) -> CompiledContract | None:
        is_new = contract_hash not in desk.BY_HASH
        return desk.BY_NEW_HASH.get(contract_hash) if is_new and self.is_renewed else desk.BY_HASH.get(contract_hash)

    def operations(self, patterns: Any) -> dict[str, CompiledContract]:
        return desk.NEW_OFFERS if self.is_renewed else desk.OFFERS


class Renewal:
    """Submits tasks of one playbook, in some schedules, and renews the playbook and the contracts in between."""

    def __init__(self, world: World, seed: int) -> None:
        self._world, self._random = world, random.Random(f"renewal {seed}")  # noqa: S311
        self.is_there = self._random.random() < SHARE
        self._is_done = False
        self._views: list[View] = []
        self._executors: dict[str, WatchedExecutor] = {}
        """By instance, the one of its newest life."""
        self._old: list[Deployment] = []
        self._new: dict[str, Deployment] = {}

    @property
    def playbooks(self) -> list[Playbook]:
        """Every version of every playbook."""
        every = (*self._world.deployments.values(), *self._old, *self._new.values())
        return list({one.playbook.version: one.playbook for one in every}.values())

    def begin(self) -> None:
        """Let tasks of a playbook come one after the other, and another version of it at some moment."""
        if not self.is_there:
            return
        draw, world = self._random, self._world
        world.fault_count += 1
        world.faults["renewed"] += 1
        first = draw.choice(list(world.missions.values()))
        renewed = draw.choice([one for one in (first.deployment, first.child) if one is not None])
        self._old.append(renewed)
        self._new[renewed.playbook.name] = _another_version(renewed.playbook)
        for number in range(draw.randint(2, 5)):
            again = dataclasses.replace(
                first,
                task_id=f"{first.task_id}-again-{number}",
                resumes_left=draw.randint(0, 2),
                cancel_after_s=None,
                **{each: type(getattr(first, each))() for each in ("finals", "handed_over", "answers")},
                reasons=[],
                run_ids=set(),
            )
            world.missions[again.task_id] = again
            world._unfinished.add(again.task_id)
            world.scheduler.after(draw.uniform(0.3, 8.0), world._publish_task, again, draw.randrange(world.partitions))
        world.scheduler.after(draw.uniform(0.5, 6.0), self._renew)

    def _renew(self) -> None:
        self._world.note("renewed", *self._new)
        self._is_done = True
        self._world.deployments.update(self._new)
        for view in self._views:
            self._world.scheduler.after(self._random.choice((0.0, 0.05, 1.0, 4.0)), view.renew)
        for executor in self._executors.values():
            later_s = self._random.uniform(0.0, 1.0)
            self._world.scheduler.after(later_s, executor.offer, self._world.deployments, {})

    def view(self) -> desk.Registry:
        """Return the contracts for a process that starts: it knows everything that was announced before."""
        if not self.is_there:
            return desk.Registry()
        self._views.append(View(is_renewed=self._is_done))
        return self._views[-1]

    def follow(self, process: Process, executor: WatchedExecutor) -> None:
        """Let an executor that has started hear of other versions."""
        self._executors[process.instance] = executor

    def check(self, run: Run, events: Iterable[Any], view: desk.Registry) -> None:
        """Check that a plan that is reused is the one that the planner would make at this moment."""
        for event in events:
            if isinstance(event, ev.PlanAccepted) and event.made_at is not None:
                self._world.played["plans reused"] += 1
                if event.plan != planned(run, view):
                    self._world.violations.append(
                        f"{run.run_id} reuses a plan that its playbook and contracts rule out"
                    )


class WatchedExecutor(Executor):
    """The executor; the simulation looks at what it decides."""

    def __init__(self, renewal: Renewal, view: desk.Registry, *args: Any) -> None:
        super().__init__(*args, contracts=view)
        self._renewal, self._view = renewal, view

    def apply(self, *args: Any, **named: Any) -> Transition[Run] | None:
        transition = super().apply(*args, **named)
        if transition is not None:
            self._renewal.check(transition.state, transition.events, self._view)
        return transition


def _another_version(playbook: Playbook) -> Deployment:
    retry = playbook.retry.model_copy(update={"base_ms": playbook.retry.base_ms + 1})
    return Deployment.of(Playbook.model_validate_json(playbook.model_copy(update={"retry": retry}).to_bytes()))


def planned(run: Run, view: desk.Registry) -> Any:
    """Return the first plan that the planner makes for a run; None if it makes none."""
    playbook, registry, nobody = run.playbook, _as_any(view), _as_any(None)
    request = PlanRequest(
        request_id="again",
        run_id=run.run_id,
        tenant=run.tenant,
        partition=run.partition,
        deadline_at=run.deadline_at,
        playbook=playbook.name,
        goal=playbook.goal,
        input=run.input,
        spec=playbook.plan,
        tools=playbook.tools,
        revision=1,
        max_steps=playbook.budgets.steps,
        retry=playbook.retry,
        handoffs=playbook.handoffs,
        others=tuple(other.as_other for other in run.others),
        limits=playbook.limits,
    )
    making = Planner(registry, nobody, model_timeout_ms=1).execute(request, JobAttempt(lease=1))
    try:
        making.send(None)  # every answer is there already
    except StopIteration as made:
        return made.value.plan
    raise AssertionError("the planner of a fixed plan waits for something")


def _as_any(value: Any) -> Any:
    return value

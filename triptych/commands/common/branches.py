"""Which branches of a step a person wants to see: those that did not go well. Pure.

A step over a thousand items has thousands of events; what went as it should is told in one line.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from triptych.client import StepRow
from triptych.commands.common.story import StepCost, StoryLine

MAX_SHOWN = 8
"""So many branches of a step are shown, even if all went well."""
_CALM = ("", "green", "cyan", "dim")


def step_of(name: str) -> str:
    """Return the step that a branch such as `replies.3` belongs to."""
    return name.partition(".")[0]


def folded(lines: Sequence[StoryLine]) -> list[StoryLine]:
    """Leave out the lines of branches that went well, where a step has many; one line counts them."""
    hidden = _calm(lines)
    shown: list[StoryLine] = []
    told: set[str] = set()
    for line in lines:
        if line.step not in hidden:
            shown.append(line)
        elif (step := step_of(line.step)) not in told:
            told.add(step)
            count = sum(step_of(name) == step for name in hidden)
            text = f"{count:,} branches have nothing unusual to tell and are left out; --full shows them"
            shown.append(StoryLine(line.seq, line.at, line.type, step, text, "dim"))
    return shown


def _calm(lines: Sequence[StoryLine]) -> set[str]:
    tones: dict[str, set[str]] = defaultdict(set)
    for line in lines:
        if "." in line.step:
            tones[line.step].add(line.tone)
    of_step: dict[str, list[str]] = defaultdict(list)
    for name in tones:
        of_step[step_of(name)].append(name)
    many = {name for names in of_step.values() if len(names) > MAX_SHOWN for name in names}
    return {name for name in many if tones[name].issubset(_CALM)}


def folded_steps(steps: Sequence[StepRow]) -> list[StepRow]:
    """Return the steps, each with its branches below it in the order of its items; of many only those that failed."""
    branches: dict[str, list[StepRow]] = defaultdict(list)
    for row in steps:
        if "." in row.step_id:
            branches[step_of(row.step_id)].append(row)
    shown: list[StepRow] = []
    for row in steps:
        if "." not in row.step_id:
            own = sorted(branches[row.step_id], key=lambda branch: int(branch.step_id.partition(".")[2]))
            is_many = len(own) > MAX_SHOWN
            shown += [row, *(branch for branch in own if not is_many or branch.status not in ("succeeded", "skipped"))]
    return shown


def with_branches(costs: dict[str, StepCost]) -> dict[str, StepCost]:
    """Add the costs of branches to those of their step."""
    whole = {name: StepCost(cost.requests, cost.tokens, cost.usd_micros) for name, cost in costs.items()}
    for name, cost in costs.items():
        if "." in name:
            step = whole.setdefault(step_of(name), StepCost())
            step.requests += cost.requests
            step.tokens += cost.tokens
            step.usd_micros += cost.usd_micros
    return whole

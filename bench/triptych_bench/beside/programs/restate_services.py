"""The services that Restate calls: runs of five steps, and the step by itself for a process of its own."""

from __future__ import annotations

import restate
from hold import STEPS

runs = restate.Service("Runs")
steps = restate.Service("Steps")


async def step(value: int) -> int:
    return value


@steps.handler()
async def elsewhere(_ctx: restate.Context, value: int) -> int:
    return value


@runs.handler()
async def in_process(ctx: restate.Context) -> list[int]:
    return [await ctx.run_typed("step", step, value=1) for _ in range(STEPS)]


@runs.handler()
async def other_process(ctx: restate.Context) -> list[int]:
    return [await ctx.service_call(elsewhere, 1) for _ in range(STEPS)]


runs_app = restate.app([runs])
steps_app = restate.app([steps])

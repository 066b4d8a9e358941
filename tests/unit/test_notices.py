"""What the log of the executor says of runs: one line for each thing that a person may have to look at."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from machine_story import RUN_ID, Story, model_playbook, playbook, step

from triptych.executor.machine import GivenUp
from triptych.executor.notices import WHY_MAX_CHARS, notices
from triptych.kernel.decider import Batch, Notice
from triptych.kernel.decider.session import Session
from triptych.kernel.process.health import Health
from triptych.schemas import Effect, ErrorCode, Reason, Result

ABOUT = {"run_id": str(RUN_ID), "task_id": "t-1", "tenant": "default", "trace_id": RUN_ID.hex}


def lines(story: Story) -> list[tuple[str, str]]:
    """The level and name of the lines about what has just happened; each names run, task, tenant and trace."""
    found = notices(story.run, story.last)
    assert all(dict(each.fields, **ABOUT) == each.fields for each in found)
    return [(each.level, each.event) for each in found]


def test_a_retry_that_counts_has_a_line_and_one_that_waits_for_room_has_none() -> None:
    story = Story().plan(step("a", retry={"max_attempts": 2}))
    assert lines(story) == []
    refused = Result.failed(ErrorCode.RATE_LIMITED, "full", postponed="rate")
    assert lines(story.result("a", refused)) == []
    story.wait(seconds=20).fail("a", ErrorCode.UNAVAILABLE)
    assert lines(story) == [("info", "retry")]
    (retry,) = notices(story.run, story.last)
    assert retry.fields["step"] == "a"
    assert (retry.fields["operation"], retry.fields["reason"]) == ("echo.echo", "unavailable")


def test_an_escalation_has_one_line_with_its_reason_and_a_resume_that_succeeds_none() -> None:
    story = Story().plan(step("a", retry={"max_attempts": 1})).fail("a", ErrorCode.UNAVAILABLE)
    assert lines(story) == [("warning", "run escalated")], "the step that failed is named in it"
    assert notices(story.run, story.last)[0].fields["reason"] == "tool_unavailable"
    assert lines(story.control("resume")) == []
    assert lines(story.result("a")) == []


def test_a_run_that_processes_died_of_has_a_line_when_it_is_given_up() -> None:
    story = Story().plan(step("a")).tell(GivenUp(Reason(code="deadly_run", message="x" * 5_000)))
    assert lines(story) == [("warning", "run escalated")]
    assert len(notices(story.run, story.last)[0].fields["why"]) == WHY_MAX_CHARS


def test_a_run_that_fails_or_is_cancelled_has_a_line_and_names_what_is_in_doubt() -> None:
    write = step("a", effect=Effect.ONCE, retry={"max_attempts": 1})
    story = Story().plan(write).fail("a", ErrorCode.IN_DOUBT)
    assert lines(story) == [("warning", "in doubt"), ("warning", "run escalated")]
    assert lines(story.control("abort", note="enough")) == [("warning", "run failed"), ("warning", "in doubt")]
    assert lines(Story().plan(write).control("cancel")) == [("info", "run cancelled"), ("warning", "left under way")]


def test_a_plan_that_did_not_work_out_and_a_branch_that_failed_have_a_line_each() -> None:
    story = Story(model_playbook()).plan(step("a")).fail("a", ErrorCode.NOT_FOUND)
    assert lines(story) == [("info", "replan")]
    fan = step("a", map="${{ [1, 2] }}", arguments={"x": "${{ item }}"}, retry={"max_attempts": 1})
    story = Story(playbook(parallel=2)).plan(fan).fail("a.0", ErrorCode.NOT_FOUND)
    assert lines(story) == [("warning", "step failed")]


@pytest.mark.parametrize("duplicates", [set(), {RUN_ID}])
def test_a_line_is_written_when_what_it_says_is_committed_and_never_of_a_run_that_did_not_come_to_be(
    duplicates: set[UUID],
) -> None:
    said: list[tuple[str, Any]] = []
    log = SimpleNamespace(error=lambda event, **fields: said.append((event, fields)))
    health = Health("executor", "one")
    batch: Batch[Any] = Batch(notices=[(RUN_ID, Notice("error", "alert", {"run_id": "r"}, "alerts"))])
    session: Any = SimpleNamespace(_context=SimpleNamespace(service=SimpleNamespace(log=log, health=health)))
    Session._log_notices(session, batch, duplicates)
    assert said == ([] if duplicates else [("alert", {"run_id": "r"})])
    assert health.counters.get("alerts", 0) == (0 if duplicates else 1)

"""Which models are asked, and which of their answers may be given again: none that a write waits for."""

from __future__ import annotations

import pytest
from machine_story import REQUESTS, Story, model_playbook, playbook, read, step

from triptych.executor.messages import messages
from triptych.schemas import CallRequest, Cost, Decision, Effect, Recall, ReviewRequest

COSTLY = Cost(tokens=1_000, usd_micros=1_000)


def sent(story: Story, kind: type) -> dict[str | None, object]:
    """The requests of a kind that the last message sent out, by step."""
    sends = messages(story.run, story.last, story.now)
    bodies = [read(send) for send in sends if REQUESTS.get(send.event_type) is kind]
    return {body.step if isinstance(body, CallRequest) else body.step and body.step.id: body for body in bodies}


def recalls(story: Story, kind: type = CallRequest) -> dict[str | None, Recall]:
    return {name: body.recall for name, body in sent(story, kind).items()}


READS = (step("ask", cost=COSTLY), step("show", "ask"))
WRITES = (
    step("ask", cost=COSTLY),
    step("other", cost=COSTLY),
    step("between", "ask"),
    step("write", "between", effect=Effect.IDEMPOTENT),
)


def test_an_answer_that_only_reads_wait_for_may_be_given_again() -> None:
    assert recalls(Story().plan(*READS)) == {"ask": Recall.YES}


def test_an_answer_that_a_write_waits_for_is_always_a_new_one() -> None:
    assert recalls(Story().plan(*WRITES)) == {"ask": Recall.NO, "other": Recall.YES}


def test_a_call_without_a_cost_asks_no_model_and_keeps_nothing() -> None:
    assert recalls(Story().plan(step("a"))) == {"a": Recall.NO}


@pytest.mark.parametrize(("cache", "recall"), [("all", Recall.YES), ("off", Recall.NO)])
def test_the_playbook_may_allow_more_or_nothing(cache: str, recall: Recall) -> None:
    assert recalls(Story(playbook(cache=cache)).plan(*WRITES)) == {"ask": recall, "other": recall}


@pytest.mark.parametrize(("cache", "recall"), [("reads", Recall.NO), ("all", Recall.YES)])
def test_under_a_plan_of_a_model_a_later_plan_may_write(cache: str, recall: Recall) -> None:
    assert recalls(Story(model_playbook(cache=cache)).plan(*READS)) == {"ask": recall}


def test_an_answer_that_was_not_good_enough_is_asked_anew_and_replaced() -> None:
    story = Story().plan(step("ask", cost=COSTLY, expect="false"))
    story.result("ask").verdict("ask", Decision.RETRY).wait(seconds=1)
    assert recalls(story) == {"ask": Recall.RENEW}


@pytest.mark.parametrize(("steps", "recall"), [(READS, Recall.YES), (WRITES, Recall.NO)])
def test_a_judgement_is_given_again_where_its_step_would_be(steps: tuple, recall: Recall) -> None:
    judged = steps[0].model_copy(update={"judge": step("x", judge={"criteria": "good"}).judge})
    story = Story().plan(judged, *steps[1:])
    assert recalls(story.result("ask"), ReviewRequest) == {"ask": recall}


@pytest.mark.parametrize(("steps", "recall"), [(READS, Recall.YES), (WRITES, Recall.NO)])
def test_the_judgement_of_a_run_that_wrote_is_a_new_one(steps: tuple, recall: Recall) -> None:
    story = Story(playbook(review="final", judge={"criteria": "good"})).plan(*steps)
    for one in steps:
        story.result(one.id)
    assert recalls(story, ReviewRequest) == {None: recall}


def test_a_step_asks_the_tier_that_it_or_its_playbook_names() -> None:
    story = Story(playbook(tier="cheap")).plan(step("a", tier="strong"), step("b"))
    assert {name: body.tier for name, body in sent(story, CallRequest).items()} == {"a": "strong", "b": "cheap"}
    assert [body.tier for body in sent(Story().plan(step("a")), CallRequest).values()] == [None]

"""The demo's content holds what it promises, and the scripted model answers by its rules."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from ruamel.yaml import YAML

from triptych.examples.faults import Fault, FaultBook, FaultKind
from triptych.examples.helpdesk.store import KeyReusedError, Store, StoredWrite
from triptych.examples.helpdesk.tickets import habitual_fault, view
from triptych.examples.model_server.classify import classify
from triptych.examples.model_server.draft import answer, draft
from triptych.examples.model_server.judge import judge
from triptych.examples.model_server.misbehaviour import Misbehaviour, Temper, without_markers
from triptych.examples.model_server.plan import plan
from triptych.examples.model_server.prompt import ChatRequest, Prompt, PromptError, TaskKind, understand
from triptych.examples.model_server.words import sentences, words
from triptych.json_schema import JsonSchema
from triptych.playbook.loader import load_playbook
from triptych.schemas import Playbook, StepSpec, Task

ROOT = Path(__file__).parents[2]
TICKETS = ROOT / "examples/demo/tickets.jsonl"
KNOWLEDGE = ROOT / "examples/demo/articles"
PLAYBOOKS = {path.stem: load_playbook(path) for path in (ROOT / "examples/demo/playbooks").glob("*.yaml")}
LINES = TICKETS.read_text().splitlines()


def article(path: Path) -> dict[str, Any]:
    _, front, body = path.read_text().split("---\n", 2)
    return {**YAML(typ="safe").load(front), "body": body}


ARTICLES = [article(path) for path in sorted(KNOWLEDGE.glob("*.md"))]


def accepted(line: str) -> Task | None:
    """The task in a line, if a run would come of it."""
    try:
        task = Task.model_validate_json(line)
        fits = JsonSchema.of(PLAYBOOKS[task.playbook].input).is_valid(task.input)
    except (ValidationError, KeyError):
        return None
    return task if fits else None


TASKS = [task for task in map(accepted, LINES) if task is not None]


def covered(task: Task) -> float:
    """The share of a ticket's words that the best article has: a rough stand-in for the search's score."""
    asked = set(words(f"{task.input['subject']} {task.input['body']}"))
    return max(len(asked & set(words(f"{found['title']} {found['body']}"))) / len(asked) for found in ARTICLES)


# The shipped tickets


def test_there_are_enough_tickets_of_every_kind() -> None:
    distinct = {(task.tenant, task.task_id) for task in TASKS}
    tickets = [str(task.input.get("ticket_id")) for task in TASKS]
    assert len(LINES) >= 44
    assert len(LINES) - len(TASKS) >= 4, "malformed"
    assert len(TASKS) - len(distinct) == 3, "repeats"
    assert sum(task.task_id is None for task in TASKS) == 1
    assert Counter(task.playbook for task in TASKS)["account-review"] == 2
    assert Counter(task.playbook for task in TASKS)["call-back"] == 3
    for habit in ("-flaky-", "-limited-", "-drop-", "-slow-", "-down-"):
        assert any(habit in ticket for ticket in tickets)


def test_one_malformed_line_is_not_json_and_one_is_not_an_object() -> None:
    kinds = []
    for line in LINES:
        try:
            kinds.append(type(json.loads(line)))
        except ValueError:
            kinds.append(str)
    assert Counter(kinds)[str] == 1
    assert Counter(kinds)[list] == 1


def test_what_the_knowledge_base_cannot_answer_is_far_from_every_article() -> None:
    shares = sorted(covered(task) for task in TASKS if task.playbook == "support-ticket")
    assert [share for share in shares if share < 0.2] == shares[:6]
    assert shares[6] > 0.45


# The playbooks and the knowledge base


def test_the_playbooks_are_valid() -> None:
    patterns = {"queue-triage", "front-desk", "checked-reply", "research", "incident-manager"}
    assert patterns | {"support-ticket", "account-review"} <= set(PLAYBOOKS)
    assert all(isinstance(playbook, Playbook) and playbook.name == name for name, playbook in PLAYBOOKS.items())


def test_the_articles_are_complete_and_their_ids_unique() -> None:
    assert len(ARTICLES) >= 60
    assert len({found["id"] for found in ARTICLES}) == len(ARTICLES)
    assert len({found["title"] for found in ARTICLES}) == len(ARTICLES)
    for found in ARTICLES:
        assert set(found) == {"id", "title", "category", "updated", "body"}
        assert 120 <= len(found["body"].split()) <= 250, found["id"]


def test_no_sentence_stands_in_two_articles() -> None:
    told = Counter(line for found in ARTICLES for line in set(sentences(found["body"])))
    assert [line for line, times in told.items() if times > 1] == []


# The rules of the scripted model


def test_a_ticket_is_classified_by_its_words() -> None:
    found = classify({"subject": "SAML sign-in fails", "body": "Nobody can sign in, we are blocked. Urgent!"})
    assert found["category"] == "login"
    assert found["urgency"] == "high"
    assert found["summary"] == "Nobody can sign in, we are blocked."


def test_a_ticket_without_telling_words_is_other_with_little_confidence() -> None:
    found = classify({"subject": "Hedge", "body": "Please trim the hedge."})
    assert (found["category"], found["confidence"]) == ("other", 0.3)


def test_a_draft_says_what_its_articles_say_and_cites_them() -> None:
    wanted = next(found for found in ARTICLES if found["title"] == "Reset your password")
    drafted = draft(
        {"customer": "Ana", "subject": "Password reset", "body": "Is the reset link valid?", "articles": [wanted]}
    )
    assert drafted["subject"] == "Re: Password reset"
    assert drafted["citations"] == [wanted["id"]]
    assert "valid for 30 minutes" in drafted["body"]


def test_a_draft_without_a_fitting_article_cites_nothing() -> None:
    drafted = draft({"subject": "Forklift battery", "body": "It barely lifts pallets.", "articles": ARTICLES[:3]})
    assert drafted["citations"] == []


def test_an_answer_comes_from_the_sources() -> None:
    told = answer({"question": "How long is the password reset link valid?", "sources": ARTICLES})
    assert "30 minutes" in told["answer"]
    unknown = answer({"question": "Which sailor lifted the regatta trophy?", "sources": ARTICLES})
    assert unknown == {"answer": "The sources do not answer this.", "citations": []}


def test_the_judge_passes_what_the_sources_bear_out() -> None:
    sources = [{"id": "kb-1", "body": "The reset link is valid for 30 minutes. It works once."}]
    passed = judge({"answer": {"body": "The reset link is valid for 30 minutes."}, "sources": sources})
    assert (passed["pass"], passed["confidence"]) == (True, 1.0)


def test_the_judge_fails_what_is_made_up_and_names_it() -> None:
    failed = judge({"answer": "We give you a free yacht.", "sources": ["The reset link works once."]})
    assert failed["pass"] is False
    assert "yacht" in failed["evidence"][0]


OFFERED = [{"operation": name} for name in ("kb.search", "helpdesk.lookup", "model.draft", "helpdesk.assign")]
QUESTION = {"account": "Osterfeld", "ticket_id": "T-1", "question": "How many entities does the Scale plan include?"}


def test_a_plan_has_two_branches_and_uses_both() -> None:
    steps = [
        StepSpec.model_validate_json(json.dumps(step)) for step in plan({"operations": OFFERED}, QUESTION)["steps"]
    ]
    search, history, brief, _ = steps
    assert not search.depends_on
    assert not history.depends_on
    assert f"steps.{search.id}." in str(brief.arguments)
    assert f"steps.{history.id}." in str(brief.arguments)


def test_after_a_failure_the_plan_searches_for_the_topic_instead_of_the_name() -> None:
    first = plan({"operations": OFFERED, "revision": 1}, QUESTION)["steps"]
    second = plan({"operations": OFFERED, "revision": 2, "failure": {"code": "search_too_narrow"}}, QUESTION)["steps"]
    assert first[0]["arguments"]["query"] == "Osterfeld"
    assert "entities" in second[0]["arguments"]["query"]
    assert first[0]["id"] != second[0]["id"]
    assert first[1] == second[1], "a branch that ended well stays as it was"


def test_a_plan_uses_only_what_is_on_offer() -> None:
    steps = plan({"operations": OFFERED[:2]}, QUESTION)["steps"]
    assert {step["operation"] for step in steps} == {"kb.search", "helpdesk.lookup"}


# What a prompt is, and what provokes the model


def asked(system: str = "TASK: classify", user: str = '{"input": {"subject": "s"}}', **fields: Any) -> Prompt:
    messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
    return understand(ChatRequest.model_validate({"model": "scripted-cheap", "messages": messages, **fields}))


def test_the_task_is_read_from_the_system_prompt_and_the_material_from_the_first_user_message() -> None:
    prompt = asked("TASK: judge\nBe strict.", '{"answer": "a"}')
    assert (prompt.task, prompt.material) == (TaskKind.JUDGE, {"answer": "a"})


@pytest.mark.parametrize(
    ("system", "user", "fields"),
    [
        ("Hello.", "{}", {}),
        ("TASK: sing", "{}", {}),
        ("TASK: draft", "not JSON", {}),
        ("TASK: draft", "[]", {}),
        ("TASK: draft", "{}", {"stream": True}),
    ],
)
def test_a_prompt_that_cannot_be_answered_is_refused(system: str, user: str, fields: dict[str, Any]) -> None:
    with pytest.raises(PromptError):
        asked(system, user, **fields)


def test_a_marker_that_says_once_strikes_once_for_each_input() -> None:
    temper = Temper()
    one = asked(user='{"input": {"body": "a [[model:500-once]]"}}')
    repaired = asked(user='{"input": {"body": "a [[model:500-once]]"}, "errors": ["try again"]}')
    other = asked(user='{"input": {"body": "b [[model:500-once]]"}}')
    struck = [temper.provoked(prompt) for prompt in (one, repaired, other)]
    assert struck == [Misbehaviour.ERROR_ONCE, None, Misbehaviour.ERROR_ONCE]


def test_a_marker_can_concern_one_task_alone() -> None:
    marked = '{"input": {"body": "a [[model:draft:refuse]]"}}'
    assert Temper().provoked(asked("TASK: classify", marked)) is None
    assert Temper().provoked(asked("TASK: draft", marked)) is Misbehaviour.REFUSE


def test_the_rules_do_not_read_markers() -> None:
    assert without_markers("Hello [[model:draft:refuse]]") == "Hello"


# The helpdesk's parts


def test_a_fault_strikes_what_it_names_as_often_as_it_says() -> None:
    book = FaultBook()
    book.arm(Fault(fault=FaultKind.ERROR, operation="replies", ticket="T-1", times=2))
    attempts = [("tags", "T-1"), ("replies", "T-2"), ("replies", "T-1"), ("replies", "T-1"), ("replies", "T-1")]
    struck = [book.take(operation, lambda named, ticket=ticket: named == ticket) for operation, ticket in attempts]
    assert [fault is not None for fault in struck] == [False, False, True, True, False]


@pytest.mark.parametrize(
    ("ticket", "faults"),
    [
        ("T-1", [False, False, False]),
        ("T-flaky-1", [True, True, False]),
        ("T-limited-1", [True, False, False]),
        ("T-down-1", [True, True, True]),
    ],
)
def test_some_tickets_fail_by_their_name(ticket: str, faults: list[bool]) -> None:
    assert [habitual_fault(ticket, requests) is not None for requests in (1, 2, 3)] == faults


def test_the_store_applies_a_key_once_and_refuses_it_for_another_write(tmp_path: Path) -> None:
    with Store(tmp_path / "helpdesk.sqlite") as store:
        first, repeated_first = store.apply("k", "tags", "T-1", {"tags": ["a"]})
        again, repeated_again = store.apply("k", "tags", "T-1", {"tags": ["a"]})
        assert first == again
        assert (repeated_first, repeated_again) == (False, True)
        with pytest.raises(KeyReusedError):
            store.apply("k", "tags", "T-1", {"tags": ["b"]})
        assert len(store.effects()) == 1


def test_a_ticket_is_what_its_effects_add_up_to() -> None:
    def effect(seq: int, operation: str, body: dict[str, Any]) -> StoredWrite:
        return StoredWrite(seq, f"k{seq}", operation, "T-1", body, {"id": f"{operation}-{seq}"}, "2026-01-01")

    seen = view("T-1", [effect(1, "tags", {"tags": ["a", "b"]}), effect(2, "tags", {"tags": ["b"]})])
    assert seen["tags"] == ["a", "b"]
    assert seen["replies"] == []

"""A playbook file is accepted, or every mistake in it is named with its line and a cure."""

from __future__ import annotations

from pathlib import Path

import pytest

from triptych.playbook.loader import LocatedDiagnostic, PlaybookErrors, load_playbook, parse_playbook
from triptych.schemas import FixedPlan, Playbook, codec

FILE = Path("support.yaml")

GOOD = """\
name: support
goal: Answer the ticket
input:
  type: object
  required: [subject]
  properties: {subject: {type: string}}
tools: [kb.search, model.*]
plan:
  pattern: fixed
  steps:
    - id: search
      operation: kb.search
      arguments: {query: "${{ input.subject }}"}
      expect: result.status == "ok" && result.data.top_score > 0.3
    - id: draft
      operation: model.draft
      when: steps.search.status == "ok"
      arguments: {articles: "${{ steps.search.data.hits }}"}
output: {articles: "${{ steps.search.data.hits }}"}
"""


def problems(text: str) -> tuple[LocatedDiagnostic, ...]:
    with pytest.raises(PlaybookErrors) as caught:
        parse_playbook(text, FILE)
    return caught.value.problems


def changed(old: str, new: str) -> str:
    assert old in GOOD
    return GOOD.replace(old, new)


def test_a_good_playbook_is_read_as_it_is_written(tmp_path: Path) -> None:
    file = tmp_path / "support.yaml"
    file.write_text(GOOD)
    playbook = load_playbook(file)
    assert playbook.name == "support"
    assert isinstance(playbook.plan, FixedPlan)
    assert [step.id for step in playbook.plan.steps] == ["search", "draft"]


@pytest.mark.parametrize(
    ("properties", "complaint"),
    [
        ("{subject: {type: string}, priority: {type: string, default: 5}}", "input.properties.priority.default"),
        ("{subject: {type: string}, priority: {$ref: '#/$defs/one', default: low}}", "is not one of"),
    ],
)
def test_a_default_has_to_fit_its_own_schema(properties: str, complaint: str) -> None:
    text = changed("{subject: {type: string}}", f"{properties}\n  $defs: {{one: {{enum: [high]}}}}")
    (problem,) = problems(text)
    assert problem.line == 6
    assert complaint in str(problem)


def test_the_version_depends_on_the_meaning_and_not_on_the_layout() -> None:
    other = "# a comment\n" + changed('"${{ input.subject }}"', "'${{ input.subject }}'")
    assert parse_playbook(GOOD, FILE).version == parse_playbook(other, FILE).version


def test_all_mistakes_are_reported_at_once_in_the_order_of_the_file() -> None:
    text = changed("name: support", "name: Support").replace("  pattern: fixed", "  pattern: fixd")
    assert [problem.line for problem in problems(text)] == [1, 8]


@pytest.mark.parametrize(
    ("old", "new", "line", "path", "words"),
    [
        ("goal: Answer the ticket", "goaal: Answer", 1, "", "`goal` is missing"),
        ("goal: Answer the ticket", "goal: a\ngoaal: b", 3, "goaal", "Did you mean `goal`?"),
        ("goal: Answer the ticket", "goal: a\ngoal: b", 3, "", "the key `goal` is here twice"),
        ("goal: Answer the ticket", "goal: 2026-01-01", 2, "goal", "Put it in quotes"),
        ("goal: Answer the ticket", "goal: [a", 3, "", "not YAML"),
        ("goal: Answer the ticket", "goal: !!python/none x", 2, "goal", "no form in JSON"),
        ("type: object", "type: objekt", 4, "input.type", "not a valid JSON Schema"),
        ("type: object", "type: array", 4, "input.type", "Use `type: object`"),
        ("type: object", "$ref: 'http://localhost:1/schema'", 3, "input", "which is not in this schema"),
        ("[kb.search, model.*]", "[search]", 7, "tools[0]", "must match"),
        ("[kb.search, model.*]", "[model.*]", 12, "plan.steps[0].operation", "or add `kb.search` to `tools`"),
        ("id: draft", "id: search", 15, "plan.steps[1].id", "another step is called `search`"),
        ("when: steps.search", "when: steps.serch", 17, "plan.steps[1].when", "Did you mean `search`?"),
        ("when: steps.search", "depends_on: [x]\n      when: steps.search", 17, "plan.steps[1].depends_on[0]", "no step `x`"),
        ('steps.search.data.hits }}"}\noutput', 'steps.search.( }}"}\noutput', 18, "plan.steps[1].arguments.articles", "character"),
        ('steps.search.data.hits }}"}\noutput', 'result.data }}"}\noutput', 18, "plan.steps[1].arguments.articles", "no variable `result`"),
        ("${{ input.subject }}", "${{ steps.draft.data }}", 11, "plan.steps[0]", "wait for each other"),
        ('output: {articles: "${{ steps.search', 'output: {articles: "${{ steps.find', 19, "output.articles", "no step `find`"),
        ("output:", "judge: {criteria: good}\noutput:", 19, "judge", "Set `review: final`"),
        ("output:", "budgets: {steps: 1}\noutput:", 19, "budgets.steps", "or set a larger budget"),
        ("output:", "review: always\noutput:", 19, "review", "'every_step', 'exceptions' or 'final'"),
        ("output:", "parallel: 0\noutput:", 19, "parallel", "greater than or equal to 1"),
        ("  pattern: fixed\n", "", 8, "plan", "Set `pattern`"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_line_its_path_and_a_cure(
    old: str, new: str, line: int, path: str, words: str
) -> None:
    found = problems(changed(old, new))
    assert (line, path) in {(problem.line, problem.path) for problem in found}, found
    assert any(words in str(problem) for problem in found), found


def test_an_item_that_is_wrong_is_not_reported_as_absent_too() -> None:
    assert len(problems(changed("operation: kb.search", "operation: 5"))) == 1


def test_nested_aliases_cannot_fill_the_memory() -> None:
    levels = ["a0: &a0 [1]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    [problem] = problems("\n".join(levels))
    assert "Use fewer aliases" in problem.cure


def test_a_file_that_is_not_there_is_a_problem_and_no_crash(tmp_path: Path) -> None:
    with pytest.raises(PlaybookErrors, match="No such file"):
        load_playbook(tmp_path / "none.yaml")


def test_every_shipped_playbook_is_good() -> None:
    files = sorted((Path(__file__).parents[2] / "examples/demo/playbooks").glob("*.yaml"))
    for file in files:
        load_playbook(file)


def test_an_item_of_a_list_is_named_by_its_list() -> None:
    (problem,) = problems(changed("[kb.search, model.*]", "[kb.search, model.*, Shop]"))
    assert (problem.line, problem.path) == (7, "tools[2]")
    assert "`tools[2]` has characters that are not allowed" in str(problem)


def mapped(line: str) -> str:
    return GOOD.replace("      operation: model.draft\n", f"      operation: model.draft\n      {line}\n")


def test_a_step_with_a_map_sees_its_item_and_no_other_step_does() -> None:
    over_hits = mapped("map: ${{ steps.search.data.hits }}")
    using_item = over_hits.replace('${{ steps.search.data.hits }}"}\noutput', '${{ [item] }}"}\noutput')
    parse_playbook(using_item, FILE)
    (problem,) = problems(using_item.replace("      map: ${{ steps.search.data.hits }}\n", ""))
    assert "there is no variable `item` here" in problem.message


def test_a_map_that_can_be_no_list_is_a_mistake() -> None:
    (problem,) = problems(mapped("map: all ${{ input.subject }}"))
    assert (problem.path, problem.message) == ("plan.steps[1].map", "a text is not a list")
    (unknown,) = problems(mapped("map: ${{ steps.serach.data }}"))
    assert "there is no step `serach`" in unknown.message


@pytest.mark.parametrize(
    ("line", "path", "message"),
    [
        ("fallback: [{operation: shop.find}]", "fallback[0].operation", "`shop.find` is not offered to this playbook"),
        ("fallback: [{operation: playbook.run}]", "fallback[0].operation", "cannot be a fallback"),
        ('fallback: [{operation: model.ask, arguments: {q: "${{ serach }}"}}]', "fallback[0].arguments.q", "serach"),
        ('fallback: [{operation: model.ask, arguments: {q: "${{ steps.no.data }}"}}]', "fallback[0].arguments.q", "no"),
        ("must_come_from: {articles: steps.serach}", "must_come_from", "there is no step `serach`"),
    ],
)
def test_what_stands_in_and_where_arguments_come_from_are_checked_as_the_planner_does(
    line: str, path: str, message: str
) -> None:
    (problem,) = problems(mapped(line))
    assert problem.path.startswith(f"plan.steps[1].{path}"), problem.path
    assert message in problem.message


@pytest.mark.parametrize(
    "line",
    [
        'fallback: [{operation: kb.search, arguments: {query: "${{ steps.draft.data }}"}}]',
        "must_come_from: {query: steps.draft}",
    ],
)
def test_a_circle_through_what_stands_in_or_where_arguments_come_from_is_named(line: str) -> None:
    (problem,) = problems(GOOD.replace("      operation: kb.search\n", f"      operation: kb.search\n      {line}\n"))
    assert "wait for each other" in problem.message


NUMBERS = """\
name: numbers
goal: x
input: {type: object}
tools: [lab.book]
plan:
  pattern: fixed
  steps:
    - id: b
      operation: lab.book
      arguments: {order: %s}
"""


@pytest.mark.parametrize("number", [1180591620717411303424, -(2**63) - 1, 10**999])
def test_an_integer_of_a_playbook_is_exact_and_so_is_its_version(number: int) -> None:
    playbook = parse_playbook(NUMBERS % number, FILE)
    assert isinstance(playbook.plan, FixedPlan)
    assert playbook.plan.steps[0].arguments == {"order": number}
    assert playbook.version == parse_playbook(NUMBERS % number, FILE).version
    assert playbook.version != parse_playbook(NUMBERS % (number + 1), FILE).version
    assert codec.read(Playbook, playbook.to_bytes()).version == playbook.version


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ('"half \\ud83d"', "half of a surrogate pair"),
        (".nan", "NaN is not a JSON number"),
        ("-.inf", "-Infinity is not a JSON number"),
        ("1" * 1_001, "a number has more than 1,000 digits"),
    ],
)
def test_a_value_that_json_cannot_carry_is_a_finding_with_its_line(value: str, told: str) -> None:
    (problem,) = problems(NUMBERS % value)
    assert (problem.line, problem.path) == (10, "plan.steps[0].arguments.order")
    assert told in problem.message


@pytest.mark.parametrize("value", ["1" * 5_000, "0x" + "f" * 5_000, "[" * 1_500 + "]" * 1_500, "1e400"])
def test_a_value_that_no_reader_takes_is_a_finding(value: str) -> None:
    assert problems(NUMBERS % value)


def test_a_large_double_of_a_playbook_has_the_same_version_after_a_jsonb_column() -> None:
    playbook = parse_playbook(NUMBERS % "1.0e+22", FILE)
    stored = codec.for_jsonb(playbook.to_bytes())
    assert b"10000000000000000000000.0" in stored
    assert codec.read(Playbook, stored).version == playbook.version

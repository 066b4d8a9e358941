"""What an expression or a template may do, what it gives, and what it must never be able to do."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triptych.playbook import expressions
from triptych.playbook.expressions import ExpressionError, program
from triptych.schemas import Json

SCOPE: dict[str, Any] = {
    "input": {
        "name": "Ana",
        "count": 3,
        "share": 0.5,
        "nothing": None,
        "address": {"city": "Bern"},
        "tags": ["a", "b"],
    },
    "steps": {
        "search": {"status": "ok", "data": {"hits": [{"id": "kb-1", "score": 0.9}], "top_score": 0.9}},
        "look-up": {"status": "empty", "data": None},
    },
    "result": {"status": "ok", "data": {"category": "billing"}},
}

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def test_an_expression_reads_input_steps_and_result() -> None:
    assert expressions.evaluate("steps.search.data.hits[0].id", SCOPE) == "kb-1"
    assert expressions.evaluate('steps["look-up"].status', SCOPE) == "empty"
    assert expressions.holds("steps.search.data.top_score >= 0.5 && result.status == 'ok'", SCOPE)


def test_a_condition_must_be_true_or_false() -> None:
    with pytest.raises(ExpressionError, match="gives 3 where true or false is needed"):
        expressions.holds("input.count", SCOPE)


def test_a_template_that_is_one_reference_keeps_the_type() -> None:
    assert expressions.render({"n": "${{ input.count }}", "t": ["${{input.tags}}"]}, SCOPE) == {
        "n": 3,
        "t": [["a", "b"]],
    }


def test_a_template_inside_a_text_is_printed() -> None:
    text = "${{ input.name }}: ${{ input.count }}, ${{ input.share }}, ${{ input.nothing }}, ${{ input.address }}"
    assert expressions.render(text, SCOPE) == 'Ana: 3, 0.5, null, {"city":"Bern"}'


def test_braces_in_strings_and_maps_do_not_end_a_template() -> None:
    assert expressions.render("${{ '}}' }}", SCOPE) == "}}"
    assert expressions.render('${{ {"a": {"b": input.count}} }}', SCOPE) == {"a": {"b": 3}}
    assert expressions.render('write ${{ "${{" }}', SCOPE) == "write ${{"


def test_what_is_put_in_is_not_rendered_again() -> None:
    hostile = {"input": {"body": "${{ steps.secret.data }}"}, "steps": {"secret": {"data": "x"}}}
    assert expressions.render("${{ input.body }}", hostile) == "${{ steps.secret.data }}"


@given(JSON)
def test_a_reference_gives_back_the_value_it_refers_to(value: Any) -> None:
    assert expressions.render("${{ input.value }}", {"input": {"value": value}}) == value


def test_values_without_templates_are_left_alone() -> None:
    value = {"a": [1, None, {"b": "no template"}]}
    assert expressions.render(value, SCOPE) == value
    assert not expressions.has_templates(value)
    assert expressions.has_templates({"a": ["x ${{ input.name }}"]})


def test_references_name_the_steps_of_templates_and_of_expressions() -> None:
    arguments = {"q": "${{ steps.search.data }} and ${{ steps['look-up'].data }}", "plain": "steps.not_meant"}
    assert expressions.references(arguments) == {"search", "look-up"}
    assert expressions.references_of("steps.a.status == 'ok' && 'steps.b' != input.steps.c") == {"a"}
    assert expressions.references_of(None) == set()


def test_a_syntax_error_says_where() -> None:
    with pytest.raises(ExpressionError, match="Syntax error") as caught:
        expressions.check("input.a &&\n input.b ==")
    assert caught.value.position == len("input.a &&\n input.b ==")


@pytest.mark.parametrize(
    ("expression", "complaint"),
    [
        ("inptu.name", "there is no variable `inptu` here"),
        ("input.tags.exists(t, s == 'a')", "there is no variable `s` here"),
        ("lower(input.name)", "there is no function `lower`"),
        ("steps[input.name].data", "name the step that is meant"),
        ("size(steps) > 1", "name the step that is meant"),
        ("1" + " + 1" * 600, "longer than 2000 characters"),
        ("(" * 500, "Syntax error|recursion"),
        ("", "Syntax error"),
    ],
)
def test_a_check_finds_what_would_fail_later(expression: str, complaint: str) -> None:
    with pytest.raises(ExpressionError, match=complaint):
        expressions.check(expression)


def test_a_check_can_forbid_the_result() -> None:
    with pytest.raises(ExpressionError, match="there is no variable `result` here"):
        expressions.check("result.status == 'ok'", frozenset({"input", "steps"}))


EXAMPLES = {
    "'abc'.contains('b')": True,
    "'abc'.startsWith('a')": True,
    "'abc'.endsWith('c')": True,
    "'abc'.matches('^a.c$')": True,
    "size('abc')": 3,
    "dyn(1)": 1,
    "type(1) == int": True,
    "int('7')": 7,
    "uint(7)": 7,
    "double(1)": 1.0,
    "string(1.5)": "1.5",
    "size(bytes('abc'))": 3,
    "duration('90m') > duration('1h')": True,
    "timestamp('2026-01-02T03:04:05.006Z').getFullYear()": 2026,
    "timestamp('2026-01-02T03:04:05.006Z').getMonth()": 0,
    "timestamp('2026-01-02T03:04:05.006Z').getDate()": 2,
    "timestamp('2026-01-02T03:04:05.006Z').getDayOfMonth()": 1,
    "timestamp('2026-01-02T03:04:05.006Z').getDayOfWeek()": 5,
    "timestamp('2026-01-02T03:04:05.006Z').getDayOfYear()": 1,
    "timestamp('2026-01-02T03:04:05.006Z').getHours()": 3,
    "timestamp('2026-01-02T03:04:05.006Z').getMinutes()": 4,
    "timestamp('2026-01-02T03:04:05.006Z').getSeconds()": 5,
    "timestamp('2026-01-02T03:04:05.006Z').getMilliseconds()": 6,
}


NUMBERS: dict[str, Json] = {
    "input.whole * 100": 1_000,
    "input.part * 100": 1_050,
    "100 * input.part": 1_050,
    "input.part - 1": 9.5,
    "1 + input.part": 11.5,
    "input.whole / 4": 2.5,
    "input.whole / 5": 2,
    "int(input.whole / 4)": 2,
    "-7 % 3": -1,
    "7.5 % 2": 1.5,
    "1e300 % 3": 1,
    "19.99 * 100": 1_999,
    "0.1 + 0.2": 0.3,
    "(input.whole / 3) * 3": 10,
    "1 + 2 * 3 - 4 / 2": 5,
    "-input.part * -2": 21,
    "2 - -1.5": 3.5,
    ".5 + 1.5e-1": 0.65,
    "0x1F - 1u": 30,
    "size(input.prices) * 1.5": 3,
    "input.prices[2 - 1] * 2": 5,
    "{'a': 1 + 1.5}['a']": 2.5,
    "input.prices.map(price, price * 2)": [2, 5],
    "input.prices.filter(price, price * 2 > 2.5)": [2.5],
    "3 in [1 + 2, 5]": True,
    "input.part > 1 + 1 ? 'a' + 'b' : 'c'": "ab",
    "1 / 0 > 1 || true": True,
    "[1] + [2.5]": [1, 2.5],
    "b'a' + b'b' == b'ab'": True,
    "'1+' + '2' + input.text": "1+2+",
    "'aab'.matches('^a+b$') && 1.5 * 2 == 3": True,
    "duration('90m') - duration('1h')": "1800s",
    "timestamp('2026-01-01T00:00:00Z') + duration('1h')": "2026-01-01T01:00:00Z",
    "9007199254740993 * 1.0": 9_007_199_254_740_993,
    "4611686018427387904 * 2 - 1": 2**63 - 1,
    "1" + " + 1.5" * 300: 451,
}


@pytest.mark.parametrize("expression", NUMBERS)
def test_numbers_are_numbers_whether_they_are_whole_or_not(expression: str) -> None:
    scope: dict[str, Json] = {"input": {"whole": 10, "part": 10.5, "prices": [1, 2.5], "text": "+"}}
    expressions.check(expression)
    value = expressions.evaluate(expression, scope)
    assert value == NUMBERS[expression]
    assert type(value) is type(NUMBERS[expression])
    assert expressions.evaluate(f"[{expression}].filter(each, true)[0]", scope) == value


CALCULATIONS = st.recursive(
    st.integers(0, 99).map(str),
    lambda inner: (
        st.tuples(inner, st.sampled_from(["+", "-", " - ", "*"]), inner).map("".join)
        | inner.map(lambda text: f"({text})")
        | inner.map(lambda text: f"-({text})")
    ),
    max_leaves=8,
)


@given(CALCULATIONS)
def test_signs_brackets_and_precedence_are_kept(calculation: str) -> None:
    assert expressions.evaluate(calculation, {}) == eval(calculation)  # noqa: S307 - digits, brackets and signs


@pytest.mark.parametrize("expression", EXAMPLES)
def test_every_function_that_passes_the_check_works(expression: str) -> None:
    expressions.check(expression)
    assert expressions.evaluate(expression, {}) == EXAMPLES[expression]


def test_every_function_has_an_example() -> None:
    assert all(any(f"{function}(" in example for example in EXAMPLES) for function in expressions.FUNCTIONS)


@pytest.mark.parametrize(
    ("expression", "complaint"),
    [
        ("input.nmae", "there is no `nmae`"),
        ("steps.later.data", "there is no `later`"),
        ("input.tags[7]", "7"),
        ("input.count + input.tags", "is not defined for a number and a list"),
        ("'n: ' + input.count", "convert one with string(...)"),
        ("null * 2", "is not defined for null and a number"),
        ("1 / 0", "division by zero"),
        ("1 % 0.0", "division by zero"),
        ("1e308 * 10", "larger than any number"),
        ("18446744073709551615u + 1", "beyond 64 bits"),
        ("double('nan')", "not JSON"),
        ("b'bytes'", "not JSON"),
        ("{1: 2}", "keys that are not text"),
    ],
)
def test_an_evaluation_that_fails_says_why(expression: str, complaint: str) -> None:
    with pytest.raises(ExpressionError, match=f"(?i){complaint}"):
        expressions.evaluate(expression, SCOPE)


def test_times_become_text() -> None:
    assert expressions.evaluate('timestamp("2026-01-02T03:04:05Z")', {}) == "2026-01-02T03:04:05Z"
    assert expressions.evaluate('duration("90m")', {}) == "5400s"


def test_an_unclosed_template_says_where_it_begins() -> None:
    with pytest.raises(ExpressionError, match="not closed") as caught:
        expressions.render("dear ${{ input.name }", SCOPE)
    assert caught.value.position == len("dear ")


@pytest.mark.parametrize(
    "expression",
    [
        "input.list.map(a, input.list.map(b, a))",
        "input.list.map(a, a + a).map(a, a + a).map(a, a + a).map(a, a + a)",
        "[input.list].map(a, a + a + a + a + a).map(a, a + a + a + a + a).map(a, a.map(b, b))",
        "[[input.list]].map(a, [a, a, a, a]).map(a, [a, a, a, a]).map(a, [a, a, a, a]).map(a, [a, a, a, a])",
    ],
)
def test_an_expression_that_would_take_minutes_is_refused_before_it_runs(expression: str) -> None:
    with pytest.raises(ExpressionError, match="too costly"):
        expressions.evaluate(expression, {"input": {"list": list(range(10_000))}})


def test_doubling_a_text_again_and_again_is_refused() -> None:
    with pytest.raises(ExpressionError, match=r"too costly|at most"):
        expressions.evaluate("[input.text]" + ".map(t, t + t)" * 8, {"input": {"text": "x" * 1_000_000}})


def test_macros_nested_three_deep_are_refused() -> None:
    with pytest.raises(ExpressionError, match="nested 3 deep"):
        expressions.check("input.l.all(a, input.l.all(b, input.l.all(c, true)))")


def test_rendered_arguments_have_a_size_limit() -> None:
    scope = {"input": {"text": "x" * 600_000}}
    with pytest.raises(ExpressionError, match="exceed 1048576 bytes"):
        expressions.render(["${{ input.text }}", "${{ input.text }}"], scope)


def test_a_value_that_is_nested_too_deep_is_refused() -> None:
    value: Any = "${{ input.name }}"
    for _ in range(200):
        value = [value]
    with pytest.raises(ExpressionError, match="nested more than"):
        expressions.render(value, SCOPE)
    with pytest.raises(ExpressionError, match="nested more than"):
        expressions.references(value)


def test_operands_are_the_paths_whose_values_explain_an_expectation() -> None:
    expression = (
        "result.data.score >= 0.5 && size(result.data.hits) > 0 && result.data.hits.exists(h, h.id == input.id)"
    )
    assert expressions.operands(expression) == ["result.data.score", "result.data.hits", "input.id"]


@given(st.text(alphabet="input.steps[]()'\"{}$ +&|!?:,0123aä💥\\\n", max_size=60))
def test_no_text_makes_the_checker_fail_in_an_unknown_way(text: str) -> None:
    try:
        expressions.check(text)
        expressions.references(text)
    except ExpressionError:
        pass


NESTED = st.dictionaries(
    st.sampled_from(["input", "result"]),
    st.dictionaries(st.sampled_from("ab"), JSON | st.dictionaries(st.sampled_from("ab"), JSON)),
)


@pytest.mark.parametrize(
    "expression",
    [
        "input.a.b == result.a",
        "input.a == 1 || result.b.a == 'x'",
        "size(input.a) > size(result.a.b)",
        "input.a.b.size() == 0",
        'input["a"].b == input.a.b',
        "has(input.a) && input.a == 1",
        "[input.a, input.b][0] == input . a // input.b",
        "input.a.map(each, each == input.b)",
        "'input.a' + input.a",
        "operand_0 == input.a",
        "input.a ? {'a': input.b}.a : result.a",
    ],
)
@given(scope=NESTED)
def test_an_expression_over_what_it_refers_to_gives_what_it_gives_over_everything(expression: str, scope: Any) -> None:
    compiled = program._compile(expression)
    assert _outcome(compiled, scope) == _outcome(compiled._replace(flat=None), scope)


def _outcome(compiled: program._Compiled, scope: Any) -> str:
    try:
        return repr(_sorted(program._evaluate(compiled, scope)))
    except ExpressionError as error:
        return str(error)


def _sorted(value: Any) -> Any:
    """Sort the keys of objects: CEL gives them in any order."""
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    return [_sorted(each) for each in value] if isinstance(value, list) else value


BIG = 12345678901234567890123


@pytest.mark.parametrize("big", [2**64, -(2**63) - 1, BIG, 10**999])
@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("${{ input.x }}", lambda big: big),
        ("order ${{ input.x }}", lambda big: f"order {big}"),
        ("${{ input.list[1].id }}", lambda big: big + 1),
        ("${{ input.list.filter(i, i.id == input.x) }}", lambda big: [{"id": big}]),
        ('${{ {"order": input.x} }}', lambda big: {"order": big}),
    ],
)
def test_an_integer_beyond_64_bits_is_passed_on_exactly(big, template, expected):
    scope = {"input": {"x": big, "list": [{"id": big}, {"id": big + 1}]}, "steps": {}}
    assert expressions.render(template, scope) == expected(big)


def test_integers_beyond_64_bits_are_equal_only_when_they_are():
    scope = {"input": {"x": BIG, "y": BIG + 1, "z": BIG}, "steps": {}}
    assert expressions.holds("input.x == input.z", scope)
    assert not expressions.holds("input.x == input.y", scope)
    assert not expressions.holds("input.x in [input.y, 1]", scope)


@pytest.mark.parametrize(
    "expression", ["input.x + 1", "input.x > 5", "input.x < input.y", "string(input.x)", "-input.x"]
)
def test_counting_with_an_integer_beyond_64_bits_fails_and_says_why(expression):
    scope = {"input": {"x": BIG, "y": BIG + 1}, "steps": {}}
    with pytest.raises(ExpressionError, match="integers beyond 64 bits can be passed on"):
        expressions.evaluate(expression, scope)


def nested(depth: int) -> list:
    return [nested(depth - 1)] if depth > 1 else []


def test_what_a_template_puts_in_may_be_as_deep_as_any_value_and_no_deeper():
    assert expressions.render({"a": "${{ input.x }}"}, {"input": {"x": nested(99)}})
    with pytest.raises(ExpressionError, match="gives what cannot be sent: lists and objects are nested deeper"):
        expressions.render({"a": "${{ input.x }}"}, {"input": {"x": nested(100)}})
    with pytest.raises(ExpressionError, match="nested more than 100 deep"):
        expressions.render(nested(101), {})
    assert expressions.render(nested(100), {}) == nested(100)


@pytest.mark.parametrize("expression", ["0.0 / 0.0", "1.0 / 0.0", "[-1.0 / 0.0]", "double('NaN')", "double('1e400')"])
def test_an_expression_never_gives_what_is_not_a_number(expression):
    with pytest.raises(ExpressionError):
        expressions.render("${{ " + expression + " }}", {})


@pytest.mark.parametrize(
    ("expression", "written"),
    [
        ("steps.find-order.data.state", 'steps["find-order"]'),
        ("steps.find-item.data.state", 'steps["find-item"]'),
        ("steps.find-the-order-2.data", 'steps["find-the-order-2"]'),
        ("input.order-id == 1", 'input["order-id"]'),
        ("steps.find.data.order-id", 'data["order-id"]'),
        ("steps.in.data.state", 'steps["in"]'),
        ("input.in", 'input["in"]'),
    ],
)
def test_a_name_that_the_language_reads_otherwise_is_refused_with_how_to_write_it(
    expression: str, written: str
) -> None:
    with pytest.raises(ExpressionError) as caught:
        expressions.check(expression, frozenset({"input", "steps", "item", "index"}))
    assert written.partition("[")[1] + written.partition("[")[2] in str(caught.value)


@pytest.mark.parametrize(
    "expression",
    ["input.a - input.b", "input.a-input.b", "input.a-1", "steps.a.data.n - 1", 'steps["find-order"].data["order-id"]'],
)
def test_a_subtraction_stays_one(expression: str) -> None:
    expressions.check(expression)

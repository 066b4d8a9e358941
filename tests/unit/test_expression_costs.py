"""Expressions that would hold the interpreter: each ends soon, leaves the process small, and says what to do."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from triptych.kernel import killable
from triptych.kernel.killable import pool
from triptych.playbook import expressions
from triptych.playbook.expressions import ExpressionError, evaluate, render
from triptych.schemas import Json

BUSY_FOR_S = 1.5
"""Six times what is promised, for a busy machine."""
GROWTH_MAX_KIB = 64 * 1_024


def memory_kib(word: str) -> int:
    return int(Path("/proc/self/status").read_text().split(f"{word}:")[1].split()[0])


@pytest.fixture(scope="module", autouse=True)
def warm() -> None:
    killable.evaluate("1", {}, 5.0)


@contextmanager
def bounded() -> Iterator[None]:
    Path("/proc/self/clear_refs").write_text("5")
    before, began = memory_kib("VmRSS"), time.monotonic()
    yield
    assert time.monotonic() - began < BUSY_FOR_S
    assert memory_kib("VmHWM") - before < GROWTH_MAX_KIB


def outcome(do: Callable[[], Json]) -> str:
    """What comes of it: a value, or the words of the error."""
    with bounded():
        try:
            do()
        except ExpressionError as error:
            return error.message
    return "a value"


def doubled(start: str, times: int) -> str:
    return start + ".map(x, x+x+x+x+x+x+x+x)" * times


NUMBERS: list[Json] = list(range(120_000))
NESTED = "input.l.map(i, input.l.map(j, i * j))"


@pytest.mark.parametrize(
    ("expression", "content", "expected"),
    [
        (doubled("['aaaaaaaaaaaaaaaa']", 7), {}, "too costly"),
        (doubled("[[1, 2]]", 7), {}, "too costly"),
        (doubled("[input.a]", 4), {"a": "a" * 10_000}, "too costly"),
        ("+".join(["input.a"] * 200), {"a": "a" * 250_000}, "too costly"),
        ("input.l.map(i, input.a + i)", {"l": ["x"] * 2_000, "a": "a" * 100_000}, "too costly"),
        ("input.l.map(i, {'a': input.a + 'x'})", {"l": ["x"] * 2_000, "a": "a" * 100_000}, "too costly"),
        (NESTED, {"l": NUMBERS[:2_000]}, "too costly"),
        ("input.l.map(i, i)", {"l": NUMBERS[:40_000]}, "too costly"),
        ("input.l.all(i, i in input.l)", {"l": NUMBERS[:20_000]}, "too costly"),
        ("input.l.all(x, !input.s.contains(x))", {"s": "a" * 200_000, "l": ["a" * 500 + "b"] * 2_000}, "too costly"),
        ("input.s.matches('(a+)+$')", {"s": "a" * 200_000 + "!"}, "a value"),
        ("input.s.matches('^[ab]*a[ab]{100}z')", {"s": "abaab" * 50_000}, ""),
        ("input.l.all(s, !s.matches('^[ab]*a[ab]{100}z'))", {"l": ["abaab" * 200] * 1_000}, ""),
        ("1 in input.l", {"l": NUMBERS}, ""),
        ("size(input)", {"l": NUMBERS}, ""),
        ("input.l == input.m", {"l": NUMBERS[:60_000], "m": NUMBERS[:60_000]}, ""),
        ("duration(input.s)", {"s": "1h" * 120_000}, ""),
        ("timestamp(input.s)", {"s": "1" * 250_000}, "timestamp"),
        ("int(input.s)", {"s": "1" * 250_000}, "too large"),
        ("18446744073709551615u + 1", {}, "beyond 64 bits"),
        ("timestamp('9999-12-31T23:59:59Z') + duration('99999999h')", {}, ""),
        ("(" * 900 + "1" + ")" * 900, {}, "Recursion limit"),
        ("!" * 1_900 + "true", {}, ""),
        ("'" * 2_000, {}, ""),
        ('r"""' * 500, {}, ""),
        ("'" + "a" * 1_000_000 + "'", {}, "longer than 2000"),
    ],
)
def test_an_expression_ends_soon_whatever_it_is_given(expression: str, content: dict[str, Json], expected: str) -> None:
    said = outcome(lambda: evaluate(expression, {"input": content, "steps": {}}))
    assert expected in said
    assert len(said) < 1_100


@pytest.mark.parametrize(
    ("value", "content", "expected"),
    [
        (["${{ input.a }}"] * 100_000, {"a": 1}, "more than 500 templates"),
        ([f"${{{{ input.a + {number} }}}}" for number in range(20_000)], {"a": 1}, "more than 500 templates"),
        (["${{ input.l.map(i, i) }}"] * 400, {"l": NUMBERS[:300]}, "too costly: all expressions of a message"),
        (["${{ input.l.map(i, i) }}"] * 400, {"l": NUMBERS[:3_000]}, "too costly: all expressions of a message"),
        (["${{ input.a }}"] * 400, {"a": "a" * 250_000}, "exceed 1048576 bytes"),
        ("${{ " + 'r"""' * 200_000, {}, "not closed"),
        ("${{ '" + "\\'" * 400_000, {}, "not closed"),
        ("${{ input.a }}" * 60_000, {"a": "x"}, "more than 500 templates"),
    ],
)
def test_all_templates_of_a_value_end_soon(value: Json, content: dict[str, Json], expected: str) -> None:
    assert expected in outcome(lambda: render(value, {"input": content, "steps": {}}))


def test_all_expressions_of_a_message_share_what_it_may_take() -> None:
    scope = {"input": {"l": NUMBERS[:2_000]}, "steps": {}}

    @expressions.metered
    def refused() -> int:
        count = 0
        for _ in range(50):
            try:
                evaluate(NESTED, scope)
            except ExpressionError:
                count += 1
        return count

    with bounded():
        assert refused() == 50


@pytest.mark.parametrize(
    ("expression", "complaint"),
    [
        ("input.s.matches(input.re)", "the pattern of `matches` must be written out"),
        ("input.s.matches('a' + 'b')", "must be written out"),
        ("input.l.exists(p, 'aaaa'.matches(p))", "must be written out"),
        ("input.s.matches()", "must be written out"),
        ("matches(input.s, 'a')", "write it behind the text"),
        ("input.s.matches('(')", "this is not a pattern"),
        (r"input.s.matches('(?:\\w{1,100}){1,100}')", "too large"),
        (r"input.s.matches('.{1,255}')", "too large"),
        (f"input.s.matches('{'a' * 501}')", "too large"),
        (r"input.s.matches('(?=a)(a+)+$')", "linear"),
        (r"input.s.matches('(a+)\\1')", "linear"),
        ("input.s.matches(b'a')", "a pattern is text"),
        ("input.s.matched('a')", "there is no function `matched`"),
    ],
)
def test_a_pattern_that_is_not_bounded_is_refused_by_the_check(expression: str, complaint: str) -> None:
    with pytest.raises(ExpressionError, match=complaint):
        expressions.check(expression)


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("input.s.matches('^[A-Z]-[0-9]+$')", True),
        (r"input.s.matches(r'^\w-\d$')", True),
        ("input.s.matches('x') || input.s.matches('A')", True),
        ("[input.s].filter(x, x.matches('^B'))", []),
        ("'matches(input.s)' == 'matches(' + 'input.s)'", True),
    ],
)
def test_patterns_that_are_written_out_match(expression: str, value: Json) -> None:
    assert evaluate(expression, {"input": {"s": "A-1"}, "steps": {}}) == value


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("input.l.map(i, input.l.map(j, i * j))[1][2]", 2),
        ("input.l.map(i, [i, i, i, i]).map(x, x.map(y, y)).map(x, x.map(y, y)).size()", 20),
        ("input.l.all(i, i in input.l)", True),
        ("timestamp(input.at) + duration('1h')", "2026-01-01T01:00:00Z"),
    ],
)
def test_what_may_take_long_has_the_same_value_where_it_can_be_killed(
    expression: str, value: Json, monkeypatch: pytest.MonkeyPatch
) -> None:
    scope = {"input": {"l": NUMBERS[:20], "at": "2026-01-01T00:00:00Z"}, "steps": {}}
    assert evaluate(expression, scope) == value
    monkeypatch.setattr("triptych.playbook.expressions.budget.QUICK_MAX_US", 0)
    assert evaluate(expression, scope) == value


def test_what_is_missing_is_told_the_same_where_it_can_be_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("triptych.playbook.expressions.budget.QUICK_MAX_US", 0)
    with pytest.raises(ExpressionError, match="there is no `nothing`; guard it with has"):
        evaluate("input.l.all(x, input.nothing == x)", {"input": {"l": [1]}, "steps": {}})


def test_integers_beyond_64_bits_pass_through_what_can_be_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("triptych.playbook.expressions.budget.QUICK_MAX_US", 0)
    assert evaluate("input.l.map(x, x)", {"input": {"l": [2**70]}, "steps": {}}) == [2**70]


def test_work_that_is_killed_leaves_nothing_behind_and_the_next_is_done() -> None:
    for _ in range(3):
        with pytest.raises(killable.OverrunError, match="50 ms"):
            killable.evaluate(NESTED, {"input": {"l": NUMBERS[:3_000]}}, 0.05)
        assert killable.evaluate("1 + 1", {}, 5.0) == 2


def test_work_whose_process_has_died_is_told_and_the_next_has_another() -> None:
    process: Any = pool._pool()._process
    os.kill(process.pid, 9)
    process.wait()
    with pytest.raises(killable.OverrunError):
        killable.evaluate("1", {}, 5.0)
    assert killable.evaluate("1 + 1", {}, 5.0) == 2


def test_a_plan_with_more_expressions_than_may_be_compiled_is_refused_before_they_are() -> None:
    many = [f"${{{{ input.a{number} }}}}" for number in range(501)]
    with pytest.raises(ExpressionError, match="501 expressions"), bounded():
        expressions.refuse_volume([], [many])
    with pytest.raises(ExpressionError, match="at most 500 with 30000"), bounded():
        expressions.refuse_volume(["x" * 2_000] * 16, [])
    expressions.refuse_volume([None, "true"], [{"a": many[:400]}])

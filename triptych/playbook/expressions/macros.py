"""The macros of an expression, which repeat a part of it for each element of a list."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from triptych.playbook.expressions.error import ExpressionError
from triptych.playbook.expressions.tokens import Token

MAX_MACROS: Final = 8
MAX_MACRO_DEPTH: Final = 2
MACROS: Final = frozenset({"all", "exists", "exists_one", "filter", "map"})


@dataclass(frozen=True, slots=True)
class Macros:
    """The macros of an expression."""

    bound: frozenset[str]
    """The names that they bind, such as `hit` in `hits.map(hit, hit.id)`."""
    count: int
    depth: int


def macros_of(expression: str, tokens: Sequence[Token]) -> Macros:
    """Find the macros of an expression. Raises ExpressionError when they are too many, or nested too deep."""
    bound: set[str] = set()
    brackets: list[bool] = []
    count = deepest = 0
    for index, token in enumerate(tokens):
        if token.text == "(":
            macro = _begins_macro(tokens, index)
            brackets.append(macro)
            if macro:
                count += 1
                deepest = max(deepest, sum(brackets))
                bound.update(named.text for named in tokens[index + 1 : index + 2] if named.kind == "name")
        elif token.text == ")" and brackets:
            brackets.pop()
    if count > MAX_MACROS or deepest > MAX_MACRO_DEPTH:
        raise ExpressionError(
            expression,
            f"{count} macros, nested {deepest} deep; at most {MAX_MACROS} and {MAX_MACRO_DEPTH} are allowed",
        )
    return Macros(frozenset(bound), count, deepest)


def indexes_in_macros(tokens: Sequence[Token]) -> set[int]:
    found: set[int] = set()
    brackets: list[bool] = []
    for index, token in enumerate(tokens):
        if token.text == "(":
            brackets.append(_begins_macro(tokens, index))
        elif token.text == ")" and brackets:
            brackets.pop()
        elif any(brackets):
            found.add(index)
    return found


def _begins_macro(tokens: Sequence[Token], index: int) -> bool:
    """Tell whether the bracket at this index holds the arguments of a macro."""
    return index > 1 and tokens[index - 1].text in MACROS and tokens[index - 2].text == "."

r"""Patterns of `matches`: written out in the expression, of a bounded size, compiled once, matched in linear time.

The CEL library compiles a pattern for every match, which takes 50 ms for `(\w{1,12}){1,8}`, and holds the
interpreter while it does. So `x.matches('...')` is compiled as a call of `matched`, which is ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Final

import cel

from triptych.json_schema import JsonSchema, check_pattern
from triptych.playbook.expressions.error import ExpressionError
from triptych.playbook.expressions.tokens import Token

PATTERN_MAX_CHARS: Final = 500
MATCHES: Final = "matches"
MATCHED: Final = "matched"
"""Of the same length, so that the places in errors stay true."""
_UNIT_US: Final = 0.025
_MAX_BYTES: Final = 65_536
"""Of a compiled pattern; `(\\w{1,12}){1,8}` has 16 KiB."""


def with_own_matches(expression: str, tokens: Sequence[Token]) -> tuple[str, float]:
    """Rewrite an expression so that `matches` is ours. Return its patterns' cost too, in microseconds per character.

    Raises:
        ExpressionError: a pattern is not written out, too large, or not a regular expression.
    """
    parts: list[str] = []
    at, cost_us = 0, 0.0
    for index in _matches(tokens):
        name, literal = tokens[index], tokens[index + 2 : index + 4]
        if not index or tokens[index - 1].text != ".":
            raise ExpressionError(expression, "write it behind the text: x.matches('...')", name.start)
        if len(literal) < 2 or literal[0].kind != "string" or literal[1].text != ")":  # noqa: PLR2004
            message = (
                "the pattern of `matches` must be written out, as in x.matches('^[a-z]+$'); it cannot come from data"
            )
            raise ExpressionError(expression, message, name.start)
        cost_us += _cost_us(expression, literal[0])
        parts += expression[at : name.start], MATCHED
        at = name.start + len(MATCHES)
    return "".join((*parts, expression[at:])), cost_us


def matched(text: str, pattern: str) -> bool:
    """Tell whether a text contains a match of a pattern."""
    if not isinstance(text, str):
        raise TypeError(f"`matches` needs text, and was given a {type(text).__name__}")
    return _compiled(pattern).is_valid(text)


@lru_cache(maxsize=512)
def _compiled(pattern: str) -> JsonSchema:
    return JsonSchema.of({"pattern": pattern})


def _matches(tokens: Sequence[Token]) -> Iterator[int]:
    for index, token in enumerate(tokens[:-1]):
        if token.text == MATCHES and tokens[index + 1].text == "(":
            yield index


def _cost_us(expression: str, literal: Token) -> float:
    try:
        pattern = cel.compile(literal.text).execute({})
        if not isinstance(pattern, str):
            raise ExpressionError(expression, "a pattern is text", literal.start)
        cost = check_pattern(pattern)
    except (ValueError, RuntimeError) as error:
        raise ExpressionError(expression, f"this is not a pattern: {error}", literal.start) from None
    if not cost.is_linear:
        message = "a pattern of `matches` can be matched in linear time: it has no look-around and no back-reference"
        raise ExpressionError(expression, message, literal.start)
    if len(pattern) > PATTERN_MAX_CHARS or cost.size_bytes > _MAX_BYTES:
        message = f"the pattern is too large: at most {PATTERN_MAX_CHARS} characters and {_MAX_BYTES} bytes compiled"
        raise ExpressionError(expression, f"{message}; use smaller counts in braces", literal.start)
    return cost.units_per_char * _UNIT_US

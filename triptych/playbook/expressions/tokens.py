"""The tokens of an expression, and where a template ends.

The CEL library parses, but does not show what it parsed. So what can be known of an expression without running it is
read from its tokens: its macros in `macros.py`, what it refers to in `paths.py`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, NamedTuple

from triptych.playbook.expressions.error import ExpressionError

MAX_EXPRESSION_CHARS: Final = 2_000
OPEN: Final = "${{"
"""Where a template begins."""

_WORDS = frozenset({"false", "in", "null", "true"})
_TOKEN = re.compile(
    r"""
      (?P<skip>\s+|//[^\n]*)
    | (?P<string>
          (?:[bB]?[rR]|[rR][bB])(?:\"{3}.*?\"{3}|'{3}.*?'{3}|"[^"\n]*"|'[^'\n]*')
        | [bB]?(?:\"{3}(?:\\.|[^\\])*?\"{3}|'{3}(?:\\.|[^\\])*?'{3}|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'))
    | (?P<name>[^\W\d]\w*)
    | (?P<number>\d+(?:\.\d+)?[eE][+-]\d+|\d[\w.]*)
    | (?P<other>.)
    """,
    re.VERBOSE | re.DOTALL,
)


class Token(NamedTuple):
    kind: str
    text: str
    start: int


def tokens_of(expression: str) -> list[Token]:
    """Split an expression into tokens, without spaces and comments. Raises ExpressionError where it is too long."""
    if len(expression) > MAX_EXPRESSION_CHARS:
        raise ExpressionError(expression, f"longer than {MAX_EXPRESSION_CHARS} characters; split it over steps")
    return tokens_in(expression)


def tokens_in(source: str) -> list[Token]:
    """Split text made from an expression into tokens, however long it has become."""
    return [
        Token(match.lastgroup or "", match.group(), match.start())
        for match in _TOKEN.finditer(source)
        if match.lastgroup != "skip"
    ]


def misread_name(tokens: Sequence[Token], at: int | None = None) -> tuple[str, int] | None:
    """Find a name that the language reads as something else. Return how to write it, and its offset.

    A name with a hyphen is a subtraction, and a word of the language is not a name. What follows `steps.` is looked at
    anywhere, other names only where something is wrong: at the token that stands at the offset `at`.
    """
    for index, token in enumerate(tokens[2:], 2):
        if tokens[index - 1].text != ".":
            continue
        if token.text in _WORDS:
            return f'["{token.text}"]', token.start
        end = index
        while end + 2 < len(tokens) and _is_joined(tokens[end : end + 3]):
            end += 2
        is_step = tokens[index - 2].text == "steps"
        if end > index and (is_step or any(each.start == at for each in tokens[index : end + 1])):
            # A part that begins with a digit takes what follows the next dot with it.
            name = "".join(each.text for each in tokens[index : end + 1]).partition(".")[0]
            return f'["{name}"]', token.start
    return None


def _is_joined(tokens: Sequence[Token]) -> bool:
    """Tell whether these are a name, a hyphen and more of a name, with nothing between them."""
    name, hyphen, more = tokens
    has_no_space = name.start + len(name.text) == hyphen.start and hyphen.start + 1 == more.start
    return hyphen.text == "-" and more.kind in {"name", "number"} and has_no_space


def closing(text: str, start: int) -> int:
    """Find the `}}` that closes the template at `start`. Map literals and strings may hold braces."""
    depth = 0
    # An expression that is longer than any may be is not searched: quotes that are not closed take the square.
    for match in _TOKEN.finditer(text, start + len(OPEN), start + len(OPEN) + MAX_EXPRESSION_CHARS + len("}}")):
        if match.group() == "{":
            depth += 1
        elif match.group() == "}":
            if depth == 0:
                if text.startswith("}}", match.start()):
                    return match.start()
                break
            depth -= 1
    raise ExpressionError(text, "this template is not closed; end it with `}}`", start)

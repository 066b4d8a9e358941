"""A text that a regular expression takes, made from the expression itself.

The caller checks whether it fits: look-around assertions are left out here.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from re import _constants as words  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any, Final

_PLAIN: Final = "a0A_-1b.x "
"""What a class is tried with first, so that texts look like what people write."""
_TEXT_MAX_CHARS: Final = 10_000
_REPEATS: Final = frozenset({words.MAX_REPEAT, words.MIN_REPEAT, words.POSSESSIVE_REPEAT})
_CONDITIONS: Final = frozenset({words.AT, words.ASSERT, words.ASSERT_NOT})
_GROUPS: Final[dict[Any, Callable[[Any], Any]]] = {
    words.SUBPATTERN: lambda argument: argument[-1],
    words.ATOMIC_GROUP: lambda argument: argument,
    words.BRANCH: lambda argument: argument[1][0],
}
_CATEGORIES: Final[dict[Any, Callable[[str], bool]]] = {
    words.CATEGORY_DIGIT: str.isdigit,
    words.CATEGORY_NOT_DIGIT: lambda char: not char.isdigit(),
    words.CATEGORY_SPACE: str.isspace,
    words.CATEGORY_NOT_SPACE: lambda char: not char.isspace(),
    words.CATEGORY_WORD: lambda char: char.isalnum() or char == "_",
    words.CATEGORY_NOT_WORD: lambda char: not (char.isalnum() or char == "_"),
}


def text_for(pattern: str, min_chars: int) -> str | None:
    """Return a text of at least `min_chars` that should fit, where one can be made; None otherwise."""
    try:
        parsed = parser.parse(pattern)
    except (re.error, RecursionError, OverflowError):
        return None
    for wanted in (0, min_chars):
        try:
            text = "".join(_texts(parsed, wanted))
        except ValueError:
            return None
        if len(text) >= min_chars:
            return text
    return None


def _texts(parsed: Any, wanted: int) -> list[str]:
    """Return the parts of a text. Raises ValueError if no text is found."""
    return [_text(operator, argument, wanted) for operator, argument in parsed]


def _text(operator: Any, argument: Any, wanted: int) -> str:
    if operator in _REPEATS:
        least, most, inner = argument
        once = "".join(_texts(inner, 0))
        count = min(max(int(least), wanted), int(most))
        if len(once) * count > _TEXT_MAX_CHARS:
            raise ValueError("a text would be too long")
        return once * count
    if operator in _GROUPS:
        return "".join(_texts(_GROUPS[operator](argument), wanted))
    if operator in _CONDITIONS:
        return ""
    if operator is words.ANY:
        return "a"
    members = argument if operator is words.IN else [(operator, argument)]
    return _one_of(members)


def _one_of(members: list[tuple[Any, Any]]) -> str:
    is_negated = members[0][0] in {words.NEGATE, words.NOT_LITERAL}
    known: list[str] = [*_PLAIN, *(chr(value) for kind, value in members if kind is words.LITERAL)]
    known += [chr(value[0]) for kind, value in members if kind is words.RANGE]
    for char in known:
        if any(_takes(kind, value, char) for kind, value in members) is not is_negated:
            return char
    raise ValueError("no character is known to fit")


def _takes(kind: Any, value: Any, char: str) -> bool:
    if kind in {words.LITERAL, words.NOT_LITERAL}:
        return ord(char) == int(value)
    if kind is words.RANGE:
        return int(value[0]) <= ord(char) <= int(value[1])
    if kind is words.CATEGORY:
        return bool(_CATEGORIES[value](char))
    if kind is words.NEGATE:
        return False
    raise ValueError(f"{kind} is not looked into")

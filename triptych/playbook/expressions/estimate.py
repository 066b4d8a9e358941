"""How long an expression takes at most, told from its words and the sizes of what it refers to.

The constants were measured; each is several times what is usual. What cannot be shown to be quick here is not
refused: it runs where it can be killed. So an estimate may be far too high, and must never be too low.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from triptych.playbook.expressions.budget import Size
from triptych.playbook.expressions.macros import Macros
from triptych.playbook.expressions.tokens import Token

_TOKEN_US: Final = 0.5
_VALUE_US: Final = 1.0
"""Handing a value to the library, or back."""
_CHARS_PER_US: Final = 1_000.0
_COMPARED_US: Final = 0.3
_COPIED_US: Final = 0.06
"""A macro copies its list for each element that it adds."""
_OPERATORS: Final = frozenset({"(", "+", "-", "*", "/", "%", "=", "!", "<", ">", "in", "["})


class Shape(NamedTuple):
    """What is known of an expression without its variables."""

    tokens: int
    operators: int
    growth: float
    """How many times larger than what it refers to a value may get."""
    depth: int
    macros: int
    literal_chars: int
    literal_elements: int
    pattern_us_per_char: float


def shape_of(tokens: Sequence[Token], macros: Macros, pattern_us_per_char: float) -> Shape:
    """Measure the shape of an expression."""
    repeats = sum(token.text in {"+", ",", ":"} for token in tokens)
    return Shape(
        tokens=len(tokens),
        operators=sum(token.text in _OPERATORS for token in tokens),
        growth=float(1 + repeats) ** max(1, macros.count),
        depth=macros.depth,
        macros=macros.count,
        literal_chars=sum(len(token.text) for token in tokens if token.kind == "string"),
        literal_elements=sum(token.text == "," for token in tokens) + 1,
        pattern_us_per_char=pattern_us_per_char,
    )


def estimate_us(shape: Shape, outside: Iterable[Size], inside: Iterable[Size]) -> float:
    """Estimate how many microseconds an expression takes at most.

    Args:
        shape: of the expression.
        outside: sizes of what is referred to where it is evaluated once.
        inside: sizes of what is referred to within macros, again for each element.
    """
    outer, inner = _sum(outside), _sum(inside)
    values, chars = outer.values + inner.values, outer.chars + inner.chars + shape.literal_chars
    per_char = 1 / _CHARS_PER_US + shape.pattern_us_per_char / max(1, shape.operators)
    once = values * _COMPARED_US + chars * per_char
    total = handing_us((outer, inner)) + shape.tokens * _TOKEN_US
    total += shape.operators * shape.growth * once
    if shape.macros:
        longest = max(outer.longest, inner.longest, shape.literal_elements) * shape.growth
        rounds = shape.macros * longest**shape.depth
        element = inner.values * _COMPARED_US + (inner.chars + shape.literal_chars) * per_char + once / max(1, longest)
        total += rounds * (shape.tokens * _TOKEN_US + shape.operators * shape.growth * element + longest * _COPIED_US)
    return total


def handing_us(sizes: Iterable[Size]) -> float:
    """Estimate what it takes to pass values to the library and back."""
    values, chars, _ = _sum(sizes)
    return 2 * (values * _VALUE_US + chars / _CHARS_PER_US)


def _sum(sizes: Iterable[Size]) -> Size:
    values = chars = longest = 0
    for size in sizes:
        values, chars, longest = values + size.values, chars + size.chars, max(longest, size.longest)
    return Size(values, chars, longest)

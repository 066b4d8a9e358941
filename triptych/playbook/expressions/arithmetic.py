"""Arithmetic in expressions is compiled as calls of our own function: CEL knows two kinds of numbers, and JSON one.

In CEL `amount * 100` fails when the amount is 10.5, and 10 / 4 is 2. What is calculated how is said in
`killable/arithmetic.py`; here is only found where it is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from triptych.kernel.killable.arithmetic import OPERAND
from triptych.playbook.expressions.tokens import Token

CALCULATED: Final = "calculated"
_OPERATORS: Final = frozenset("+-*/%")
_BETWEEN: Final = frozenset("&|=!<>?:,")
"""What stands between operands and binds less than arithmetic does; `!` binds what follows it."""
_CLOSING: Final = frozenset(")]}")
_SUFFIXES: Final = frozenset(".([{")


class _Term(NamedTuple):
    """A calculation, as the program that `calculated` takes; one operand where nothing is calculated."""

    program: str
    operands: tuple[str, ...]

    def __str__(self) -> str:
        if self.program == OPERAND:
            return self.operands[0]
        return f'{CALCULATED}("{self.program}", {", ".join(self.operands)})'

    def with_(self, operator: str, other: _Term) -> _Term:
        return _Term(self.program + other.program + operator, self.operands + other.operands)


def with_own_arithmetic(expression: str, tokens: Sequence[Token]) -> str:
    """Rewrite an expression that compiles so that its arithmetic is ours."""
    if not any(token.text in _OPERATORS for token in tokens):
        return expression
    return "".join(map(str, _Rewriter(expression, tokens).sequence()))


class _Rewriter:
    """Reads an expression by its grammar, as far as arithmetic goes."""

    def __init__(self, expression: str, tokens: Sequence[Token]) -> None:
        self._expression, self._tokens, self._at = expression, tokens, 0

    def sequence(self) -> list[str | _Term]:
        """Read up to a closing bracket, or to the end."""
        found: list[str | _Term] = []
        while self._next() is not None and self._next() not in _CLOSING:
            found.append(self._take() if self._next() in _BETWEEN or self._next() == "in" else self._sum())
        return found

    def _next(self) -> str | None:
        return self._tokens[self._at].text if self._at < len(self._tokens) else None

    def _take(self) -> str:
        """Take the next token, with the space before it."""
        token = self._tokens[self._at]
        before = self._tokens[self._at - 1] if self._at else None
        self._at += 1
        is_apart = before is not None and before.start + len(before.text) < token.start
        return f" {token.text}" if is_apart else token.text

    def _sum(self) -> _Term:
        term = self._product()
        while self._next() in {"+", "-"}:
            term = term.with_(self._take().strip(), self._product())
        return term

    def _product(self) -> _Term:
        term = self._signed()
        while self._next() in {"*", "/", "%"}:
            term = term.with_(self._take().strip(), self._signed())
        return term

    def _signed(self) -> _Term:
        sign = ""
        while self._next() in {"-", "!"}:
            sign += self._take()
        term = self._member()
        return _Term(OPERAND, (f"{sign}{term}",)) if sign else term

    def _member(self) -> _Term:
        text = self._take()
        if text.strip() == "(":
            inner = self.sequence()
            closed = self._take()
            if len(inner) == 1 and isinstance(inner[0], _Term) and self._next() not in _SUFFIXES:
                return inner[0]
            text += "".join(map(str, inner)) + closed
        elif text.strip() in {"[", "{"}:
            text += self._rest()
        elif text.strip() == ".":
            text += self._take()
        while self._next() in _SUFFIXES:
            opening = self._take()
            text += opening
            if opening.strip() != ".":
                text += self._rest()
            else:
                text += self._take()
                text += self._take() if text.endswith("?") else ""
        return _Term(OPERAND, (text,))

    def _rest(self) -> str:
        """Read what is in brackets, and the closing bracket."""
        return "".join(map(str, self.sequence())) + self._take()

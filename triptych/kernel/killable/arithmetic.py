"""Arithmetic on the numbers of JSON, which have one kind: 10 and 10.5 are multiplied alike, and 10 / 4 is 2.5.

It is exact in decimals as far as 34 digits go, so that 19.99 * 100 is 1999. A result that is whole is an integer.
It imports nothing of Triptych: the process that evaluates long expressions runs it too.
"""

from __future__ import annotations

import decimal
import operator
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

LEAST, MOST = -(2**63), 2**64 - 1
"""Integers that the CEL library holds exactly."""
EXACT_IN_A_DOUBLE = 2**53
OPERAND = "."
_DECIMALS = decimal.Context(
    prec=34, Emax=decimal.MAX_EMAX, Emin=decimal.MIN_EMIN, traps=[decimal.InvalidOperation, decimal.DivisionByZero]
)
_WHOLE = {"+": operator.add, "-": operator.sub, "*": operator.mul}
_DECIMAL = {
    "+": _DECIMALS.add,
    "-": _DECIMALS.subtract,
    "*": _DECIMALS.multiply,
    "/": _DECIMALS.divide,
    "%": decimal.Context(prec=700).remainder,  # of the largest double and the smallest
}
_SAME = {str: "text", list: "a list", bytes: "bytes"}
_KINDS = {dict: "an object", bool: "true or false", type(None): "null", int: "a number", float: "a number"} | _SAME
_KINDS |= {datetime: "a time", timedelta: "a duration"}


def calculated(program: str, *operands: Any) -> Any:
    """Calculate `program`: a dot for the next operand, an operator for the two values before it.

    Raises:
        TypeError: an operator is not defined for these values.
        ArithmeticError: a division by zero, or a result that no number can hold.
    """
    stack: list[Any] = []
    values = iter(operands)
    for part in program:
        if part == OPERAND:
            stack.append(next(values))
        else:
            right, left = stack.pop(), stack.pop()
            stack.append(_applied(part, left, right))
    (value,) = stack
    return _number(value) if isinstance(value, Decimal) else _within_limits(value)


def _applied(sign: str, left: Any, right: Any) -> Any:
    if _is_number(left) and _is_number(right):
        return _calculated(sign, left, right)
    if sign == "+" and type(left) is type(right) and type(left) in _SAME:
        return left + right
    if isinstance(left, datetime | timedelta) and isinstance(right, datetime | timedelta):
        if sign == "+" and not (isinstance(left, datetime) and isinstance(right, datetime)):
            return left + right  # type: ignore[operator]
        if sign == "-" and not (isinstance(left, timedelta) and isinstance(right, datetime)):
            return left - right  # type: ignore[operator]
    message = f"`{sign}` is not defined for {_kind(left)} and {_kind(right)}"
    cure = "; convert one with string(...) or double(...)" if {str} < {type(left), type(right)} else ""
    raise TypeError(message + cure)


def _calculated(sign: str, left: Any, right: Any) -> Any:
    are_whole = isinstance(left, int) and isinstance(right, int)
    if are_whole and sign in _WHOLE:
        return _WHOLE[sign](left, right)
    one, other = _decimal(left), _decimal(right)
    if sign in "/%" and not other:
        raise ZeroDivisionError("division by zero; guard it with a condition, as in b == 0 ? 0 : a / b")
    return _DECIMAL[sign](one, other)


def _is_number(value: Any) -> bool:
    return type(value) in {int, float, Decimal}


def _decimal(value: Any) -> Decimal:
    return Decimal(repr(value)) if isinstance(value, float) else Decimal(value)


def _number(value: Decimal) -> int | float:
    """Return an integer if the value is whole and can be held, else the nearest double."""
    if value == value.to_integral_value() and LEAST <= value <= MOST:
        return int(value)
    nearest = float(value)
    if nearest in {float("inf"), float("-inf")} or nearest != nearest:  # noqa: PLR0124 - not a number
        raise OverflowError("the result is larger than any number can be")
    return int(nearest) if nearest.is_integer() and abs(nearest) <= EXACT_IN_A_DOUBLE else nearest


def _within_limits(value: Any) -> Any:
    if type(value) is int and not LEAST <= value <= MOST:
        raise OverflowError("the result is an integer beyond 64 bits")
    return value


def _kind(value: Any) -> str:
    return _KINDS.get(type(value), "a number" if _is_number(value) else f"a {type(value).__name__}")

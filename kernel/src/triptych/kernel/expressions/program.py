"""Compiling and evaluating expressions, within limits.

CEL cannot loop for ever, but nested macros over long lists take minutes, hold the interpreter lock
and cannot be interrupted. So the cost is bounded before an expression runs, from its shape and the
sizes of what it would see; it must never be found out by running it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any, Final, NamedTuple

import cel

from triptych.kernel.expressions import integers
from triptych.kernel.expressions.error import ExpressionError
from triptych.kernel.expressions.lexer import (
    VARIABLES,
    Macros,
    Token,
    flattened,
    macros_of,
    step_names,
    tokens_of,
)
from triptych.schemas import Json, codec

Scope = Mapping[str, Json]
"""The variables of an expression: `input`, `steps` and, in an expectation, `result`."""

MAX_EXPRESSION_CHARS: Final = 2_000
MAX_WORK: Final = 4_000_000
"""Bound on `longest ** (depth + 1)`, where `longest` is the longest list that a macro can meet. Lists
are copied when an element is added, so that one level costs the square; 4 million are some 0.2 s."""
MAX_WORKING_CHARS: Final = 64 * 1_048_576
MAX_CACHED: Final = 2_048

_TYPES = frozenset({"bool", "bytes", "double", "int", "list", "map", "null_type", "string", "type", "uint"})
FUNCTIONS = frozenset(
    {"contains", "duration", "dyn", "endsWith", "matches", "size", "startsWith", "timestamp"}
    | {"bytes", "double", "int", "string", "type", "uint"}
    | {f"get{part}" for part in ("FullYear", "Month", "Date", "DayOfMonth", "DayOfWeek", "DayOfYear")}
    | {f"get{part}" for part in ("Hours", "Minutes", "Seconds", "Milliseconds")}
)
_PARSE_ERROR = re.compile(r"ERROR: <input>:(\d+):(\d+): ([^\n]*)")


class _Flat(NamedTuple):
    """The same program over the values that it refers to: the library takes 2 µs to convert each map around them."""

    program: cel.Program
    paths: dict[str, tuple[str, ...]]


class _Compiled(NamedTuple):
    """A program, with what is known of it without running it."""

    source: str
    program: cel.Program
    variables: frozenset[str]
    steps: frozenset[str]
    macros: Macros
    growth: int
    """How many times longer than its input a list can get inside the macros."""
    flat: _Flat | None


def check(expression: str, variables: frozenset[str] = VARIABLES) -> None:
    """Check that an expression compiles, within the limits, and uses only `variables` and known functions.

    Raises:
        ExpressionError: it does not; the error says where and what to do.
    """
    unknown = _compile(expression).variables - variables
    if unknown:
        name = min(unknown)
        at = next((token.start for token in tokens_of(expression) if token.text == name), None)
        raise ExpressionError(expression, f"there is no variable `{name}` here; use {_either(variables)}", at)


def evaluate(expression: str, scope: Scope) -> Json:
    """The JSON value of an expression.

    Raises:
        ExpressionError: it does not compile, refers to what is not there, or costs too much.
    """
    return _evaluate(_compile(expression), scope)


def holds(expression: str, scope: Scope) -> bool:
    """Whether a condition is true.

    Raises:
        ExpressionError: as for `evaluate`, or the value is neither true nor false.
    """
    value = evaluate(expression, scope)
    if isinstance(value, bool):
        return value
    shown = codec.encode_text(value)[:100]
    raise ExpressionError(expression, f"gives {shown} where true or false is needed; compare it with something")


def references_of(expression: str | None) -> set[str]:
    """The ids of the steps that an expression (a `when` or an `expect`) refers to.

    Raises:
        ExpressionError: the expression does not compile.
    """
    return set(_compile(expression).steps) if expression else set()


@lru_cache(maxsize=MAX_CACHED)
def _compile(expression: str) -> _Compiled:
    if len(expression) > MAX_EXPRESSION_CHARS:
        raise ExpressionError(expression, f"longer than {MAX_EXPRESSION_CHARS} characters; split it over steps")
    tokens = tokens_of(expression)
    try:
        program = cel.compile(expression)
    except ValueError as error:
        raise _parse_error(expression, str(error)) from None
    _refuse_unknown_functions(expression, program, tokens)
    macros = macros_of(expression, tokens)
    # Each addition or list element inside a macro may repeat what the macro before it made.
    repeats = sum(token.text in {"+", ","} for token in tokens) - macros.count
    return _Compiled(
        source=expression,
        program=program,
        variables=frozenset(program.variables()) - macros.bound - _TYPES,
        steps=frozenset(step_names(expression, tokens)),
        macros=macros,
        growth=(1 + max(0, repeats)) ** macros.count,
        flat=_flat(expression, tokens),
    )


def _flat(expression: str, tokens: Sequence[Token]) -> _Flat | None:
    if (found := flattened(expression, tokens)) is None:
        return None
    text, paths = found
    try:
        return _Flat(cel.compile(text), paths)
    except ValueError:
        return None


def _evaluate_flat(source: str, flat: _Flat, scope: Scope) -> Json:
    variables: dict[str, Any] = {}
    for name, path in flat.paths.items():
        value: Any = scope
        for part in path:
            value = value[part]
        variables[name] = value
    return _json(source, flat.program.execute(integers.hidden(variables)))


def _evaluate(compiled: _Compiled, scope: Scope) -> Json:
    if compiled.flat is not None:
        try:
            return _evaluate_flat(compiled.source, compiled.flat, scope)
        except (LookupError, ValueError, RuntimeError, TypeError, ArithmeticError, ExpressionError):
            pass  # of the expression as it is written the library says what is wrong
    variables: dict[str, Any] = {name: scope[name] for name in compiled.variables if name in scope}
    if "steps" in variables:
        # Everything handed over is converted, so hand over only what is referred to.
        steps = variables["steps"]
        variables["steps"] = {step: steps[step] for step in compiled.steps if step in steps}
    if compiled.macros.count:
        _refuse_cost(compiled, variables)
    seen = integers.hidden(variables)
    try:
        value = compiled.program.execute(seen)
    except (KeyError, IndexError) as error:
        missing = error.args[0] if error.args else error
        message = f"there is no `{missing}`; guard it with has(...) or size(...)"
        raise ExpressionError(compiled.source, message) from None
    except (ValueError, RuntimeError, TypeError, ArithmeticError) as error:
        hint = "" if seen is variables else integers.HINT
        raise ExpressionError(compiled.source, f"{error}{hint}") from None
    return _json(compiled.source, value)


def _json(expression: str, value: Any) -> Json:  # noqa: PLR0911 - one for each kind of value
    """The JSON form of what CEL gave back; times become RFC 3339 text and durations seconds, as in protobuf."""
    match value:
        case None | bool() | int() | str():
            return value
        case float() if math.isfinite(value):
            return value
        case list():
            return [_json(expression, item) for item in value]
        case dict() if (integer := integers.restored(value)) is not None:
            return integer
        case dict() if all(isinstance(name, str) for name in value):
            return {name: _json(expression, item) for name, item in value.items()}
        case datetime():
            return value.isoformat().replace("+00:00", "Z")
        case timedelta():
            return f"{value.total_seconds():g}s"
    kind = (
        "a map with keys that are not text" if isinstance(value, dict) else f"a {type(value).__name__}, {value!r:.50}"
    )
    raise ExpressionError(expression, f"gives {kind}, which is not JSON; convert it, for example with string(...)")


def _refuse_unknown_functions(expression: str, program: cel.Program, tokens: Sequence[Token]) -> None:
    unknown = sorted(name for name in program.functions() if name.isidentifier() and name not in FUNCTIONS)
    for name in unknown:
        at = next((token.start for token in tokens if token.text == name), None)
        if at is not None:
            raise ExpressionError(expression, f"there is no function `{name}`; known are {_either(FUNCTIONS)}", at)


def _refuse_cost(compiled: _Compiled, variables: Mapping[str, Json]) -> None:
    longest, characters = _measure(variables)
    longest = max(longest, compiled.source.count(",") + 1) * compiled.growth
    if longest ** (compiled.macros.depth + 1) > MAX_WORK or characters * compiled.growth > MAX_WORKING_CHARS:
        raise ExpressionError(
            compiled.source,
            f"too costly: {compiled.macros.count} macros, nested {compiled.macros.depth} deep, "
            f"over lists that may reach {longest} elements; use fewer macros, or a step that returns less",
        )


def _measure(value: Json) -> tuple[int, int]:
    """The length of the longest list or map in a value, and how much text it holds."""
    longest = characters = 0
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, str):
            characters += len(item)
        elif isinstance(item, Mapping):
            longest = max(longest, len(item))
            pending.extend(item.values())
        elif isinstance(item, list | tuple):
            longest = max(longest, len(item))
            pending.extend(item)
    return longest, characters


def _parse_error(expression: str, text: str) -> ExpressionError:
    found = _PARSE_ERROR.search(text)
    if found is None:
        return ExpressionError(expression, text)
    line, column, message = int(found[1]), int(found[2]), found[3]
    before = expression.split("\n")[: line - 1]
    position = min(len(expression), sum(len(earlier) + 1 for earlier in before) + column - 1)
    return ExpressionError(expression, message.partition(" expecting {")[0], position)


def _either(names: frozenset[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names))

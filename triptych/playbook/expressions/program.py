"""Compiling and evaluating expressions, within limits.

CEL cannot loop without end, but nested macros over long lists take minutes, hold the interpreter lock
and cannot be interrupted. So the cost is estimated before an expression runs, from its shape and the
sizes of what it would see. What cannot be shown to be quick runs in a process that can be killed.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any, Final, NamedTuple

import cel

from triptych.kernel import killable
from triptych.kernel.killable.arithmetic import calculated
from triptych.playbook.expressions import integers
from triptych.playbook.expressions.arithmetic import CALCULATED, with_own_arithmetic
from triptych.playbook.expressions.budget import Budget, current
from triptych.playbook.expressions.error import ExpressionError
from triptych.playbook.expressions.estimate import Shape, estimate_us, handing_us, shape_of
from triptych.playbook.expressions.macros import macros_of
from triptych.playbook.expressions.paths import VARIABLES, Operand, flattened, operands_of, step_names
from triptych.playbook.expressions.patterns import MATCHED, matched, with_own_matches
from triptych.playbook.expressions.tokens import Token, misread_name, tokens_in, tokens_of
from triptych.schemas import Json, codec

Scope = Mapping[str, Json]
"""The variables of an expression: `input`, `steps` and, in an expectation, `result`."""

# The library logs each error of a function of ours, and raises it too.
logging.getLogger("cel").setLevel(logging.CRITICAL)

MAX_CACHED: Final = 2_048
_SMALL_CHARS: Final = 256

_TYPES = frozenset({"bool", "bytes", "double", "int", "list", "map", "null_type", "string", "type", "uint"})
FUNCTIONS = frozenset(
    {"contains", "duration", "dyn", "endsWith", "matches", "size", "startsWith", "timestamp"}
    | {"bytes", "double", "int", "string", "type", "uint"}
    | {f"get{part}" for part in ("FullYear", "Month", "Date", "DayOfMonth", "DayOfWeek", "DayOfYear")}
    | {f"get{part}" for part in ("Hours", "Minutes", "Seconds", "Milliseconds")}
)
_OURS: dict[str, Callable[..., Any]] = {MATCHED: matched, CALCULATED: calculated}
_OUR_ERROR = re.compile(
    r"Python function call failed: \w+: (.*)\. Check function arguments and their types\.", re.DOTALL
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
    compiled_source: str
    calls_ours: bool
    """Whether our functions replace those of the language."""
    shape: Shape
    operands: tuple[Operand, ...]
    flat: _Flat | None
    path: tuple[str, ...] | None
    """Where the value lies, if the expression is a path and nothing else."""


def check(expression: str, variables: frozenset[str] = VARIABLES) -> None:
    """Check that an expression compiles, within the limits, and uses only `variables` and known functions.

    Raises:
        ExpressionError: it does not; the error says where and what to do.
    """
    unknown = _compile(expression).variables - variables
    if unknown:
        name = min(unknown)
        tokens = tokens_of(expression)
        at = next((token.start for token in tokens if token.text == name), None)
        _refuse_misread(expression, tokens, at)
        raise ExpressionError(expression, f"there is no variable `{name}` here; use {_either(variables)}", at)


def evaluate(expression: str, scope: Scope) -> Json:
    """Evaluate an expression to a JSON value.

    Raises:
        ExpressionError: it does not compile, refers to what is not there, or costs too much.
    """
    return _evaluate(_compile(expression), scope)


def holds(expression: str, scope: Scope) -> bool:
    """Tell whether a condition is true.

    Raises:
        ExpressionError: as for `evaluate`, or the value is neither true nor false.
    """
    value = evaluate(expression, scope)
    if isinstance(value, bool):
        return value
    shown = codec.encode_text(value)[:100]
    raise ExpressionError(expression, f"gives {shown} where true or false is needed; compare it with something")


def references_of(expression: str | None) -> set[str]:
    """Find the ids of the steps that an expression (a `when` or an `expect`) refers to.

    Raises:
        ExpressionError: the expression does not compile.
    """
    return set(_compile(expression).steps) if expression else set()


@lru_cache(maxsize=MAX_CACHED)
def _compile(expression: str) -> _Compiled:
    tokens = tokens_of(expression)
    _refuse_misread(expression, tokens)
    source, pattern_us_per_char = with_own_matches(expression, tokens)
    try:
        program = cel.compile(source)
    except ValueError as error:
        raise _parse_error(expression, str(error)) from None
    _refuse_unknown_functions(expression, program, tokens)
    macros = macros_of(expression, tokens)
    flat = _flat(source, tokens_of(source))
    compiled_source = with_own_arithmetic(source, tokens_in(source))
    return _Compiled(
        source=expression,
        program=program if compiled_source == source else cel.compile(compiled_source),
        variables=frozenset(program.variables()) - macros.bound - _TYPES,
        steps=frozenset(step_names(expression, tokens)),
        compiled_source=compiled_source,
        calls_ours=compiled_source != expression,
        shape=shape_of(tokens, macros, pattern_us_per_char),
        operands=tuple(operands_of(tokens, VARIABLES - macros.bound)),
        flat=flat,
        path=_path(flat),
    )


def _refuse_misread(expression: str, tokens: Sequence[Token], at: int | None = None) -> None:
    if (misread := misread_name(tokens, at)) is not None:
        written, start = misread
        raise ExpressionError(expression, f"write this name in brackets and quotes, without the dot: {written}", start)


def _flat(expression: str, tokens: Sequence[Token]) -> _Flat | None:
    if (found := flattened(expression, tokens)) is None:
        return None
    text, paths = found
    try:
        return _Flat(cel.compile(with_own_arithmetic(text, tokens_in(text))), paths)
    except ValueError:
        return None


def _path(flat: _Flat | None) -> tuple[str, ...] | None:
    if flat is None or flat.program.source.strip() not in flat.paths:
        return None
    return flat.paths[flat.program.source.strip()]


def _at(scope: Scope, path: tuple[str, ...]) -> Any:
    value: Any = scope
    for part in path:
        value = value[part]
    return value


def _evaluate_flat(compiled: _Compiled, flat: _Flat, scope: Scope, budget: Budget) -> tuple[Json] | None:
    """Evaluate the flattened program; None where it may take long."""
    variables = {name: _at(scope, path) for name, path in flat.paths.items()}
    if not compiled.shape.pattern_us_per_char and all(map(_is_small, variables.values())):
        # Without macros nothing is done twice, so that this takes microseconds, as most expectations do.
        return (_json(compiled.source, flat.program.execute(_context(compiled, integers.hidden(variables)))),)
    estimated_us = estimate_us(compiled.shape, map(budget.size_of, variables.values()), ())
    if not budget.is_quick(estimated_us):
        return None
    seen = _context(compiled, integers.hidden(variables))
    return (_json(compiled.source, budget.counted(lambda: flat.program.execute(seen), estimated_us)),)


def _is_small(value: Json) -> bool:
    return len(value) <= _SMALL_CHARS if isinstance(value, str) else not isinstance(value, Mapping | list | tuple)


def _evaluate(compiled: _Compiled, scope: Scope) -> Json:
    budget = current()
    if compiled.flat is not None:
        try:
            if compiled.path is not None:
                return _at(scope, compiled.path)
            if (found := _evaluate_flat(compiled, compiled.flat, scope, budget)) is not None:
                return found[0]
        except (LookupError, ValueError, RuntimeError, TypeError, ArithmeticError, ExpressionError):
            pass  # of the expression as it is written the library says what is wrong
    variables: dict[str, Any] = {name: scope[name] for name in compiled.variables if name in scope}
    if "steps" in variables:
        # Everything handed over is converted, so hand over only what is referred to.
        steps = variables["steps"]
        variables["steps"] = {step: steps[step] for step in compiled.steps if step in steps}
    seen = integers.hidden(variables)
    try:
        value = _value(compiled, variables, seen, budget)
    except (KeyError, IndexError) as error:
        missing = error.args[0] if error.args else error
        message = f"there is no `{missing}`; guard it with has(...) or size(...)"
        raise ExpressionError(compiled.source, message) from None
    except (ValueError, RuntimeError, TypeError, ArithmeticError) as error:
        hint = "" if seen is variables else integers.HINT
        ours = _OUR_ERROR.search(str(error))
        raise ExpressionError(compiled.source, f"{ours[1] if ours else error}{hint}") from None
    return _json(compiled.source, value)


def _value(compiled: _Compiled, variables: Mapping[str, Json], seen: dict[str, Any], budget: Budget) -> Any:
    """Evaluate to a value of the library."""
    sizes = [(operand.is_repeated, budget.size_of(operand.within(variables))) for operand in compiled.operands]
    outside = [size for is_repeated, size in sizes if not is_repeated]
    estimated_us = estimate_us(compiled.shape, outside, [size for is_repeated, size in sizes if is_repeated])
    estimated_us += handing_us(map(budget.size_of, variables.values()))
    if budget.is_quick(estimated_us):
        return budget.counted(lambda: compiled.program.execute(_context(compiled, seen)), estimated_us)
    try:
        return budget.evaluate(compiled.source, compiled.compiled_source, seen)
    except killable.WorkFailed as error:
        if error.missing is not None:
            raise KeyError(error.missing) from None
        raise ValueError(error.message) from None


def _context(compiled: _Compiled, variables: dict[str, Any]) -> dict[str, Any] | cel.Context:
    return cel.Context(variables, _OURS) if compiled.calls_ours else variables


def _json(expression: str, value: Any) -> Json:  # noqa: PLR0911 - one for each kind of value
    """Convert a value of CEL to JSON. Times become RFC 3339 text and durations seconds, as in protobuf."""
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

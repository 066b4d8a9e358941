"""CEL expressions, and the `${{ expression }}` templates built from them.

Expressions come from playbooks and from models, so they are checked before a run and bounded while
it runs: CEL cannot loop for ever, but nested macros over long lists take minutes, hold the
interpreter lock, and cannot be interrupted. Nothing here reads a clock, does I/O or calls `eval`.

Limits of the CEL library to know about: integers beyond 64 bits become floats, and numbers of
different kinds can be compared but not added. A literal `${{` is written `${{ "${{" }}`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any, Final, NamedTuple

import cel
import orjson

from triptych.kernel.errors import TriptychError
from triptych.schemas import Json

Scope = Mapping[str, Json]
"""The variables of an expression: `input`, `steps` and, in an expectation, `result`."""

VARIABLES: Final = frozenset({"input", "steps", "result"})

MAX_EXPRESSION_CHARS: Final = 2_000
MAX_RENDERED_BYTES: Final = 1_048_576
MAX_TEMPLATE_DEPTH: Final = 100
MAX_MACROS: Final = 8
MAX_MACRO_DEPTH: Final = 2
MAX_WORK: Final = 4_000_000
"""Bound on `longest ** (depth + 1)`, where `longest` is the longest list that a macro can meet. Lists
are copied when an element is added, so that one level costs the square; 4 million are some 0.2 s."""
MAX_WORKING_CHARS: Final = 64 * 1_048_576
MAX_CACHED: Final = 2_048

_MACROS = frozenset({"all", "exists", "exists_one", "filter", "map"})
_TYPES = frozenset({"bool", "bytes", "double", "int", "list", "map", "null_type", "string", "type", "uint"})
FUNCTIONS = frozenset(
    {"contains", "duration", "dyn", "endsWith", "matches", "size", "startsWith", "timestamp"}
    | {"bytes", "double", "int", "string", "type", "uint"}
    | {f"get{part}" for part in ("FullYear", "Month", "Date", "DayOfMonth", "DayOfWeek", "DayOfYear")}
    | {f"get{part}" for part in ("Hours", "Minutes", "Seconds", "Milliseconds")}
)

_TOKEN = re.compile(
    r"""
      (?P<skip>\s+|//[^\n]*)
    | (?P<string>
          (?:[bB]?[rR]|[rR][bB])(?:\"{3}.*?\"{3}|'{3}.*?'{3}|"[^"\n]*"|'[^'\n]*')
        | [bB]?(?:\"{3}(?:\\.|[^\\])*?\"{3}|'{3}(?:\\.|[^\\])*?'{3}|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'))
    | (?P<name>[^\W\d]\w*)
    | (?P<number>\d[\w.]*)
    | (?P<other>.)
    """,
    re.VERBOSE | re.DOTALL,
)
_PARSE_ERROR = re.compile(r"ERROR: <input>:(\d+):(\d+): ([^\n]*)")
_OPEN = "${{"


class ExpressionError(TriptychError):
    """An expression does not compile, cannot be evaluated, or costs too much.

    `position` is the offset of the mistake in `expression`, where it is known.
    """

    def __init__(self, expression: str, message: str, position: int | None = None) -> None:
        self.expression, self.message, self.position = expression, message, position
        shown = expression if len(expression) <= 200 else f"{expression[:200]}…"  # noqa: PLR2004 - one line of text
        where = "" if position is None else f" at character {position + 1}"
        super().__init__(f"`{shown}`{where}: {message}")


class _Token(NamedTuple):
    kind: str
    text: str
    start: int


class _Compiled(NamedTuple):
    """A program, with what is known of it without running it."""

    source: str
    program: cel.Program
    variables: frozenset[str]
    steps: frozenset[str]
    macros: int
    depth: int
    growth: int


@dataclass(frozen=True, slots=True)
class _Placeholder:
    expression: str


def check(expression: str, variables: frozenset[str] = VARIABLES) -> None:
    """Check that an expression compiles, within the limits, and uses only `variables` and known functions.

    Raises:
        ExpressionError: it does not; the error says where and what to do.
    """
    unknown = _compile(expression).variables - variables
    if unknown:
        name = min(unknown)
        at = next((token.start for token in _tokens(expression) if token.text == name), None)
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
    shown = orjson.dumps(value).decode()[:100]
    raise ExpressionError(expression, f"gives {shown} where true or false is needed; compare it with something")


def render(value: Json, scope: Scope) -> Json:
    """`value` with every template replaced.

    A string that is one reference and nothing else keeps the type of what it refers to; inside a
    longer text strings are printed as they are and everything else as JSON. What is put in is not
    rendered again.

    Raises:
        ExpressionError: a template is malformed, cannot be evaluated, or the whole becomes too large.
    """
    return _Renderer(scope).render(value, 0)


def references(value: Json) -> set[str]:
    """The ids of the steps that the templates in `value` refer to. For an expression: `references_of`.

    Raises:
        ExpressionError: a template is malformed.
    """
    return {step for text in _templates(value, 0) for part in _parse(text) for step in _steps_of(part)}


def references_of(expression: str | None) -> set[str]:
    """The ids of the steps that an expression (a `when` or an `expect`) refers to.

    Raises:
        ExpressionError: the expression does not compile.
    """
    return set(_compile(expression).steps) if expression else set()


def expressions(value: Json) -> list[str]:
    """The expressions in the templates of `value`, in order, for checking them one by one.

    Raises:
        ExpressionError: a template is malformed.
    """
    return [part.expression for text in _templates(value, 0) for part in _parse(text) if isinstance(part, _Placeholder)]


def operands(expression: str) -> list[str]:
    """The paths into `input`, `steps` and `result` in an expression, for showing what their values were."""
    paths: list[str] = []
    tokens = _tokens(expression)
    for index, token in enumerate(tokens):
        if token.text not in VARIABLES or (index and tokens[index - 1].text == "."):
            continue
        end = index + 1
        while end + 1 < len(tokens) and tokens[end].text == "." and tokens[end + 1].kind == "name":
            if end + 2 < len(tokens) and tokens[end + 2].text == "(":
                break
            end += 2
        path = "".join(part.text for part in tokens[index:end])
        if path not in paths:
            paths.append(path)
    return paths


def is_reference(text: str) -> bool:
    """Whether a text is one template and nothing else, so that it keeps the type of what it refers to.

    Raises:
        ExpressionError: a template is malformed.
    """
    parts = _parse(text)
    return len(parts) == 1 and isinstance(parts[0], _Placeholder)


def has_templates(value: Json) -> bool:
    """Whether anything in `value` is a template."""
    return any(True for _text in _templates(value, 0))


class _Renderer:
    """Renders one value, and counts what it puts in, so that the result stays within its limit."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        self._bytes_left = MAX_RENDERED_BYTES

    def render(self, value: Json, depth: int) -> Json:
        if isinstance(value, str):
            return self._text(value) if _OPEN in value else value
        if isinstance(value, Mapping | list | tuple):
            _refuse_depth(depth)
        if isinstance(value, Mapping):
            return {name: self.render(item, depth + 1) for name, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.render(item, depth + 1) for item in value]
        return value

    def _text(self, text: str) -> Json:
        parts = _parse(text)
        if len(parts) == 1 and isinstance(parts[0], _Placeholder):
            return self._value(parts[0])
        return "".join(part if isinstance(part, str) else _printed(self._value(part)) for part in parts)

    def _value(self, placeholder: _Placeholder) -> Json:
        value = evaluate(placeholder.expression, self._scope)
        self._bytes_left -= len(orjson.dumps(value))
        if self._bytes_left < 0:
            raise ExpressionError(
                placeholder.expression,
                f"the rendered arguments exceed {MAX_RENDERED_BYTES} bytes; refer to a smaller part of the data",
            )
        return value


@lru_cache(maxsize=MAX_CACHED)
def _compile(expression: str) -> _Compiled:
    if len(expression) > MAX_EXPRESSION_CHARS:
        raise ExpressionError(expression, f"longer than {MAX_EXPRESSION_CHARS} characters; split it over steps")
    tokens = _tokens(expression)
    try:
        program = cel.compile(expression)
    except ValueError as error:
        raise _parse_error(expression, str(error)) from None
    _refuse_unknown_functions(expression, program, tokens)
    bound, macros, depth = _macros(expression, tokens)
    # Each addition or list element inside a macro may repeat what the macro before it made.
    repeats = sum(token.text in {"+", ","} for token in tokens) - macros
    return _Compiled(
        source=expression,
        program=program,
        variables=frozenset(program.variables()) - bound - _TYPES,
        steps=frozenset(_step_names(expression, tokens)),
        macros=macros,
        depth=depth,
        growth=(1 + max(0, repeats)) ** macros,
    )


def _evaluate(compiled: _Compiled, scope: Scope) -> Json:
    variables: dict[str, Any] = {name: scope[name] for name in compiled.variables if name in scope}
    if "steps" in variables:
        # Everything handed over is converted, so hand over only what is referred to.
        steps = variables["steps"]
        variables["steps"] = {step: steps[step] for step in compiled.steps if step in steps}
    if compiled.macros:
        _refuse_cost(compiled, variables)
    try:
        value = compiled.program.execute(variables)
    except (KeyError, IndexError) as error:
        missing = error.args[0] if error.args else error
        message = f"there is no `{missing}`; guard it with has(...) or size(...)"
        raise ExpressionError(compiled.source, message) from None
    except (ValueError, RuntimeError, TypeError, ArithmeticError) as error:
        raise ExpressionError(compiled.source, str(error)) from None
    return _json(compiled.source, value)


def _json(expression: str, value: Any) -> Json:
    """The JSON form of what CEL gave back; times become RFC 3339 text and durations seconds, as in protobuf."""
    match value:
        case None | bool() | int() | str():
            return value
        case float() if math.isfinite(value):
            return value
        case list():
            return [_json(expression, item) for item in value]
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


def _printed(value: Json) -> str:
    return value if isinstance(value, str) else orjson.dumps(value).decode()


def _tokens(expression: str) -> list[_Token]:
    return [
        _Token(match.lastgroup or "", match.group(), match.start())
        for match in _TOKEN.finditer(expression)
        if match.lastgroup != "skip"
    ]


def _macros(expression: str, tokens: Sequence[_Token]) -> tuple[frozenset[str], int, int]:
    """The names that macros bind, how many macros there are, and how deep they are nested."""
    bound: set[str] = set()
    brackets: list[bool] = []
    count = deepest = 0
    for index, token in enumerate(tokens):
        if token.text == "(":
            macro = index > 1 and tokens[index - 1].text in _MACROS and tokens[index - 2].text == "."
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
    return frozenset(bound), count, deepest


def _step_names(expression: str, tokens: Sequence[_Token]) -> Iterator[str]:
    """The steps that are referred to. They must be named, because a plan's order follows from it."""
    for index, token in enumerate(tokens):
        if token.text != "steps" or (index and tokens[index - 1].text == "."):
            continue
        match [following.text for following in tokens[index + 1 : index + 4]]:
            case [".", name, *_] if tokens[index + 2].kind == "name":
                yield name
            case ["[", text, "]"] if tokens[index + 2].kind == "string" and "\\" not in text:
                yield text.strip("'\"")
            case _:
                message = 'name the step that is meant, as in steps.search or steps["search"]'
                raise ExpressionError(expression, message, token.start)


def _refuse_unknown_functions(expression: str, program: cel.Program, tokens: Sequence[_Token]) -> None:
    unknown = sorted(name for name in program.functions() if name.isidentifier() and name not in FUNCTIONS)
    for name in unknown:
        at = next((token.start for token in tokens if token.text == name), None)
        if at is not None:
            raise ExpressionError(expression, f"there is no function `{name}`; known are {_either(FUNCTIONS)}", at)


def _refuse_cost(compiled: _Compiled, variables: Mapping[str, Json]) -> None:
    longest, characters = _measure(variables)
    longest = max(longest, compiled.source.count(",") + 1) * compiled.growth
    if longest ** (compiled.depth + 1) > MAX_WORK or characters * compiled.growth > MAX_WORKING_CHARS:
        raise ExpressionError(
            compiled.source,
            f"too costly: {compiled.macros} macros, nested {compiled.depth} deep, over lists that may reach "
            f"{longest} elements; use fewer macros, or a step that returns less",
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


def _templates(value: Json, depth: int) -> Iterator[str]:
    """The strings in a value that contain a template."""
    if isinstance(value, str):
        if _OPEN in value:
            yield value
    elif isinstance(value, Mapping):
        _refuse_depth(depth)
        for item in value.values():
            yield from _templates(item, depth + 1)
    elif isinstance(value, list | tuple):
        _refuse_depth(depth)
        for item in value:
            yield from _templates(item, depth + 1)


@lru_cache(maxsize=MAX_CACHED)
def _parse(text: str) -> tuple[str | _Placeholder, ...]:
    """A text as alternating plain parts and placeholders."""
    parts: list[str | _Placeholder] = []
    at = 0
    while (start := text.find(_OPEN, at)) >= 0:
        end = _closing(text, start)
        if start > at:
            parts.append(text[at:start])
        parts.append(_Placeholder(text[start + len(_OPEN) : end].strip()))
        at = end + 2
    if at < len(text):
        parts.append(text[at:])
    return tuple(parts)


def _closing(text: str, start: int) -> int:
    """Where the `}}` stands that closes the template at `start`; map literals and strings may hold braces."""
    depth = 0
    for match in _TOKEN.finditer(text, start + len(_OPEN)):
        if match.group() == "{":
            depth += 1
        elif match.group() == "}":
            if depth == 0:
                if text.startswith("}}", match.start()):
                    return match.start()
                break
            depth -= 1
    raise ExpressionError(text, "this template is not closed; end it with `}}`", start)


def _steps_of(part: str | _Placeholder) -> frozenset[str]:
    return _compile(part.expression).steps if isinstance(part, _Placeholder) else frozenset()


def _refuse_depth(depth: int) -> None:
    if depth > MAX_TEMPLATE_DEPTH:
        raise ExpressionError("", f"the value is nested more than {MAX_TEMPLATE_DEPTH} deep; flatten it")


def _either(names: frozenset[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names))

"""Templates: JSON values with `${{ expression }}` in their strings.

What a template inserts is data: it is never rendered again, even if it looks like a template.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from triptych.playbook.expressions.budget import metered
from triptych.playbook.expressions.error import ExpressionError
from triptych.playbook.expressions.program import MAX_CACHED, Scope, evaluate, references_of
from triptych.playbook.expressions.tokens import OPEN, closing
from triptych.schemas import Json, codec

MAX_RENDERED_BYTES: Final = 1_048_576
MAX_EXPRESSIONS: Final = 500
MAX_CHARS_TOGETHER: Final = 30_000
"""Of all expressions of a plan. To compile one takes some 3 µs for each character, and no less than 0.2 ms."""


@dataclass(frozen=True, slots=True)
class _Placeholder:
    expression: str


@metered
def render(value: Json, scope: Scope) -> Json:
    """`value` with every template replaced.

    A string that is only one reference keeps the type of what it refers to. Inside a longer text, strings
    are inserted unchanged and other values as JSON. What is inserted is not rendered again.

    Raises:
        ExpressionError: a template is malformed, cannot be evaluated, or the whole becomes too large.
    """
    return _Renderer(scope).render(value, 0)


def references(value: Json) -> set[str]:
    """Find the ids of the steps that the templates in `value` refer to. For an expression: `references_of`.

    Raises:
        ExpressionError: a template is malformed.
    """
    return {step for expression in expressions(value) for step in references_of(expression)}


def expressions(value: Json) -> list[str]:
    """List the expressions in the templates of `value`, in order.

    Raises:
        ExpressionError: a template is malformed.
    """
    return [part.expression for text in _templates(value, 0) for part in _parse(text) if isinstance(part, _Placeholder)]


def refuse_volume(conditions: Iterable[str | None], templates: Iterable[Json]) -> None:
    """Make sure that the expressions of a plan are not too many, before any of them is compiled.

    Raises:
        ExpressionError: they are, or a template is malformed.
    """
    written = [condition for condition in conditions if condition]
    for value in templates:
        written += expressions(value)
    together = sum(map(len, written))
    if len(written) > MAX_EXPRESSIONS or together > MAX_CHARS_TOGETHER:
        raise ExpressionError(
            "",
            f"there are {len(written)} expressions with {together} characters; at most {MAX_EXPRESSIONS} with "
            f"{MAX_CHARS_TOGETHER} are allowed",
        )


def is_reference(text: str) -> bool:
    """Tell whether a text is only one template, so that it keeps the type of what it refers to.

    Raises:
        ExpressionError: a template is malformed.
    """
    parts = _parse(text)
    return len(parts) == 1 and isinstance(parts[0], _Placeholder)


def has_templates(value: Json) -> bool:
    """Tell whether anything in `value` is a template."""
    return any(True for _text in _templates(value, 0))


class _Renderer:
    """Renders one value, and counts what it puts in, so that the result stays within its limit."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        self._bytes_left = MAX_RENDERED_BYTES
        self._templates_left = MAX_EXPRESSIONS

    def render(self, value: Json, depth: int) -> Json:
        if isinstance(value, str):
            return self._text(value, depth) if OPEN in value else value
        if isinstance(value, dict):
            _refuse_depth(depth)
            return {name: self.render(item, depth + 1) for name, item in value.items()}
        if isinstance(value, list | tuple):
            _refuse_depth(depth)
            return [self.render(item, depth + 1) for item in value]
        return value

    def _text(self, text: str, depth: int) -> Json:
        parts = _parse(text)
        if len(parts) == 1 and isinstance(parts[0], _Placeholder):
            return self._value(parts[0], depth)
        return "".join(part if isinstance(part, str) else _printed(self._value(part, 0)) for part in parts)

    def _value(self, placeholder: _Placeholder, depth: int) -> Json:
        self._templates_left -= 1
        if self._templates_left < 0:
            raise ExpressionError("", f"there are more than {MAX_EXPRESSIONS} templates in one value; use fewer")
        value = evaluate(placeholder.expression, self._scope)
        try:
            self._bytes_left -= len(codec.encode(value, limits=codec.JsonLimits(max_depth=codec.MAX_DEPTH - depth)))
        except codec.InvalidJson as error:
            raise ExpressionError(placeholder.expression, f"gives what cannot be sent: {error}") from None
        if self._bytes_left < 0:
            raise ExpressionError(
                placeholder.expression,
                f"the rendered arguments exceed {MAX_RENDERED_BYTES} bytes; refer to a smaller part of the data",
            )
        return value


def _templates(value: Json, depth: int) -> Iterator[str]:
    """Find the strings in a value that contain a template."""
    if isinstance(value, str):
        if OPEN in value:
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
    """Split a text into plain parts and placeholders."""
    parts: list[str | _Placeholder] = []
    at = 0
    while (start := text.find(OPEN, at)) >= 0:
        end = closing(text, start)
        if start > at:
            parts.append(text[at:start])
        parts.append(_Placeholder(text[start + len(OPEN) : end].strip()))
        at = end + 2
        if len(parts) > 2 * MAX_EXPRESSIONS:
            raise ExpressionError("", f"there are more than {MAX_EXPRESSIONS} templates in one text; use fewer")
    if at < len(text):
        parts.append(text[at:])
    return tuple(parts)


def _printed(value: Json) -> str:
    return value if isinstance(value, str) else codec.encode_text(value)


def _refuse_depth(depth: int) -> None:
    if depth >= codec.MAX_DEPTH:
        raise ExpressionError("", f"the value is nested more than {codec.MAX_DEPTH} deep; flatten it")

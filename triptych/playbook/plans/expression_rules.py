"""Whether the expressions in a value compile, use variables that there are, and name steps that there are. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

from triptych.playbook import expressions
from triptych.playbook.diagnostic import Mistake, Place, did_you_mean
from triptych.playbook.expressions import ExpressionError
from triptych.schemas import Json

_SEE = "Write it in CEL; docs/reference/playbooks.md has what it can say"


def check_templates(
    value: Json, variables: frozenset[str], steps: Collection[str] | None, own: str = ""
) -> Iterator[Mistake]:
    """Check each template in a value.

    The templates can use `variables`, and can name `steps`, which are None where the ids are not known yet. The value
    belongs to the step `own`, which cannot wait for itself.
    """
    for place, text in _texts(value, ()):
        try:
            written = expressions.expressions(text)
        except ExpressionError as error:
            yield place, str(error), _SEE
            continue
        for expression in written:
            for _, message, cure in check_expression(expression, variables, steps, own):
                yield place, message, cure


def check_expression(
    expression: str, variables: frozenset[str], steps: Collection[str] | None, own: str = ""
) -> Iterator[Mistake]:
    """Check one expression, by the same rules."""
    try:
        expressions.check(expression, variables)
        referred = expressions.references_of(expression)
    except ExpressionError as error:
        yield (), str(error), _SEE
    else:
        if steps is not None:
            yield from check_references(referred, steps, own)


def check_references(names: Iterable[str], steps: Collection[str], own: str = "") -> Iterator[Mistake]:
    """Check that each name is that of another step."""
    for name in sorted(set(names)):
        if own and name == own:
            yield (), "the step refers to itself", "Use `result` in `expect` for its own result"
        elif name not in steps:
            cure = did_you_mean(name, steps) or f"The steps are {', '.join(sorted(steps)) or 'none'}"
            yield (), f"there is no step `{name}`", cure


def _texts(value: Json, place: Place) -> Iterator[tuple[Place, str]]:
    if isinstance(value, str):
        yield place, value
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from _texts(item, (*place, name))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _texts(item, (*place, index))

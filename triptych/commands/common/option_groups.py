"""Options that several commands have in common: one parameter, whose type is a dataclass with a field for each.

Typer does not know groups. It is shown a flat signature, and the values are put together before the command runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import wraps
from inspect import Parameter, Signature, signature
from typing import Any, get_type_hints


def with_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Show typer each field of a group as an option of its own, in the place of the group's parameter."""
    groups: dict[str, type[Any]] = {}
    flat: list[Parameter] = []
    for parameter in signature(command, eval_str=True).parameters.values():
        group = parameter.annotation
        if isinstance(group, type) and is_dataclass(group):
            groups[parameter.name] = group
            flat += _options_of(group)
        else:
            flat.append(parameter)

    @wraps(command)
    def flat_command(**given: Any) -> None:
        for name, group in groups.items():
            given[name] = group(**{field.name: given.pop(field.name) for field in fields(group)})
        command(**given)

    flat_command.__signature__ = Signature(flat)  # type: ignore[attr-defined]  # `inspect` reads it
    return flat_command


def _options_of(group: type[Any]) -> list[Parameter]:
    types = get_type_hints(group, include_extras=True)
    return [
        Parameter(field.name, Parameter.KEYWORD_ONLY, default=field.default, annotation=types[field.name])
        for field in fields(group)
    ]

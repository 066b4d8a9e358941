"""The reference of the `triptych` command, from its own help."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main

from generate.markdown import page, table
from triptych.commands.main import app

INTRODUCTION = """\
The option `--help` of each command says the same. [Exit codes](codes.md#exit-codes) are the same for every command.
[Operations](../how-to/operations.md) shows the commands at work.\
"""


def render() -> str:
    """Return the page."""
    return page("Command line", INTRODUCTION, *_commands("triptych", typer.main.get_command(app), 2))


def _commands(path: str, group: Any, level: int) -> Iterator[str]:
    for name in group.list_commands(None):
        command = group.get_command(None, name)
        yield _command(f"{path} {name}", command, level)
        if hasattr(command, "list_commands"):
            yield from _commands(f"{path} {name}", command, level + 1)


def _command(path: str, command: Any, level: int) -> str:
    about = inspect.cleandoc(command.help or "")
    parameters = [parameter for parameter in command.params if parameter.name != "help" and not parameter.hidden]
    usage = [path, *(_usage(parameter) for parameter in parameters if parameter.param_type_name == "argument")]
    usage += ["[OPTIONS]"] if any(parameter.param_type_name == "option" for parameter in parameters) else []
    is_group = hasattr(command, "list_commands")
    parts = [f"{'#' * level} {path}", about, "" if is_group else f"```text\n{' '.join(usage)}\n```"]
    if parameters:
        parts.append(table(["argument or option", "default", ""], [_row(parameter) for parameter in parameters]))
    return "\n\n".join(part for part in parts if part)


def _usage(argument: Any) -> str:
    name = _name(argument)
    name += "..." if argument.nargs == -1 and not name.endswith("...") else ""
    return name if argument.required else f"[{name}]"


def _name(argument: Any) -> str:
    return str(argument.metavar or argument.name.upper()).strip("[]")


def _row(parameter: Any) -> list[str]:
    if parameter.param_type_name == "argument":
        return [f"`{_name(parameter)}`", _default(parameter), parameter.help or ""]
    names = ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))
    return [names, _default(parameter), parameter.help or ""]


def _default(parameter: Any) -> str:
    """Return the default as a person would type it; nothing for an option that is off or empty."""
    if parameter.required:
        return "required"
    value = getattr(parameter.default, "value", parameter.default)
    if value in (None, False, (), "") or callable(value):
        return ""
    if isinstance(value, Path) and value.is_absolute():
        return f"the {value.name} that is shipped"
    return f"`{str(value).lower() if value is True else value}`"

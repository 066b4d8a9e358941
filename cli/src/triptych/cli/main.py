"""The `triptych` command: one line on standard error for what went wrong, and never a traceback.

Exit codes: 0 done, 1 it could not be done, 2 it was not asked for rightly or there is no stack.
"""

from __future__ import annotations

import logging
import sys
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup

from triptych.kernel.errors import TriptychError

COMMANDS = {
    "up": "commands_stack",
    "down": "commands_stack",
    "status": "commands_stack",
    "scale": "commands_stack",
    "restart": "commands_stack",
    "dev": "dev",
    "demo": "demo",
    "submit": "submit",
    "outcomes": "outcomes",
    "runs": "runs",
    "trace": "trace",
    "verify": "verify",
    "cancel": "control",
    "resume": "control",
    "skip": "control",
    "abort": "control",
    "topics": "topics",
    "models": "models",
    "cost": "cost",
    "retention": "retain",
    "backup": "backup",
    "restore": "backup",
    "setup": "setup",
    "playbook": "playbook",
    "schemas": "schemas",
    "tools": "tools",
    "new": "new",
    "mcp": "mcp",
    "kb": "kb",
    "memory": "memory",
}
"""In the order of the help: which module has a command. It is a function of that name, or the module's `app`."""


class Commands(TyperGroup):
    """Imports a command when it is asked for: all of them take several times as long as any one."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002 - click gives it
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002 - click gives it
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"triptych.cli.{COMMANDS[cmd_name]}")
        if (group := getattr(module, "app", None)) is not None:
            command: Any = typer.main.get_group(group)
        else:
            alone = typer.Typer(add_completion=False)
            alone.command()(getattr(module, cmd_name))
            command = typer.main.get_command(alone)
        command.name = cmd_name
        return command


app = typer.Typer(
    name="triptych",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def triptych() -> None:
    """Run agents as an event-driven pipeline: publish a task, get an outcome."""


def main() -> None:
    """Run the command line and end the process with its exit code."""
    # aiokafka reports to its log what it also raises; people get the error, once.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    try:
        app()
    except TriptychError as error:
        sys.exit(_told(error))


def _told(error: TriptychError) -> int:
    from triptych.cli.output import err  # noqa: PLC0415 - as below
    from triptych.client import (  # noqa: PLC0415 - most commands end well, and many need no client
        BrokerInvalidError,
        DatabaseUnreachableError,
        DsnInvalidError,
        KafkaUnreachableError,
        NoStackError,
        TopicMissingError,
    )
    from triptych.kernel.errors import ConfigurationError  # noqa: PLC0415

    nothing_there = (
        NoStackError,
        BrokerInvalidError,
        DsnInvalidError,
        KafkaUnreachableError,
        DatabaseUnreachableError,
        TopicMissingError,
        ConfigurationError,
    )
    err.print(str(error), style="red", markup=False, soft_wrap=True)
    return 2 if isinstance(error, nothing_there) else 1

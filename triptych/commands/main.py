"""The `triptych` command: one line on standard error for what went wrong, and never a traceback.

With `--json` that line is JSON. What the exit codes mean stands in `exit_codes.py`.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from triptych import __version__
from triptych.kernel.errors import TriptychError

COMMANDS = {
    "up": "commands_stack",
    "down": "commands_stack",
    "status": "commands_stack",
    "scale": "commands_stack",
    "restart": "commands_stack",
    "init": "init",
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
    "retention": "retention",
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
        module = import_module(f"triptych.commands.{COMMANDS[cmd_name]}")
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


def _print_version(is_asked: bool) -> None:  # noqa: FBT001 - typer gives it
    if is_asked:
        typer.echo(f"triptych {__version__}")
        raise typer.Exit


@app.callback()
def triptych(
    *,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Run agents as an event-driven pipeline: publish a task, get an outcome."""


def main() -> None:
    """Run the command line and end the process with its exit code."""
    # aiokafka reports to its log what it also raises; people get the error, once.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    try:
        # A command gives nothing, and typer the code of what ended it early.
        code = app(standalone_mode=False) or 0
        sys.stdout.flush()
    except TriptychError as error:
        code = _tell(error, str(error), _code_of(error))
    except typer.TyperException as error:
        code = _tell(error, _usage(error), error.exit_code)
    except typer.Abort as error:
        code = _tell(error, "Not done: it was not confirmed.", 1)
    except OSError as error:
        code = _tell(error, _system_error(error), 1)
    sys.exit(code)


def _tell(error: BaseException, message: str, code: int) -> int:
    """Say what went wrong, and give the exit code."""
    from triptych.commands.common.output import err, print_error  # noqa: PLC0415 - most commands end well

    if "--json" in sys.argv:
        print_error({"error": {"type": type(error).__name__, "message": message, "exit_code": code}})
    elif message:
        err.print(message, style="red", markup=False, soft_wrap=True)
    return code


def _usage(error: typer.TyperException) -> str:
    """What is wrong with what was asked, and where the help is."""
    context = getattr(error, "ctx", None)
    message = error.format_message()
    if context is None or type(error).__name__ == "NoArgsIsHelpError":
        return message
    return f"{message.rstrip('.')}. See `{context.command_path} --help`"


def _system_error(error: OSError) -> str:
    """What the operating system says, with the file that it says it of."""
    if error.errno == errno.ENOSPC:
        # The interpreter writes once more when it ends. The same error is not shown a second time.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    what = error.strerror or str(error) or type(error).__name__
    where = f"{error.filename}: " if error.filename is not None else ""
    cure = "; make room, then try again" if error.errno in {errno.ENOSPC, errno.EDQUOT} else ""
    return f"{where}{what}{cure}"


def _code_of(error: TriptychError) -> int:
    from triptych.client import (  # noqa: PLC0415 - many commands need no client
        BrokerInvalidError,
        DatabaseUnreachableError,
        DsnInvalidError,
        FilterUnknownError,
        KafkaUnreachableError,
        NoStackError,
        TopicMissingError,
    )
    from triptych.commands.common.exit_codes import ExitCode  # noqa: PLC0415 - as above
    from triptych.kernel.errors import ConfigurationError  # noqa: PLC0415

    nothing_there = (
        NoStackError,
        BrokerInvalidError,
        DsnInvalidError,
        FilterUnknownError,
        KafkaUnreachableError,
        DatabaseUnreachableError,
        TopicMissingError,
        ConfigurationError,
    )
    return ExitCode.USAGE_ERROR if isinstance(error, nothing_there) else ExitCode.FAILED

"""The `triptych` command: one line on standard error for what went wrong, and never a traceback.

With `--json` that line is JSON. `common/exit_codes.py` says what the exit codes mean.

To add a command, write `commands/NAME.py` with a function NAME, which typer turns into the command (`verify.py` is an
example), and give it a line in `COMMANDS`. A group, such as `triptych playbook`, is a folder: its `__init__.py` has the
typer `app`, and each sub-command has the file of its name. `common/` has what several commands share.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from triptych import __version__
from triptych.kernel.errors import TriptychError

COMMANDS = {
    "up": "Start Postgres, Kafka and every service, or apply what has changed.",
    "down": "Stop the services, then Kafka, then Postgres.",
    "status": "Show every process of the stack.",
    "scale": "Run N processes of a service.",
    "restart": "Restart the processes of a service one after the other.",
    "init": "Write a first triptych.toml, or the demo's to be changed.",
    "dev": "Run the stack until Ctrl-C, and restart what changes.",
    "demo": "Start a stack, submit the shipped tickets, show their outcomes, and stop it.",
    "submit": "Publish tasks, and wait for their outcomes.",
    "outcomes": "Show the outcomes that Kafka still has.",
    "runs": "List runs.",
    "trace": "Tell the whole story of a run.",
    "verify": "Check that journals, projections, budgets and receipts agree.",
    "cancel": "Stop a run.",
    "resume": "Take up an escalated run where it stopped.",
    "skip": "Treat a step of an escalated run as done, and go on.",
    "abort": "End an escalated run as failed.",
    "topics": "The topics, and how far their readers are.",
    "models": "Show what the cache of model answers saved.",
    "cost": "Say what a run of a playbook may cost.",
    "retention": "Remove runs that ended long ago.",
    "backup": "Write the database of the stack to a file.",
    "restore": "Put a backup in the place of the database of a stack.",
    "setup": "Create topics, roles and tables for services that `up` does not start.",
    "playbook": "Playbooks: agents written in YAML.",
    "schemas": "The wire contract: JSON Schema and AsyncAPI.",
    "tools": "Tools: what agents may reach.",
    "new": "Make something new.",
    "mcp": "Triptych for MCP clients.",
    "kb": "The knowledge base: load documents, and hold its scores to questions.",
    "memory": "What runs have noted for later ones: see it, and forget it.",
}
"""What `triptych --help` says of each command, in this order."""


class Commands(TyperGroup):
    """Imports a command when it is asked for: all of them take several times as long as any one."""

    def __init__(self, **given: Any) -> None:
        summaries = {name: TyperCommand(name, help=summary) for name, summary in COMMANDS.items()}
        super().__init__(**given | {"commands": summaries})

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002 - click gives it
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"triptych.commands.{cmd_name}")
        if (group := getattr(module, "app", None)) is not None:
            command: Any = typer.main.get_group(group)
        else:
            alone = typer.Typer(add_completion=False)
            alone.command()(getattr(module, cmd_name))
            command = typer.main.get_command(alone)
        command.name = cmd_name
        return command

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Show the summaries, so that no command is imported for it."""
        overview = TyperGroup(
            name=self.name,
            commands=dict(self.commands),
            params=self.params,
            help=self.help,
            rich_markup_mode=self.rich_markup_mode,
        )
        overview.format_help(ctx, formatter)


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
        code = _report(error, str(error), _code_of(error))
    except typer.TyperException as error:
        code = _report(error, _usage(error), error.exit_code)
    except typer.Abort as error:
        code = _report(error, "Not done: it was not confirmed.", 1)
    except OSError as error:
        code = _report(error, _system_error(error), 1)
    sys.exit(code)


def _report(error: BaseException, message: str, code: int) -> int:
    """Say what went wrong, and give the exit code."""
    from triptych.commands.common.output import err, print_error  # noqa: PLC0415 - most commands end well

    if "--json" in sys.argv:
        print_error({"error": {"type": type(error).__name__, "message": message, "exit_code": code}})
    elif message:
        err.print(message, style="red", markup=False, soft_wrap=True)
    return code


def _usage(error: typer.TyperException) -> str:
    """Say what is wrong with the command line, and where the help is."""
    context = getattr(error, "ctx", None)
    message = error.format_message()
    if context is None or type(error).__name__ == "NoArgsIsHelpError":
        return message
    end = "" if message.endswith("?") else "."
    return f"{message.rstrip('.')}{end} See `{context.command_path} --help`"


def _system_error(error: OSError) -> str:
    """Say what the operating system reports, and about which file."""
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

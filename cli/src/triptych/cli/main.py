"""The `triptych` command: one line on standard error for what went wrong, and never a traceback.

Exit codes: 0 done, 1 it could not be done, 2 it was not asked for rightly or there is no stack.
"""

from __future__ import annotations

import logging
import sys

import typer

from triptych.cli import (
    commands_stack,
    control,
    demo,
    kb,
    mcp,
    memory,
    models,
    new,
    outcomes,
    playbook,
    retain,
    runs,
    schemas,
    setup,
    submit,
    tools,
    topics,
    trace,
    verify,
)
from triptych.cli.output import err
from triptych.cli.stack.errors import StackError
from triptych.client import DatabaseUnreachableError, KafkaUnreachableError, NoStackError, TopicMissingError
from triptych.kernel.errors import ConfigurationError, TriptychError

_NOTHING_THERE = (NoStackError, KafkaUnreachableError, DatabaseUnreachableError, TopicMissingError, ConfigurationError)

app = typer.Typer(
    name="triptych",
    help="Run agents as an event-driven pipeline: publish a task, get an outcome.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
commands_stack.register(app)
app.command()(demo.demo)
app.command()(submit.submit)
app.command()(outcomes.outcomes)
app.command()(runs.runs)
app.command()(trace.trace)
app.command()(verify.verify)
control.register(app)
app.command()(topics.topics)
app.command()(models.models)
app.command()(retain.retention)
app.command()(setup.setup)
app.add_typer(playbook.app, name="playbook")
app.add_typer(schemas.app, name="schemas")
app.add_typer(tools.app, name="tools")
app.add_typer(new.app, name="new")
app.add_typer(mcp.app, name="mcp")
app.add_typer(kb.app, name="kb")
app.add_typer(memory.app, name="memory")


def main() -> None:
    """Run the command line and end the process with its exit code."""
    # aiokafka reports to its log what it also raises; people get the error, once.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    try:
        app()
    except (TriptychError, StackError) as error:
        err.print(str(error), style="red", markup=False, soft_wrap=True)
        sys.exit(2 if isinstance(error, _NOTHING_THERE) else 1)

"""`triptych up`: start the embedded stack, or let the one that runs take over what has changed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from triptych.commands.common.options import (
    DEFAULT_CONFIG,
    DEFAULT_DATA,
    DEFAULT_PREFIX,
    DEMO_CONFIG,
    AsJson,
    ConfigFile,
    DataDir,
    ExistingKafka,
    ExistingPostgres,
    TopicPrefix,
    configuration,
)
from triptych.commands.common.output import err, print_json
from triptych.commands.common.stack import start
from triptych.embedded.layout import Layout
from triptych.embedded.options import StackOptions


def up(
    *,
    data: DataDir = DEFAULT_DATA,
    prefix: TopicPrefix = DEFAULT_PREFIX,
    kafka: ExistingKafka = None,
    postgres: ExistingPostgres = None,
    config: ConfigFile = DEFAULT_CONFIG,
    playbooks: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Playbooks, instead of those that the configuration names.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Start Postgres, Kafka and every service, or apply what has changed; return when all are ready."""
    layout = Layout.at(data)
    config = configuration(config)
    stack = start(
        layout,
        StackOptions(
            data=layout.root,
            topic_prefix=prefix,
            config=config.resolve(),
            kafka=kafka,
            postgres=postgres,
            playbooks=playbooks.resolve() if playbooks else None,
        ),
    )
    if as_json:
        print_json(stack)
    else:
        err.print(f"Kafka [bold]{stack['kafka']}[/], topics [bold]{stack['topic_prefix']}.*[/], data {layout.root}")
        if config == DEMO_CONFIG:
            err.print(
                f"This is the demo ({config}). `triptych init --demo` copies it here, to be changed.", soft_wrap=True
            )

"""`triptych tools test --conformance`: does a tool of the configuration keep what its effect class promises?

The cases are those of `triptych.tools.conformance`; this module finds the tool and lends it a Postgres.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from triptych.commands.common.output import err, out, print_json
from triptych.embedded.config import PLACEHOLDER, StackConfig
from triptych.embedded.servers import start_postgres
from triptych.kernel.errors import ConfigurationError
from triptych.schemas import codec

if TYPE_CHECKING:
    from triptych.tools.conformance import ConformanceReport, Subject

_STYLES = {"passed": "green", "failed": "red", "skipped": "yellow"}


def check_conformance(
    file: Path, operation: str, arguments: str, postgres: str | None, *, callback: str | None = None, as_json: bool
) -> None:
    """Check an operation and show how it went. Ends with code 1 when it does not conform."""
    said = _decoded(callback, "--callback") if callback is not None else None
    report = conform(StackConfig.load(file), operation, _json(arguments), postgres, callback=said)
    if as_json:
        print_json(report_json(report))
    else:
        for finding in report.findings:
            out.print(f"[{_STYLES[finding.verdict]}]{finding.verdict}[/]  {finding.case}", end=": ")
            out.print(finding.told, markup=False, soft_wrap=True)
        err.print(f"{report.operation} {'conforms' if report.passed else 'does not conform'}")
    if not report.passed:
        raise typer.Exit(1)


def conform(
    config: StackConfig, operation: str, arguments: dict[str, Any], postgres: str | None, *, callback: Any = None
) -> ConformanceReport:
    """Check one operation of the configuration.

    `postgres` is the DSN of an owner; without one a Postgres is started for it. `callback` is what its upstream says
    when it calls back.

    Raises:
        ConfigurationError: there is no such tool or operation.
    """
    from triptych.tools.conformance import Example, check  # noqa: PLC0415 - the tools' runtime is slow to import

    name, _, short = operation.partition(".")
    subject, example = _subject(config, name), Example(short, arguments, callback)
    with _owner_dsn(postgres) as dsn:
        return asyncio.run(check(subject, example, postgres=dsn))


def report_json(report: ConformanceReport) -> dict[str, Any]:
    findings = [{"case": each.case, "verdict": each.verdict, "told": each.told} for each in report.findings]
    return {"operation": report.operation, "passed": report.passed, "findings": findings}


def _subject(config: StackConfig, name: str) -> Subject:
    from triptych.tools import Source  # noqa: PLC0415
    from triptych.tools.conformance import Subject  # noqa: PLC0415

    table = config.table.tools.get(name)
    if table is None:
        known = ", ".join(config.table.tools) or "none"
        raise ConfigurationError(f"{config.file}: there is no tool {name}, only {known}")
    return Subject(
        table.adapter,
        path=config.directory / table.path if table.path is not None else None,
        source=Source(name, table.options, config.directory),
        environment={key: text for key, text in table.env.items() if not PLACEHOLDER.search(text)},
        migrations=config.directories(table.migrations, f"tools.{name}.migrations"),
    )


@contextmanager
def _owner_dsn(postgres: str | None) -> Iterator[str]:
    if postgres is not None:
        yield postgres
        return
    with tempfile.TemporaryDirectory(prefix="triptych-") as folder, start_postgres(Path(folder)) as dsn:
        yield dsn


def _decoded(text: str, option: str) -> Any:
    try:
        return codec.decode(text)
    except codec.InvalidJson as error:
        raise typer.BadParameter(f"it is not JSON: {error}", param_hint=option) from None


def _json(text: str) -> dict[str, Any]:
    value = _decoded(text, "--arguments")
    if not isinstance(value, dict):
        raise typer.BadParameter("it is not a JSON object", param_hint="--arguments")
    return value

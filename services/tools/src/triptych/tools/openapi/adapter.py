"""From a stored document and options to a tool: `adapter = "triptych.tools.openapi:tool"`."""

from __future__ import annotations

import httpx

from triptych.kernel.errors import ConfigurationError
from triptych.tools.guard import Guard, OperationGuard
from triptych.tools.openapi.document import Document
from triptych.tools.openapi.options import OpenApiOptions
from triptych.tools.openapi.survey import Survey, survey
from triptych.tools.origin import Origin
from triptych.tools.rest import Engine, lookup_of
from triptych.tools.source import Source
from triptych.tools.tool import Tool

FETCH_TIMEOUT_S = 60


def tool(source: Source) -> Tool:
    """The tool of one document.

    Raises:
        ConfigurationError: the document or an option is not as it must be.
    """
    options = source.read(OpenApiOptions)
    made = _made(source, options, read_document(source, options))
    if (origin := options.source) is not None:

        async def fetch() -> bytes:
            return Document.parse(await fetched(origin, source), origin).to_bytes()

        def build(raw: bytes) -> Tool:
            return _made(source, options, Document.parse(raw, origin))

        made.origin = Origin(source.path(options.spec), fetch, build)
    return made


def _made(source: Source, options: OpenApiOptions, document: Document) -> Tool:
    made = survey(document, source.name, options)
    engine = Engine(source, options)
    endpoints = {each.endpoint.name: each.endpoint for each in made.generated}
    tool = Tool(source.name, lifespan=engine.lifespan, concurrency=options.concurrency, guard=guard_of(made))
    for generated in made.generated:
        name = generated.endpoint.name
        stated = options.operations.get(name)
        key = f"tools.{source.name}.options.operations.{name}.lookup"
        lookup = None if stated is None or stated.lookup is None else lookup_of(stated.lookup, endpoints, key)
        tool.add(engine.operation(generated.endpoint, lookup))
    return tool


def guard_of(made: Survey) -> Guard:
    """The rates that the document states; the table `guard` in triptych.toml says otherwise where it does."""
    operations = {each.endpoint.name: OperationGuard(rate=each.rate) for each in made.generated if each.rate}
    return Guard(rate=made.rate, operations=operations)


async def fetched(origin: str, source: Source) -> bytes:
    """The document as it is now at its address, or in the file that it was copied from.

    Raises:
        ConfigurationError: it is not to be had.
    """
    if not origin.startswith(("http://", "https://")):
        try:
            return source.path(origin).read_bytes()
        except OSError as error:
            raise ConfigurationError(f"{source.path(origin)} cannot be read: {error.strerror}") from None
    try:
        async with httpx.AsyncClient(timeout=FETCH_TIMEOUT_S, follow_redirects=True) as client:
            return (await client.get(origin)).raise_for_status().content
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ConfigurationError(f"{origin} cannot be fetched: {error}") from None


def read_document(source: Source, options: OpenApiOptions) -> Document:
    """The copy of the document that lies beside triptych.toml.

    Raises:
        ConfigurationError: it is not there, or no OpenAPI 3 document.
    """
    file = source.path(options.spec)
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise ConfigurationError(
            f"tools.{source.name}.options.spec: {file} cannot be read ({error.strerror}); "
            f"`triptych tools add openapi` stores it"
        ) from None
    return Document.parse(raw, options.source or str(file))

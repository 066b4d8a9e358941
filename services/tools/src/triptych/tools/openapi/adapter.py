"""From a stored document and options to a tool: `adapter = "triptych.tools.openapi:tool"`."""

from __future__ import annotations

from triptych.kernel import expressions
from triptych.kernel.errors import ConfigurationError
from triptych.kernel.expressions import ExpressionError
from triptych.schemas.contract import Effect
from triptych.tools.openapi.document import Document
from triptych.tools.openapi.options import LookupOption, OpenApiOptions
from triptych.tools.openapi.survey import Survey, survey
from triptych.tools.rest import Engine, Lookup
from triptych.tools.rest.engine import LOOKUP_ARGUMENTS, LOOKUP_FOUND
from triptych.tools.source import Source
from triptych.tools.tool import Tool


def tool(source: Source) -> Tool:
    """The tool of one document.

    Raises:
        ConfigurationError: the document or an option is not as it must be.
    """
    options = source.read(OpenApiOptions)
    made = survey(read_document(source, options), source.name, options)
    engine = Engine(source, options)
    tool = Tool(source.name, lifespan=engine.lifespan, concurrency=options.concurrency)
    for generated in made.generated:
        name = generated.endpoint.contract.operation.partition(".")[2]
        stated = options.operations.get(name)
        lookup = None if stated is None or stated.lookup is None else _lookup(source, name, stated.lookup, made)
        tool.add(engine.operation(generated.endpoint, lookup))
    return tool


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


def _lookup(source: Source, name: str, stated: LookupOption, made: Survey) -> Lookup:
    """Raises ConfigurationError where the lookup could never work."""
    key = f"tools.{source.name}.options.operations.{name}.lookup"
    endpoint = made.endpoint(f"{source.name}.{stated.operation}")
    if endpoint is None:
        raise ConfigurationError(f"{key}.operation: there is no {stated.operation} here; include it as well")
    if endpoint.contract.effect is not Effect.READ:
        raise ConfigurationError(f"{key}.operation: {stated.operation} is no read, and asking must change nothing")
    try:
        for expression in expressions.expressions(stated.arguments):
            expressions.check(expression, LOOKUP_ARGUMENTS)
    except ExpressionError as error:
        raise ConfigurationError(f"{key}.arguments: {error}") from None
    try:
        expressions.check(stated.found, LOOKUP_FOUND)
    except ExpressionError as error:
        raise ConfigurationError(f"{key}.found: {error}") from None
    return Lookup(endpoint, stated.arguments, stated.found)

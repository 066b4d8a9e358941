"""Read the arguments of an operation: one object, and the place of each argument in the request.

Parameters keep their names and the body is one argument, `body`, so that a document that grows never makes two
arguments collide. Credentials, the idempotency key and fixed values are sent by the runtime: they are
not arguments.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

from triptych.schemas.base import Json
from triptych.tools.adapters.openapi.bodies import BodyReader
from triptych.tools.adapters.openapi.document import OpenApiDocument, OperationEntry
from triptych.tools.adapters.openapi.examples import examples_of
from triptych.tools.adapters.openapi.options import OpenApiOptions
from triptych.tools.adapters.openapi.schemas import Converted, Direction, SchemaWriter
from triptych.tools.adapters.openapi.skip_reasons import SkipOperationError, SkipReason
from triptych.tools.adapters.rest import KeyCarrier, KeyLocation, Parameter, ParameterLocation, RequestBody, Style
from triptych.tools.adapters.rest.auth import CREDENTIAL_HEADERS, ROUTING_HEADERS, TOKEN, ApiKeyOptions
from triptych.tools.http.errors import is_json

_IN_PATH = re.compile(r"\{([^{}]+)\}")
_SPEC_IGNORES: Final = frozenset({"accept", "content-type", "authorization"})
"""OpenAPI ignores parameters of these names; the runtime sends these headers itself."""
IDEMPOTENCY_HEADERS: Final = frozenset({"idempotency-key", "x-idempotency-key"})
_SCALARS: Final = ("boolean", "integer", "number", "string")
_DEFAULT_STYLES = {
    ParameterLocation.PATH: Style.SIMPLE,
    ParameterLocation.HEADER: Style.SIMPLE,
    ParameterLocation.QUERY: Style.FORM,
    ParameterLocation.COOKIE: Style.FORM,
}


@dataclass(slots=True)
class Arguments:
    """The object of arguments, and where each goes."""

    properties: dict[str, Json] = field(default_factory=dict)
    required: list[str] = field(default_factory=list)
    needs: Converted = field(default_factory=lambda: Converted(None))
    """What the schemas of the parameters refer to."""
    parameters: list[Parameter] = field(default_factory=list)
    defaults: dict[str, Json] = field(default_factory=dict)
    """What is sent for parameters that the server requires and a caller need not give."""
    fixed: list[tuple[Parameter, Json]] = field(default_factory=list)
    body: RequestBody | None = None
    examples: list[tuple[str, str, Json]] = field(default_factory=list)
    """What the document shows: an argument, the name of the example, and the value."""
    key: KeyCarrier | None = None
    """The header that the document declares for the idempotency key."""
    notes: list[str] = field(default_factory=list)

    def drop(self, parameter: Parameter) -> None:
        """Take a parameter out again, with all that is known of its argument."""
        self.parameters.remove(parameter)
        del self.properties[parameter.argument]
        self.required = [each for each in self.required if each != parameter.argument]
        self.defaults.pop(parameter.argument, None)
        self.examples = [each for each in self.examples if each[0] != parameter.argument]


class ArgumentsReader:
    """Reads the parameters and the body of operations."""

    def __init__(self, document: OpenApiDocument, options: OpenApiOptions) -> None:
        self._document, self._options = document, options
        self._writer = SchemaWriter(document, Direction.REQUEST)
        self._bodies = BodyReader(document)
        self.fixed_used: set[str] = set()

    def read(self, place: OperationEntry, media_type: str | None = None) -> tuple[Arguments, dict[str, Json]]:
        """Return the arguments of an operation, and their JSON Schema. `media_type` is what an option says of its body.

        Raises:
            LeftOutError: a parameter or the body is of a kind that cannot be sent.
            UnresolvedError: a reference leads nowhere.
        """
        found = Arguments()
        for stated in self._parameters(place):
            self._add_parameter(found, stated)
        self._add_forgotten(found, place)
        definitions = self._writer.definitions(found.needs)
        if "requestBody" in place.operation:
            stated = self._document.resolved(place.operation["requestBody"])
            definitions |= self._add_body(found, stated, media_type)
        found.notes.extend(found.needs.loosened)
        schema: dict[str, Json] = {"type": "object", "properties": found.properties}
        if found.required:
            schema["required"] = found.required
        schema["additionalProperties"] = False
        if definitions:
            schema["$defs"] = definitions
        return found, schema

    def _parameters(self, place: OperationEntry) -> list[dict[str, Json]]:
        """Return those of the path item, as far as the operation does not say otherwise, and its own."""
        known: dict[tuple[str, str], dict[str, Json]] = {}
        for level in (place.item, place.operation):
            listed = level.get("parameters") or []
            if not isinstance(listed, list):
                raise SkipOperationError(SkipReason.PARAMETER, "its parameters are not a list")
            for each in listed:
                stated = self._document.resolved(each)
                if not isinstance(stated.get("name"), str) or not stated["name"]:
                    raise SkipOperationError(SkipReason.PARAMETER, "a parameter has no name")
                known[str(stated.get("in")), str(stated.get("name"))] = stated
        in_order = {where.value: number for number, where in enumerate(ParameterLocation)}
        return sorted(known.values(), key=lambda each: in_order.get(str(each.get("in")), len(in_order)))

    def _add_parameter(self, found: Arguments, stated: dict[str, Json]) -> None:
        name = str(stated.get("name"))
        try:
            where = ParameterLocation(str(stated.get("in")))
        except ValueError:
            raise SkipOperationError(SkipReason.PARAMETER, f"parameter {name} is in {stated.get('in')!r}") from None
        if where in {ParameterLocation.HEADER, ParameterLocation.COOKIE} and not TOKEN.fullmatch(name):
            raise SkipOperationError(SkipReason.PARAMETER, f"{name[:100]!r} cannot be the name of a {where}")
        if self._is_ours(found, where, name):
            return
        parameter, schema = self._parameter(name, where, stated, self._free_name(found, name, where))
        if name in self._options.set:
            self.fixed_used.add(name)
            found.fixed.append((parameter, self._options.set[name]))
            return
        converted = self._writer.convert(schema)
        found.needs.references |= converted.references
        found.needs.loosened |= converted.loosened
        found.parameters.append(parameter)
        found.properties[parameter.argument] = _described(converted.schema, stated)
        shown = examples_of(self._document, stated)
        found.examples.extend((parameter.argument, name, value) for name, value in shown)
        if stated.get("required") is not True and where is not ParameterLocation.PATH:
            return
        default = _default_of(self._document, schema)
        if default is None:
            found.required.append(parameter.argument)
            if where is not ParameterLocation.PATH and not parameter.as_json:
                found.properties[parameter.argument] = self._sent(found.properties[parameter.argument], schema)
        else:
            # The server requires it, and the document says what is meant where a caller gives none.
            found.defaults[parameter.argument] = default

    def _sent(self, written: Json, schema: Json) -> Json:
        """Return the schema of a value that must be sent. It refuses null and empty values, which are not sent."""
        kind = self._document.resolved(schema).get("type") if isinstance(schema, dict) else None
        if kind in _SCALARS:
            return written
        return {"allOf": [written, {"minItems": 1, "minProperties": 1, "not": {"type": "null"}}]}

    def _is_ours(self, found: Arguments, where: ParameterLocation, name: str) -> bool:
        """Return whether this is not an argument: the runtime sends it itself, or it is never sent."""
        lowered = name.lower()
        auth = self._options.auth
        if isinstance(auth, ApiKeyOptions) and auth.place == where.value and auth.name.lower() == lowered:
            return True
        if where is not ParameterLocation.HEADER:
            return False
        if lowered in IDEMPOTENCY_HEADERS:
            found.key = KeyCarrier(KeyLocation.HEADER, name)
        elif lowered in {header.lower() for header in self._options.headers} | _SPEC_IGNORES:
            pass
        elif lowered in ROUTING_HEADERS:
            found.notes.append(f"the header {name} says where a request goes and is not an argument")
        elif lowered in CREDENTIAL_HEADERS:
            found.notes.append(f"the header {name} holds a credential and is not an argument; give it as `auth`")
        else:
            return False
        return True

    def _parameter(
        self, name: str, where: ParameterLocation, stated: dict[str, Json], argument: str
    ) -> tuple[Parameter, Json]:
        content = stated.get("content")
        if isinstance(content, dict) and content:
            media_type, inner = next(iter(content.items()))
            if not is_json(media_type):
                raise SkipOperationError(SkipReason.PARAMETER, f"parameter {name} is written as {media_type}")
            as_json = Parameter(argument, name, where, _DEFAULT_STYLES[where], explode=False, as_json=True)
            return as_json, inner.get("schema", True) if isinstance(inner, dict) else True
        try:
            style = Style(stated.get("style", _DEFAULT_STYLES[where]))
        except ValueError:
            raise SkipOperationError(
                SkipReason.PARAMETER, f"parameter {name} has the style {stated.get('style')!r}"
            ) from None
        explode = stated.get("explode", style is Style.FORM)
        reserved = stated.get("allowReserved") is True
        return Parameter(argument, name, where, style, explode is True, reserved), stated.get("schema", True)

    def _free_name(self, found: Arguments, name: str, where: ParameterLocation) -> str:
        taken = {*found.properties, "body"}
        if name not in taken:
            return name
        free = f"{name}_in_{where.value}"
        found.notes.append(f"the {where.value} parameter {name} is the argument {free}, since {name} is taken")
        return free

    def _add_forgotten(self, found: Arguments, place: OperationEntry) -> None:
        """Add parameters that the path has in braces without a declaration; drop declared ones that it lacks."""
        in_path = dict.fromkeys(_IN_PATH.findall(place.path))
        declared = {each.name for each in found.parameters if each.place is ParameterLocation.PATH}
        declared |= {each.name for each, _ in found.fixed if each.place is ParameterLocation.PATH}
        for name in in_path.keys() - declared:
            self._add_parameter(found, {"name": name, "in": "path", "schema": {"type": "string"}})
            found.notes.append(f"the path parameter {name} is not declared; it is taken as text")
        for lost in [
            each for each in found.parameters if each.place is ParameterLocation.PATH and each.name not in in_path
        ]:
            found.drop(lost)
            found.notes.append(f"the path parameter {lost.name} is declared, but the path has no place for it")

    def _add_body(self, found: Arguments, stated: dict[str, Json], chosen: str | None) -> dict[str, Json]:
        """Take up the body; gives the definitions that its schema needs."""
        content = stated.get("content")
        if not isinstance(content, dict) or not content:
            found.notes.append("the document has a body of no media type; none is sent")
            return {}
        read = self._bodies.read(content, chosen)
        found.body = read.body
        found.notes.extend(read.notes)
        found.examples.extend(("body", name, value) for name, value in read.examples)
        found.properties["body"] = _described(read.schema, stated)
        if stated.get("required") is True:
            found.required.append("body")
        return read.definitions


def _default_of(document: OpenApiDocument, schema: Json) -> Json:
    """Return what a schema says a value is where none is given; None where it says nothing."""
    if not isinstance(schema, dict):
        return None
    return schema.get("default", document.resolved(schema).get("default"))


def _described(schema: Json, stated: dict[str, Json]) -> Json:
    """Return the schema with the description that stands beside it, where it has none of its own."""
    description = stated.get("description")
    if not isinstance(description, str) or not description:
        return schema
    if schema is True:
        return {"description": description}
    return schema if not isinstance(schema, dict) or "description" in schema else {"description": description, **schema}

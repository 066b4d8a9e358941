"""Schemas of an OpenAPI document as JSON Schema 2020-12, each whole by itself.

OpenAPI 3.0 has a dialect of its own and 3.1 adds a few words; what a validator needs is translated, what it
cannot use is left out. A schema that refers to others carries them under `$defs`, and only those.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from triptych.kernel.json_schema import check_pattern
from triptych.schemas import codec
from triptych.schemas.base import Json
from triptych.tools.openapi.closing import is_closed
from triptych.tools.openapi.document import Document, UnresolvedError
from triptych.tools.openapi.errors import LeftOutError, Reason
from triptych.tools.rest.request import FILE_SCHEMA

_COMPONENT = "#/components/schemas/"
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")

_VALUES = frozenset({"additionalProperties", "items", "unevaluatedItems", "unevaluatedProperties"})
_ONE = frozenset({"contains", "contentSchema", "else", "if", "not", "propertyNames", "then"})
_LIST = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
_MAP = frozenset({"dependentSchemas", "patternProperties"})
_PLAIN = frozenset(
    {
        "const", "contentEncoding", "contentMediaType", "default", "dependentRequired", "deprecated", "description",
        "enum", "exclusiveMaximum", "exclusiveMinimum", "format", "maxContains", "maxItems", "maxLength",
        "maxProperties", "maximum", "minContains", "minItems", "minLength", "minProperties", "minimum", "multipleOf",
        "pattern", "required", "title", "type", "uniqueItems",
    }
)  # fmt: skip
_ANNOTATIONS = frozenset({"default", "deprecated", "description", "title"})
"""For whoever writes arguments. Nobody writes results, and these are half of a document."""
DEFINITIONS_MAX_BYTES: Final = 1_048_576
"""What refers to more would be no contract that anybody reads."""
EXAMPLE_MAX_CHARS: Final = 200


class Direction(Enum):
    """Which way a value travels: what a server alone sets is no argument, what it hides is no result."""

    REQUEST = "readOnly"
    RESPONSE = "writeOnly"


@dataclass(slots=True)
class Converted:
    schema: Json
    references: dict[str, None] = field(default_factory=dict)
    """The local references in it, in order."""
    loosened: dict[str, None] = field(default_factory=dict)
    """What the document demands and nobody can check, in words."""


class SchemaWriter:
    """Translates the schemas of one document for one direction; what several operations share is translated once."""

    def __init__(self, document: Document, direction: Direction, *, files: bool = False) -> None:
        """`files`: text of the format `binary` is a file, as in the parts of a multipart body."""
        self._document, self._direction, self._files = document, direction, files
        self._known: dict[str, Converted] = {}
        self._sizes: dict[str, int] = {}

    def convert(self, schema: Json) -> Converted:
        """The schema, with references to `#/$defs/...` that `definitions` gives.

        Raises:
            UnresolvedError: a reference leads nowhere, or out of the document.
        """
        found = Converted(None)
        found.schema = self._conversion(found, None).value(schema)
        return found

    def definitions(self, wanted: Converted) -> dict[str, Json]:
        """Every schema that a converted one needs, by its name under `$defs`; `wanted` learns what they loosen.

        Raises:
            UnresolvedError: a reference leads nowhere, or out of the document.
            LeftOutError: they are too large together.
        """
        found: dict[str, Json] = {}
        size = 0
        open_references = list(wanted.references)
        seen = set(open_references)
        while open_references:
            reference = open_references.pop()
            converted = self._definition(reference)
            size += self._size(reference, converted)
            if size > DEFINITIONS_MAX_BYTES:
                why = f"what it refers to has more than {DEFINITIONS_MAX_BYTES} bytes"
                raise LeftOutError(Reason.TOO_LARGE, why)
            found[definition_name(reference)] = converted.schema
            wanted.loosened |= converted.loosened
            new = converted.references.keys() - seen
            seen |= new
            open_references.extend(new)
        return dict(sorted(found.items()))

    def _definition(self, reference: str) -> Converted:
        known = self._known.get(reference)
        if known is None:
            known = self._known[reference] = Converted(None)
            try:
                known.schema = self._conversion(known, reference).of(self._document.at(reference))
            except BaseException:
                del self._known[reference]
                raise
        return known

    def _size(self, reference: str, converted: Converted) -> int:
        if reference not in self._sizes:
            self._sizes[reference] = len(codec.encode(converted.schema, limits=codec.STORED))
        return self._sizes[reference]

    def _conversion(self, into: Converted, home: str | None) -> _Conversion:
        return _Conversion(self._document, self._direction, into, home, files=self._files)


def definition_name(reference: str) -> str:
    """The name under `$defs` of what a reference points to; the same in every contract."""
    plain = reference.removeprefix(_COMPONENT)
    name = _UNSAFE.sub("_", plain.removeprefix("#/"))
    if name == plain:
        return name
    return f"{name}-{hashlib.sha256(reference.encode()).hexdigest()[:6]}"


class _Conversion:
    """One walk through one schema."""

    def __init__(
        self, document: Document, direction: Direction, into: Converted, home: str | None, *, files: bool
    ) -> None:
        self._document, self._direction, self._into, self._home = document, direction, into, home
        self._files = files

    def value(self, schema: Json) -> Json:
        """The schema of a whole value, and not of a part of what is said of one: a request's is closed."""
        written = self.of(schema)
        if self._direction is Direction.REQUEST and isinstance(written, dict) and is_closed(self._document, schema):
            written["unevaluatedProperties"] = False
        return written

    def of(self, schema: Json) -> Json:
        if isinstance(schema, bool):
            return schema
        if not isinstance(schema, dict):
            # A list where a schema belongs is a mistake of the document; the validator refuses it with a reason.
            return schema
        if self._files and schema.get("type") == "string" and schema.get("format") == "binary":
            return {**FILE_SCHEMA, "description": schema.get("description", FILE_SCHEMA["description"])}
        reference = self._reference(schema)
        written = self._words(schema) if reference is None else self._referring(schema, reference)
        return _nullable(written) if schema.get("nullable") is True else written

    def _reference(self, schema: dict[str, Json]) -> str | None:
        if isinstance(schema.get("$ref"), str):
            return str(schema["$ref"])
        for word in ("$recursiveRef", "$dynamicRef"):
            if isinstance(schema.get(word), str):
                if self._home is None:
                    raise UnresolvedError(f"{word}: {schema[word]}", "stands outside the schemas of the components")
                return self._home
        return None

    def _referring(self, schema: dict[str, Json], reference: str) -> dict[str, Json]:
        self._document.at(reference)
        self._into.references[reference] = None
        own = {key: value for key, value in schema.items() if key not in {"$ref", "$recursiveRef", "$dynamicRef"}}
        if self._document.is_3_0:
            own = {key: value for key, value in own.items() if key in _ANNOTATIONS}
        return {**self._words(own), "$ref": f"#/$defs/{definition_name(reference)}"}

    def _words(self, schema: dict[str, Json]) -> dict[str, Json]:
        written: dict[str, Json] = {}
        told = _PLAIN if self._direction is Direction.REQUEST else _PLAIN - _ANNOTATIONS
        for word, value in schema.items():
            if word in told:
                written[word] = value
            elif word in _VALUES:
                written[word] = self.value(value)
            elif word in _ONE:
                written[word] = self.of(value)
            elif word == "properties" and isinstance(value, dict):
                written[word] = {name: self.value(each) for name, each in value.items()}
            elif word in _LIST and isinstance(value, list):
                written[word] = [self.of(each) for each in value]
            elif word in _MAP and isinstance(value, dict):
                written[word] = {name: self.of(each) for name, each in value.items()}
        self._without_hidden(schema, written)
        _mend(written)
        if "pattern" in written and not is_pattern(written["pattern"]):
            self._into.loosened[
                f"the pattern {written.pop('pattern')!r} is of another dialect, or too large, and is not checked"
            ] = None
        if self._direction is Direction.REQUEST:
            _take_example(schema, written)
        return written

    def _without_hidden(self, schema: dict[str, Json], written: dict[str, Json]) -> None:
        """In requests there is no property that only the server sets; in answers none that it keeps must be there."""
        properties = schema.get("properties")
        if not isinstance(properties, dict):
            return
        hidden = {
            name
            for name, each in properties.items()
            if isinstance(each, dict) and each.get(self._direction.value) is True
        }
        if not hidden:
            return
        if self._direction is Direction.REQUEST:
            written["properties"] = {name: each for name, each in written["properties"].items() if name not in hidden}
        if isinstance(written.get("required"), list):
            written["required"] = [name for name in written["required"] if name not in hidden]


def is_pattern(pattern: Json) -> bool:
    """Whether values can be held to this regular expression; documents have some of other dialects, or too large."""
    if not isinstance(pattern, str):
        return False
    try:
        check_pattern(pattern)
    except ValueError:
        return False
    return True


def _mend(written: dict[str, Json]) -> None:
    """What OpenAPI 3.0 says otherwise, and slips that mean the same once they are put right."""
    for exclusive, bound in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        # OpenAPI 3.0: `exclusiveMinimum: true` says how `minimum` is meant.
        if isinstance(written.get(exclusive), bool) and written.pop(exclusive) and bound in written:
            written[exclusive] = written.pop(bound)
    required = written.pop("required", None)
    if isinstance(required, list) and required:
        # By comparison, for what is no name need not be hashable; whoever checks the schema refuses it.
        written["required"] = [name for place, name in enumerate(required) if name not in required[:place]]
    for word in ("title", "description"):
        if word in written and not isinstance(written[word], str):
            del written[word]


def _take_example(schema: dict[str, Json], written: dict[str, Json]) -> None:
    """A short example helps whoever writes arguments; nobody writes results."""
    if "example" in schema and len(str(schema["example"])) <= EXAMPLE_MAX_CHARS:
        written["examples"] = [schema["example"]]


def _nullable(written: dict[str, Json]) -> dict[str, Json]:
    """The same, or null."""
    kind = written.get("type")
    if "$ref" in written or kind is None:
        if not written.keys() - _ANNOTATIONS:
            return written
        said = {key: value for key, value in written.items() if key in _ANNOTATIONS}
        rest = {key: value for key, value in written.items() if key not in said}
        return {**said, "anyOf": [rest, {"type": "null"}]}
    kinds = kind if isinstance(kind, list) else [kind]
    nullable = {**written, "type": [*kinds, *(["null"] if "null" not in kinds else [])]}
    if isinstance(written.get("enum"), list) and None not in written["enum"]:
        nullable["enum"] = [*written["enum"], None]
    return nullable

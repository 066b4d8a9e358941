"""Schemas of an OpenAPI document as JSON Schema 2020-12, each whole by itself.

OpenAPI 3.0 has a dialect of its own and 3.1 adds a few words; what a validator needs is translated, what it
cannot use is left out. A schema that refers to others carries them under `$defs`, and only those.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Final

from triptych.json_schema import check_pattern
from triptych.schemas import codec
from triptych.schemas.base import Json
from triptych.tools.adapters.openapi.composition import (
    ALONE,
    Composer,
    Composition,
    Evidence,
    exclude_each_other,
    selected_by,
)
from triptych.tools.adapters.openapi.document import OpenApiDocument, UnresolvedError
from triptych.tools.adapters.openapi.keywords import BRANCHES, listed, types_of
from triptych.tools.adapters.openapi.skip_reasons import SkipOperationError, SkipReason
from triptych.tools.adapters.openapi.strict_objects import is_closed
from triptych.tools.adapters.rest.body_serialization import FILE_SCHEMA

_COMPONENT = "#/components/schemas/"
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")

_VALUES = frozenset({"additionalProperties", "items", "unevaluatedItems", "unevaluatedProperties"})
_ONE = frozenset({"contains", "contentSchema", "else", "if", "not", "propertyNames", "then"})
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
"""Kept for models, which write arguments. They do not write results, whose examples are half of a document."""
DEFINITIONS_MAX_BYTES: Final = 1_048_576
"""What refers to more would be no contract that anybody reads."""
EXAMPLE_MAX_CHARS: Final = 200


class Direction(Enum):
    """The direction of a value: a request has no `readOnly` properties, and a response has no `writeOnly` ones."""

    REQUEST = "readOnly"
    RESPONSE = "writeOnly"


@dataclass(frozen=True, slots=True)
class Reference:
    """A local reference, and what of the composition around it the referred schema has to know."""

    pointer: str
    around: Composition = ALONE

    @property
    def name(self) -> str:
        """Return its name under `$defs`, the same in every contract."""
        plain = self.pointer.removeprefix(_COMPONENT)
        name = _UNSAFE.sub("_", plain.removeprefix("#/"))
        if self.around == ALONE and name == plain:
            return name
        told = self.pointer if self.around == ALONE else f"{self.pointer} {self.around.told}"
        return f"{name}-{hashlib.sha256(told.encode()).hexdigest()[:6]}"


@dataclass(slots=True)
class Converted:
    schema: Json
    references: dict[Reference, None] = field(default_factory=dict)
    """What it refers to, in order."""
    loosened: dict[str, None] = field(default_factory=dict)
    """Demands of the document that cannot be checked, in words."""


class SchemaWriter:
    """Translates the schemas of one document for one direction; what several operations share is translated once."""

    def __init__(
        self,
        document: OpenApiDocument,
        direction: Direction,
        *,
        files: bool = False,
        evidence: Evidence = frozenset(),
    ) -> None:
        """`files`: text that is bytes is a file, as in the parts of a multipart body.

        `evidence`: objects with names that still travel in this direction, as examples show.
        """
        self._document, self._direction, self._files = document, direction, files
        self._composer = Composer(document, direction.value, evidence)
        self._known: dict[Reference, Converted] = {}
        self._sizes: dict[Reference, int] = {}

    def convert(self, schema: Json) -> Converted:
        """Return the schema, with references to `#/$defs/...` that `definitions` gives.

        Raises:
            UnresolvedError: a reference leads nowhere, or out of the document.
        """
        found = Converted(None)
        found.schema = self._conversion(found, None).value(schema)
        return found

    def definitions(self, wanted: Converted) -> dict[str, Json]:
        """Return every schema that a converted one needs, by its name under `$defs`. `wanted` gets what they loosen.

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
                raise SkipOperationError(SkipReason.TOO_LARGE, why)
            found[reference.name] = converted.schema
            wanted.loosened |= converted.loosened
            new = converted.references.keys() - seen
            seen |= new
            open_references.extend(new)
        return dict(sorted(found.items()))

    def _definition(self, reference: Reference) -> Converted:
        known = self._known.get(reference)
        if known is None:
            known = self._known[reference] = Converted(None)
            try:
                target = self._document.at(reference.pointer)
                composition = self._composer.of(target, reference.around)
                composition = replace(composition, kinds=composition.kinds | {reference.pointer})
                known.schema = self._conversion(known, reference).of(target, composition)
            except BaseException:
                del self._known[reference]
                raise
        return known

    def _size(self, reference: Reference, converted: Converted) -> int:
        if reference not in self._sizes:
            self._sizes[reference] = len(codec.encode(converted.schema, limits=codec.STORED))
        return self._sizes[reference]

    def _conversion(self, into: Converted, home: Reference | None) -> _Conversion:
        return _Conversion(self._document, self._direction, self._composer, into, home, files=self._files)


class _Conversion:
    """One walk through one schema."""

    def __init__(
        self,
        document: OpenApiDocument,
        direction: Direction,
        composer: Composer,
        into: Converted,
        home: Reference | None,
        *,
        files: bool,
    ) -> None:
        self._document, self._direction, self._composer = document, direction, composer
        self._into, self._home, self._files = into, home, files

    def value(self, schema: Json) -> Json:
        """Return the schema of a whole value, and not of a part of what is said of one: a request's is closed."""
        composition = self._composer.of(schema)
        written = self.of(schema, composition)
        if (
            self._direction is Direction.REQUEST
            and isinstance(written, dict)
            and not self._is_file(schema)
            and is_closed(self._document, schema, is_composed=composition.is_composed)
        ):
            written["unevaluatedProperties"] = False
        return written

    def of(self, schema: Json, composition: Composition | None = None) -> Json:
        """Return the schema as one part of a composition, or alone without a composition."""
        if not isinstance(schema, dict):
            # A list where a schema belongs is a mistake of the document; the validator refuses it with a reason.
            return schema
        if self._is_file(schema):
            file = {**FILE_SCHEMA, "description": schema.get("description", FILE_SCHEMA["description"])}
            return {"anyOf": [file, {"type": "null"}]} if _is_null_allowed(schema) else file
        composition = self._composer.of(schema) if composition is None else composition
        reference = self._reference(schema, composition)
        written = self._words(schema, composition) if reference is None else self._referring(schema, reference)
        is_nullable = schema.get("nullable") is True or any(map(_only_nullable, listed(schema, "allOf")))
        return _nullable(written) if is_nullable or _forgets_null(schema) else written

    def _is_file(self, schema: Json) -> bool:
        """Return whether a part of a form is the content of a file: bytes as OpenAPI 3.0 says it, or as 3.1 does."""
        if not self._files or not isinstance(schema, dict):
            return False
        if schema.keys() & {"contentEncoding", "contentSchema"}:
            return False  # text, which stands for bytes or for a value
        kinds = [each for each in types_of({"type": "string", **schema}) if each != "null"]
        is_bytes = schema.get("format") == "binary" or isinstance(schema.get("contentMediaType"), str)
        return is_bytes and kinds == ["string"]

    def _reference(self, schema: dict[str, Json], composition: Composition) -> Reference | None:
        if isinstance(schema.get("$ref"), str):
            target = self._document.at(schema["$ref"])
            around = self._composer.within(composition, target)
            return Reference(schema["$ref"], around)
        for word in ("$recursiveRef", "$dynamicRef"):
            if isinstance(schema.get(word), str):
                if self._home is None:
                    raise UnresolvedError(f"{word}: {schema[word]}", "stands outside the schemas of the components")
                return self._home
        return None

    def _referring(self, schema: dict[str, Json], reference: Reference) -> dict[str, Json]:
        self._into.references[reference] = None
        own = {key: value for key, value in schema.items() if key not in {"$ref", "$recursiveRef", "$dynamicRef"}}
        if self._document.is_3_0:
            own = {key: value for key, value in own.items() if key in _ANNOTATIONS}
        return {**self._words(own, self._composer.of(schema)), "$ref": f"#/$defs/{reference.name}"}

    def _words(self, schema: dict[str, Json], composition: Composition) -> dict[str, Json]:
        written: dict[str, Json] = {}
        told = _PLAIN if self._direction is Direction.REQUEST else _PLAIN - _ANNOTATIONS
        for word, value in schema.items():
            if word in told:
                written[word] = value
            elif word in _VALUES:
                if word != "additionalProperties" or value is not False or not composition.is_composed:
                    written[word] = self.value(value)
            elif word in _ONE:
                written[word] = self.of(value)
            elif isinstance(value, dict):
                self._add_named(word, value, written, composition)
            elif isinstance(value, list):
                self._addlisted(word, schema, written, composition)
        self._correct(schema, written, composition)
        return written

    def _correct(self, schema: dict[str, Json], written: dict[str, Json], composition: Composition) -> None:
        """Leave out or correct keywords, after all of them have been converted."""
        if isinstance(written.get("required"), list):
            unwanted = composition.optional | self._impossible(schema, written)
            written["required"] = [
                name for name in written["required"] if not isinstance(name, str) or name not in unwanted
            ]
        if isinstance(dependent := written.get("dependentRequired"), dict):
            written["dependentRequired"] = {
                name: [each for each in needed if not isinstance(each, str) or each not in composition.optional]
                if isinstance(needed, list)
                else needed
                for name, needed in dependent.items()
            }
        gone = len(schema.get("properties") or ()) - len(written.get("properties") or ())
        if gone and isinstance(written.get("minProperties"), int):
            written["minProperties"] = max(0, written["minProperties"] - gone)
        if written.get("allOf") == []:
            del written["allOf"]
        _mend(written)
        if "pattern" in written and not is_pattern(written["pattern"]):
            self._into.loosened[
                f"the pattern {written.pop('pattern')!r} is of another dialect, or too large, and is not checked"
            ] = None
        if self._direction is Direction.REQUEST:
            _take_example(schema, written)

    def _add_named(self, word: str, value: dict[str, Json], written: dict[str, Json], composition: Composition) -> None:
        """Schemas by the names or patterns of properties."""
        if word == "properties":
            written[word] = self._properties(value, composition)
        elif word in _MAP:
            written[word] = {name: self.of(each) for name, each in value.items()}

    def _addlisted(
        self, word: str, schema: dict[str, Json], written: dict[str, Json], composition: Composition
    ) -> None:
        """Schemas in a list: parts of the same value, branches of a choice, or items by their place."""
        if word == "allOf":
            parts = [self.of(each, composition) for each in schema[word] if not _only_nullable(each)]
            written[word] = [*written.get(word, []), *parts]
        elif word in BRANCHES and not self._composer.lists_a_kind(schema[word], composition):
            self._choose(word, schema, written, composition)
        elif word == "prefixItems":
            written[word] = [self.of(each) for each in schema[word]]

    def _impossible(self, schema: dict[str, Json], written: dict[str, Json]) -> set[str]:
        """Properties that an object requires, and that it neither names nor allows."""
        if written.get("additionalProperties") is not False or "patternProperties" in schema:
            return set()
        named = schema.get("properties")
        impossible = {
            name
            for name in written["required"]
            if isinstance(name, str) and (not isinstance(named, dict) or name not in named)
        }
        for name in sorted(impossible):
            self._into.loosened[f"the property {name} is required, but neither named nor allowed; it is not sent"] = (
                None
            )
        return impossible

    def _properties(self, properties: dict[str, Json], composition: Composition) -> dict[str, Json]:
        """Leave out of requests the properties that only the server sets, except those that a caller may give."""
        hidden = composition.optional - composition.kept if self._direction is Direction.REQUEST else frozenset()
        return {
            name: self.of(each) if name in composition.shared else self.value(each)
            for name, each in properties.items()
            if name not in hidden or not self._composer.hides(each)
        }

    def _choose(self, word: str, schema: dict[str, Json], written: dict[str, Json], composition: Composition) -> None:
        """Write a choice, each branch with the values of the discriminator that select it.

        `oneOf` becomes `anyOf` where its branches do not exclude each other, for then nothing would fit.
        """
        around, selected = composition.around_a_branch, selected_by(self._composer, schema, schema[word])
        is_request = self._direction is Direction.REQUEST
        branches = []
        for place, each in enumerate(schema[word]):
            branch = self.of(each, self._composer.of(each, around))
            if place in selected and isinstance(branch, dict):
                name = schema["discriminator"]["propertyName"]
                chosen: dict[str, Json] = {"properties": {name: {"enum": selected[place]}}}
                branch = {"allOf": [branch, {**chosen, "required": [name]} if is_request else chosen]}
            branches.append(branch)
        is_told_apart = is_request and len(selected) == len(branches)
        if word == "oneOf" and not is_told_apart and not exclude_each_other(self._composer, schema[word]):
            word = "anyOf"
        if word in written:
            written.setdefault("allOf", []).append({word: branches})
        else:
            written[word] = branches


def is_pattern(pattern: Json) -> bool:
    """Return whether values can be checked with this pattern. Documents have other dialects, or patterns too large."""
    if not isinstance(pattern, str):
        return False
    try:
        check_pattern(pattern)
    except ValueError:
        return False
    return True


def _mend(written: dict[str, Json]) -> None:
    """Translate keywords of OpenAPI 3.0, and correct mistakes with a clear meaning."""
    for exclusive, bound in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        # OpenAPI 3.0: `exclusiveMinimum: true` says how `minimum` is meant.
        if isinstance(written.get(exclusive), bool) and written.pop(exclusive) and bound in written:
            written[exclusive] = written.pop(bound)
    required = written.pop("required", None)
    if isinstance(required, list) and required:
        # Compared with `in`, since an entry need not be hashable. The check of the schema refuses such entries.
        written["required"] = [name for place, name in enumerate(required) if name not in required[:place]]
    for word in ("title", "description"):
        if word in written and not isinstance(written[word], str):
            del written[word]


def _take_example(schema: dict[str, Json], written: dict[str, Json]) -> None:
    """Keep a short example: it helps models to write arguments."""
    if "example" in schema and len(str(schema["example"])) <= EXAMPLE_MAX_CHARS:
        written["examples"] = [schema["example"]]


def _only_nullable(schema: Json) -> bool:
    """Return whether a part of `allOf` only allows null, which is meant for the whole."""
    if not isinstance(schema, dict) or schema.get("nullable") is not True:
        return False
    return not schema.keys() - _ANNOTATIONS - {"nullable"}


def _forgets_null(schema: dict[str, Json]) -> bool:
    """Return whether the type allows null and the values that are listed do not: null was added to the type alone."""
    kind, values = schema.get("type"), schema.get("enum")
    return isinstance(kind, list) and "null" in kind and isinstance(values, list) and None not in values


def _is_null_allowed(schema: dict[str, Json]) -> bool:
    return schema.get("nullable") is True or "null" in types_of(schema)


def _nullable(written: dict[str, Json]) -> dict[str, Json]:
    """Return the schema with null allowed. A composition becomes a branch, since its parts may refuse null."""
    kind = written.get("type")
    if kind is None and not written.keys() - _ANNOTATIONS:
        return written
    if kind is None or written.keys() & {"$ref", "allOf", "anyOf", "oneOf", "const", "not"}:
        said = {key: value for key, value in written.items() if key in _ANNOTATIONS}
        rest = {key: value for key, value in written.items() if key not in said}
        return {**said, "anyOf": [rest, {"type": "null"}]}
    kinds = types_of(written)
    nullable = {**written, "type": [*kinds, *(["null"] if "null" not in kinds else [])]}
    if isinstance(written.get("enum"), list) and None not in written["enum"]:
        nullable["enum"] = [*written["enum"], None]
    return nullable

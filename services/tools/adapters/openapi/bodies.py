"""The body of a request: which of its media types is sent, what its argument is, and how its fields are written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from triptych.schemas.base import Json
from triptych.tools.adapters.openapi.composition import Evidence
from triptych.tools.adapters.openapi.document import OpenApiDocument
from triptych.tools.adapters.openapi.examples import examples_of, names_that_are, objects_in
from triptych.tools.adapters.openapi.keywords import types_of
from triptych.tools.adapters.openapi.schemas import Direction, SchemaWriter
from triptych.tools.adapters.openapi.skip_reasons import SkipOperationError, SkipReason
from triptych.tools.adapters.rest import BodyForm, FieldEncoding, RequestBody, Style
from triptych.tools.http.errors import essence, is_json

JSON_PATCH: Final = "application/json-patch+json"
JSON_PATCH_SCHEMA: Final[dict[str, Json]] = {
    "type": "array",
    "items": {
        "type": "object",
        "required": ["op", "path"],
        "properties": {
            "op": {"enum": ["add", "remove", "replace", "move", "copy", "test"]},
            "path": {"type": "string"},
            "from": {"type": "string"},
            "value": {},
        },
    },
}
"""RFC 6902. Documents often describe the thing that is patched instead."""
_FORM: Final = "application/x-www-form-urlencoded"
_MULTIPART: Final = "multipart/form-data"
_OCTETS: Final = "application/octet-stream"
_LINES: Final = frozenset({"application/jsonl", "application/x-jsonl", "application/x-ndjson"})
"""JSON in lines is sent as the text that a caller gives."""
_BYTES: Final = (_OCTETS, "application/pdf", "application/zip", "application/gzip", "audio/", "image/", "video/")
_FORM_STYLES: Final = frozenset({Style.FORM, Style.SPACE_DELIMITED, Style.PIPE_DELIMITED, Style.DEEP_OBJECT})


@dataclass(frozen=True, slots=True)
class BodyArgument:
    """What is sent, and the schema of the argument that becomes it."""

    body: RequestBody
    schema: Json
    definitions: dict[str, Json]
    examples: tuple[tuple[str, Json], ...]
    """Values that the document shows for this media type."""
    notes: tuple[str, ...]


class BodyReader:
    """Reads the request bodies of a document."""

    def __init__(self, document: OpenApiDocument) -> None:
        self._document = document
        self._hidden: frozenset[str] | None = None
        self._writers: dict[tuple[bool, Evidence], SchemaWriter] = {}

    def read(self, content: dict[str, Json], chosen: str | None) -> BodyArgument:
        """`content` is that of the request body; `chosen` the media type that an option names.

        Raises:
            LeftOutError: no media type of it can be sent, or not the one that was chosen.
            UnresolvedError: a reference leads nowhere.
        """
        media_type, sent_as, form = _chosen(content, chosen)
        stated = content[media_type]
        inner: dict[str, Json] = stated if isinstance(stated, dict) else {}
        notes = []
        if chosen is None and (others := [each for each in content if each != media_type]):
            notes.append(f"the body is sent as {media_type}; {', '.join(others)} would do as well")
        shown = examples_of(self._document, inner) if form in {BodyForm.JSON, BodyForm.FORM} else []
        match form:
            case BodyForm.BINARY:
                schema: Json = {"type": "string", "contentEncoding": "base64"}
                definitions: dict[str, Json] = {}
            case BodyForm.TEXT:
                schema = {"type": "string", "contentEncoding": "base64"} if _is_base64(inner) else {"type": "string"}
                definitions = {}
            case _:
                writer = self._writer(form, [value for _, value in shown])
                converted = writer.convert(inner.get("schema", True))
                definitions = writer.definitions(converted)
                notes.extend(converted.loosened)
                schema = converted.schema
                if form is not BodyForm.JSON:
                    schema = {"type": "object", **schema} if isinstance(schema, dict) else {"type": "object"}
                elif essence(media_type) == JSON_PATCH and not _may_be_list(self._document, inner.get("schema")):
                    schema, definitions = JSON_PATCH_SCHEMA, {}
                    notes.append("its body is a JSON Patch, which is a list of operations; its schema says otherwise")
        body = RequestBody("body", form, sent_as, self._fields(inner, form))
        return BodyArgument(body, schema, definitions, tuple(shown), tuple(notes))

    def _writer(self, form: BodyForm, shown: list[Json]) -> SchemaWriter:
        """Return what translates the schema of a body whose examples show these values."""
        evidence: Evidence = frozenset()
        if shown:
            if self._hidden is None:
                self._hidden = names_that_are(self._document, Direction.REQUEST.value)
            evidence = frozenset(names for names in objects_in(shown) if names & self._hidden)
        key = (form is BodyForm.MULTIPART, evidence)
        if key not in self._writers:
            self._writers[key] = SchemaWriter(self._document, Direction.REQUEST, files=key[0], evidence=evidence)
        return self._writers[key]

    def _fields(self, inner: dict[str, Json], form: BodyForm) -> tuple[FieldEncoding, ...]:
        """Return how `encoding` wants fields of a form to be written.

        Raises:
            LeftOutError: it wants something that cannot be sent.
        """
        stated = inner.get("encoding")
        if form not in {BodyForm.FORM, BodyForm.MULTIPART} or not isinstance(stated, dict):
            return ()
        return tuple(_field(name, each, form) for name, each in stated.items() if isinstance(each, dict))


def _field(name: str, stated: dict[str, Json], form: BodyForm) -> FieldEncoding:
    headers = stated.get("headers")
    for header, meant in headers.items() if isinstance(headers, dict) else ():
        if isinstance(meant, dict) and meant.get("required") is True and header.lower() != "content-type":
            raise SkipOperationError(
                SkipReason.REQUEST_MEDIA_TYPE, f"the part {name} of its body needs a header {header}, which is not sent"
            )
    content_type = stated.get("contentType")
    single = content_type.strip() if isinstance(content_type, str) and not set(content_type) & {",", "*"} else None
    style = stated.get("style")
    if style is None and "explode" not in stated:
        return FieldEncoding(name, single)
    try:
        written = Style(str(style or Style.FORM.value))
    except ValueError:
        written = None
    if written not in _FORM_STYLES or written is None:
        raise SkipOperationError(SkipReason.REQUEST_MEDIA_TYPE, f"the field {name} of its body has the style {style!r}")
    explode = stated.get("explode", written is Style.FORM)
    # RFC 6570 styles are for forms; a part of multipart has the content type alone (OpenAPI 3.0.3).
    return FieldEncoding(name, single, None if form is BodyForm.MULTIPART else written, explode=explode is True)


def _chosen(content: dict[str, Json], chosen: str | None) -> tuple[str, str, BodyForm]:
    """Return the media type of the document, what is sent as Content-Type, and the form."""
    if chosen is not None:
        media_type = next((each for each in content if _takes(each, chosen)), None)
        form = None if media_type is None else _form_of(chosen, content[media_type])
        if media_type is None or form is None:
            known = ", ".join(content)
            raise SkipOperationError(
                SkipReason.REQUEST_MEDIA_TYPE, f"media_type: {chosen} cannot be sent; there is {known}"
            )
        return media_type, chosen, form
    for wanted in BodyForm:
        fitting = [each for each in content if _form_of(each, content[each]) is wanted]
        if fitting:
            # What is plain JSON comes first, and a JSON Patch last: it describes changes and no thing.
            media_type = min(fitting, key=_preference)
            return media_type, "application/json" if media_type.strip() == "*/*" else media_type, wanted
    hint = "; name one with operations.NAME.media_type" if any("*" in each for each in content) else ""
    raise SkipOperationError(SkipReason.REQUEST_MEDIA_TYPE, f"a body can only be sent as {', '.join(content)}{hint}")


def _preference(media_type: str) -> tuple[bool, bool]:
    kind = essence(media_type)
    return kind == JSON_PATCH, kind != "application/json"


def _form_of(media_type: str, stated: Json) -> BodyForm | None:
    """Return the form that a body of this media type has; None where it cannot be written."""
    kind = essence(media_type)
    if kind == "*/*" or is_json(kind):
        return BodyForm.JSON
    if kind in {_FORM, _MULTIPART}:
        return BodyForm.FORM if kind == _FORM else BodyForm.MULTIPART
    if "*" in kind:
        return None
    if kind.startswith("text/") or kind in _LINES or _is_base64(stated):
        return BodyForm.TEXT
    schema = stated.get("schema") if isinstance(stated, dict) else None
    is_bytes = isinstance(schema, dict) and schema.get("type") == "string" and schema.get("format") == "binary"
    return BodyForm.BINARY if is_bytes or kind.startswith(_BYTES) else None


def _is_base64(stated: Json) -> bool:
    """Return whether a body is the base64 of bytes, and not the bytes themselves."""
    schema = stated.get("schema") if isinstance(stated, dict) else None
    return isinstance(schema, dict) and (schema.get("format") == "byte" or schema.get("contentEncoding") == "base64")


def _takes(stated: str, chosen: str) -> bool:
    """Return whether a media type of the document is the chosen one, or a range that it is in."""
    kind, wanted = essence(stated), essence(chosen)
    return kind in {wanted, "*/*"} or (kind.endswith("/*") and wanted.startswith(kind[:-1]))


def _may_be_list(document: OpenApiDocument, schema: Json) -> bool:
    if not isinstance(schema, dict):
        return False
    whole = document.resolved(schema)
    return "array" in types_of(whole) or bool(whole.keys() & {"items", "oneOf", "anyOf"})

"""What an operation answers when it succeeds: which media type is asked for, and the JSON Schema of the data."""

from __future__ import annotations

from dataclasses import dataclass

from triptych.schemas.base import Json
from triptych.tools.adapters.openapi.document import OpenApiDocument, OperationEntry
from triptych.tools.adapters.openapi.schemas import Converted, Direction, SchemaWriter
from triptych.tools.adapters.openapi.skip_reasons import SkipOperationError, SkipReason
from triptych.tools.adapters.rest.response import BINARY_SCHEMA, NOTHING, is_text
from triptych.tools.http.errors import is_json

_NOTHING: dict[str, Json] = {"type": "null"}
_STREAMS = ("text/event-stream", "application/stream+json")


@dataclass(frozen=True, slots=True)
class ResultSpec:
    """A result schema, and what is asked for."""

    schema: dict[str, Json]
    accept: str
    notes: tuple[str, ...]


class ResultReader:
    """Reads the 2xx responses of operations."""

    def __init__(self, document: OpenApiDocument) -> None:
        self._document, self._writer = document, SchemaWriter(document, Direction.RESPONSE)

    def read(self, place: OperationEntry) -> ResultSpec:
        """Return the data of any success.

        Raises:
            LeftOutError: it only answers with a stream.
            UnresolvedError: a reference leads nowhere.
        """
        notes: list[str] = []
        accepted: dict[str, None] = {}
        needs = Converted(None)
        schemas: list[Json] = []
        for content in self._contents(place, notes):
            for media_type, stated in self._chosen(content, notes):
                accepted[media_type] = None
                if is_json(media_type):
                    converted = self._writer.convert(stated.get("schema", True))
                    needs.references |= converted.references
                    needs.loosened |= converted.loosened
                    schema = converted.schema
                else:
                    schema = {"type": "string"} if is_text(media_type) else BINARY_SCHEMA
                if schema not in schemas:
                    schemas.append(schema)
            if not content and _NOTHING not in schemas:
                schemas.append(_NOTHING)
        whole = self._whole(schemas, needs)
        return ResultSpec(whole, _accept(list(accepted)), (*notes, *needs.loosened))

    def _contents(self, place: OperationEntry, notes: list[str]) -> list[dict[str, Json]]:
        """Return the `content` of each response that means success; an empty one for those without."""
        responses = place.operation.get("responses")
        stated = responses if isinstance(responses, dict) else {}
        good = [response for status, response in stated.items() if str(status).startswith("2")]
        if not good:
            notes.append("the document does not say what a success looks like; any JSON is taken")
            return [{"application/json": {}}]
        contents = []
        for response in good:
            content = self._document.resolved(response).get("content")
            contents.append(content if isinstance(content, dict) else {})
        return contents

    def _chosen(self, content: dict[str, Json], notes: list[str]) -> list[tuple[str, dict[str, Json]]]:
        """Return the media types to ask for: JSON and text as they come, bytes only where there is nothing else."""
        usable = {
            media_type: stated if isinstance(stated, dict) else {}
            for media_type, stated in content.items()
            if not media_type.startswith(_STREAMS)
        }
        if content and not usable:
            raise SkipOperationError(SkipReason.STREAM, f"it only answers with a stream ({', '.join(content)})")
        chosen = [(each, usable[each]) for each in usable if is_json(each) or each == "*/*"]
        chosen += [(each, usable[each]) for each in usable if is_text(each)]
        chosen = chosen or [(each, usable[each]) for each in list(usable)[:1]]
        chosen = [("application/json" if each == "*/*" else each, stated) for each, stated in chosen]
        if ignored := [each for each in content if each not in dict(chosen) and each != "*/*"]:
            notes.append(f"of what it can answer, {', '.join(ignored)} is not asked for")
        return chosen

    def _whole(self, schemas: list[Json], needs: Converted) -> dict[str, Json]:
        only = schemas[0] if len(schemas) == 1 else {"anyOf": schemas}
        schema: dict[str, Json] = dict(only) if isinstance(only, dict) else {}
        if definitions := self._writer.definitions(needs):
            schema["$defs"] = definitions
        return schema


def _accept(accepted: list[str]) -> str:
    """Return the header: what comes first is preferred."""
    if not accepted:
        return NOTHING
    return ", ".join([accepted[0], *(f"{media_type};q=0.5" for media_type in accepted[1:])])

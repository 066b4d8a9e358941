"""JSON of what is written thousands of times a second, from dicts instead of models.

Models check what comes in. What goes out we have made ourselves: as dicts it costs a third, and says the same
(tests/unit/test_encoding.py). Pure.
"""

from __future__ import annotations

from collections.abc import Mapping

from triptych.kernel.values import value
from triptych.schemas import Authored, FixedPlan, Grant, Json, Message, Result, Spend, Step, codec


@value
class Fields:
    """The body of a message, by its fields. Those that say nothing are left out."""

    fields: Mapping[str, Json]

    def to_bytes(self) -> bytes:
        return encoded(self.fields)


def encoded(fields: Mapping[str, Json]) -> bytes:
    """Encode an object as JSON: times in UTC end in Z. Models write themselves.

    Raises:
        InvalidJson: a value cannot be written; the edge that let it in is wrong.
    """
    return codec.encode(fields, limits=codec.STORED, default=_model)


def given(**fields: Json) -> dict[str, Json]:
    """Leave out the fields that are None."""
    return {name: content for name, content in fields.items() if content is not None}


def grant(of: Grant) -> Mapping[str, Json]:
    """Encode a grant."""
    amounts = {"tokens": of.tokens, "usd_micros": of.usd_micros}
    return amounts | {"tool_calls": of.tool_calls} if of.tool_calls else amounts


def spend(of: Spend) -> Json:
    """Encode what was spent; most calls cost nothing."""
    if of.model_calls or of.tool_calls:
        return of
    return {"tokens": of.tokens, "usd_micros": of.usd_micros, "model_calls": ()}


def result(of: Result) -> Json:
    """Encode the result of a tool."""
    if of.error is not None or of.age_ms is not None or of.data is None or of.warnings:
        return of
    return {"status": of.status, "data": of.data}


def _model(content: object) -> bytes:
    match content:
        case Step() | FixedPlan():
            return content.encoded
        case Message() | Authored():
            return content.to_bytes()
    raise TypeError(type(content).__name__)

"""Fields of a playbook that are missing, unknown or of the wrong kind: what pydantic reports, with a cure."""

from __future__ import annotations

from functools import cache

from pydantic_core import ErrorDetails

from triptych.playbook.diagnostic import Diagnostic, did_you_mean, dotted
from triptych.schemas import Playbook


def field_diagnostics(details: list[ErrorDetails]) -> list[Diagnostic]:
    """List the mistakes, without what only follows from them: wrong items make no list too short."""
    places = [detail["loc"] for detail in details]
    return [
        _diagnostic(detail)
        for detail in details
        if detail["type"] != "too_short"
        or not any(place[: len(detail["loc"])] == detail["loc"] and place != detail["loc"] for place in places)
    ]


def _diagnostic(detail: ErrorDetails) -> Diagnostic:
    """Convert one of pydantic's errors, and add a cure."""
    place, context = tuple(detail["loc"]), detail.get("ctx", {})
    # An item has no name of its own; it is known by its list.
    named = next((at for at in range(len(place), 0, -1) if isinstance(place[at - 1], str)), 0)
    name = dotted(place[named - 1 :]) if named else "the playbook"
    match detail["type"]:
        case "missing":
            return Diagnostic(place, f"`{name}` is missing", f"Add `{name}`")
        case "extra_forbidden":
            cure = did_you_mean(name, _field_names()) or f"Remove `{name}`"
            return Diagnostic(place, f"`{name}` is not a field here", cure)
        case "union_tag_not_found" | "union_tag_invalid":
            cure = "Set `pattern` to `fixed` (with `steps`), `model`, `react` or `manager`"
            return Diagnostic(place, "it is not said who plans", cure)
        case "enum" | "literal_error":
            return Diagnostic(place, f"`{name}` has an unknown value", f"Use {context['expected']}")
        case "string_pattern_mismatch":
            return Diagnostic(
                place, f"`{name}` has characters that are not allowed", f"It must match {context['pattern']}"
            )
    return Diagnostic(place, f"`{name}`: {_lowered(detail['msg'])}", "Correct the value")


def _lowered(text: str) -> str:
    return text[:1].lower() + text[1:]


@cache
def _field_names() -> tuple[str, ...]:
    """List every field that a playbook can have at any depth."""
    schema = Playbook.model_json_schema()
    parts = [schema, *schema["$defs"].values()]
    return tuple(sorted({name for part in parts for name in part.get("properties", {})}))

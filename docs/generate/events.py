"""The reference of the journal's events, from `triptych.executor.events`."""

from __future__ import annotations

import dataclasses
import typing

from generate.markdown import default_of, docstring, member_texts, page, table
from generate.messages import linked_type
from triptych.executor import events as ev

INTRODUCTION = """\
The journal of a run is a list of these events. The view `executor.journal` shows them one by one: `type` is the name of
the event, and `data` has its fields as JSON. They are stored in `executor.journal_commits`, one row for each commit of
a run, with a line for each event. The state of the run is a fold over them
([fold.py](../../services/executor/fold.py)). `triptych trace RUN` tells them as a story.

A type is never renamed, and a new field has a default: journals live longer than code.\
"""


def render() -> str:
    """Return the page."""
    return page("Events of the journal", INTRODUCTION, *(_event(event) for event in typing.get_args(ev.Event)))


def _event(event: type) -> str:
    texts, hints = member_texts(event), typing.get_type_hints(event)
    rows = [
        [f"`{field.name}`", linked_type(hints[field.name], "messages.md"), _default(field), texts.get(field.name, "")]
        for field in dataclasses.fields(event)
    ]
    return f"## {event.__name__}\n\n{docstring(event)}\n\n{table(['field', 'type', 'default', ''], rows)}"


def _default(field: dataclasses.Field[object]) -> str:
    if field.default is not dataclasses.MISSING:
        return default_of(field.default)
    if field.default_factory is not dataclasses.MISSING:
        return default_of(field.default_factory())
    return "required"

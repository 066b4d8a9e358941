"""The reference of the topics and messages, from `triptych.schemas`."""

from __future__ import annotations

import enum
import re
import typing
from collections.abc import Iterator
from functools import cache
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from generate.markdown import default_of, docstring, member_texts, page, table, type_name
from triptych.schemas.topics import CATALOG, Topic

INTRODUCTION = """\
A topic is `PREFIX.NOUN`, for example `triptych.tasks`. A message is a CloudEvents 1.0 event in Kafka's binary mode:
headers `ce_*`, the run id as key, JSON as value. Only a task needs no headers and no key.

`triptych schemas export DIR` writes the same as JSON Schema and as AsyncAPI 3.0. Fields that are null are left out.
Services ignore fields that they do not know. What clients write (tasks and control commands) must not have any.\
"""

_NODES = {"one tool": "tools", "every worker": "workers", "every service": "services"}


def render() -> str:
    """Return the page."""
    models = list(dict.fromkeys(topic.message for topic in CATALOG))
    parts = [part for part in _documented() if part not in models]
    return page(
        "Topics and messages",
        INTRODUCTION,
        "## The topics",
        _diagram(),
        table(
            ["topic", "message", "type", "from", "to", ""],
            [
                [
                    f"`{topic.noun}`",
                    _link(topic.message),
                    f"`{topic.event_type}`",
                    topic.producer,
                    topic.consumer,
                    _about(topic),
                ]
                for topic in CATALOG
            ],
        ),
        "## The messages",
        *(_model(model) for model in models),
        "## Their parts",
        *(_model(part) for part in parts),
    )


def _about(topic: Topic) -> str:
    noun = topic.description + (" The topic is compacted." if topic.compacted else "")
    return noun.replace("calls.<tool>", "`calls.TOOL`")


def _diagram() -> str:
    """Draw who writes each topic and who reads it."""
    arrows: dict[tuple[str, str], list[str]] = {}
    for topic in CATALOG:
        for consumer in topic.consumer.split(", "):
            ends = _NODES.get(topic.producer, topic.producer), _NODES.get(consumer, consumer)
            arrows.setdefault(ends, []).append(f"{topic.noun}.TOOL" if topic.noun == "calls" else topic.noun)
    lines = [f'    {start} -- "{" · ".join(nouns)}" --> {end}' for (start, end), nouns in arrows.items()]
    return "\n".join(["```mermaid", "flowchart LR", *lines, "```"])


def _model(model: type[Any]) -> str:
    heading = f"### {model.__name__}\n\n{docstring(model)}".strip()
    if issubclass(model, enum.Enum):
        texts = member_texts(model)
        rows = [[f"`{member.value}`", texts.get(member.name, "")] for member in model]
        return f"{heading}\n\n{table(['value', ''], rows)}"
    return f"{heading}\n\n{fields_table(model)}" if model.model_fields else heading


def fields_table(model: type[BaseModel], base: str = "") -> str:
    """Return the table of a model's fields. `base` is the page of the messages, seen from another one."""
    texts = member_texts(model)
    rows = [
        [f"`{name}`", linked_type(field.annotation, base), _default(field), field.description or texts.get(name, "")]
        for name, field in model.model_fields.items()
    ]
    return table(["field", "type", "default", ""], rows)


def linked_type(annotation: Any, base: str = "") -> str:
    """Return a type with a link to each model in it. `base` is the page of the messages, seen from another one."""
    parts = {part.__name__: part for part in _described(annotation) if part in _documented()}
    return re.sub(
        r"\b[A-Z]\w+\b",
        lambda name: _link(parts[name[0]], base) if name[0] in parts else name[0],
        type_name(annotation),
    )


@cache
def _documented() -> tuple[type[Any], ...]:
    """Return the messages, and after them the models and enumerations inside them."""
    models = list(dict.fromkeys(topic.message for topic in CATALOG))
    return tuple(
        dict.fromkeys(
            [*models, *sorted((part for model in models for part in _parts(model)), key=lambda part: part.__name__)]
        )
    )


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    return "made for each" if field.default is PydanticUndefined else default_of(field.default)


def _link(model: type[Any], base: str = "") -> str:
    return f"[{model.__name__}]({base}#{model.__name__.lower()})"


def _parts(model: type[Any]) -> Iterator[type[Any]]:
    """Find the models and enumerations inside a model, at any depth."""
    seen: set[type[Any]] = set()
    todo = [model]
    while todo:
        for field in getattr(todo.pop(), "model_fields", {}).values():
            for part in _described(field.annotation):
                if part not in seen:
                    seen.add(part)
                    todo.append(part)
                    yield part


def _described(annotation: Any) -> Iterator[type[Any]]:
    """Find the models and enumerations in a type."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel | enum.Enum):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from _described(argument)

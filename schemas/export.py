"""The wire contract for other languages: JSON Schema of every message, and one AsyncAPI 3.0 document.

Both are computed from the models and `topics.CATALOG`, so they cannot say anything else than the code.
Nothing here writes files.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from triptych.schemas import topics as t
from triptych.schemas.contract import Contract
from triptych.schemas.playbook import Playbook

Schema = dict[str, Any]

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_DESCRIBED: tuple[type[BaseModel], ...] = (*dict.fromkeys(topic.message for topic in t.CATALOG), Playbook, Contract)
"""What has a file of its own. Everything else is described where it is used."""

_CLIENT_SIDE = (t.TASKS,)
"""Topics on which anybody publishes, with any key and with or without CloudEvents headers."""


def json_schemas() -> dict[str, Schema]:
    """Return, by model name, a JSON Schema without references to others."""
    return {model.__name__: {"$schema": _DIALECT, **model.model_json_schema()} for model in _DESCRIBED}


def asyncapi(version: str) -> Schema:
    """Return the AsyncAPI 3.0 document of all topics; `version` is that of the package that publishes it."""
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Triptych",
            "version": version,
            "description": "Publish a task, consume its outcome. The other topics are the pipeline in between.",
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "servers": {
            "kafka": {
                "host": "{bootstrap}",
                "protocol": "kafka",
                "variables": {"bootstrap": {"default": "127.0.0.1:9092", "description": "Bootstrap server."}},
            }
        },
        "channels": {_channel_name(topic): _channel(topic) for topic in t.CATALOG},
        "operations": {name: operation for topic in t.CATALOG for name, operation in _operations(topic)},
        "components": {
            "messages": {topic.message.__name__: _message(topic) for topic in t.CATALOG},
            "schemas": _component_schemas(),
        },
    }


def _channel_name(topic: t.Topic) -> str:
    return topic.noun


def _channel(topic: t.Topic) -> Schema:
    is_call = topic.noun == t.CALLS
    parameters: Schema = {"prefix": {"default": "triptych", "description": "The stack's topic prefix."}}
    if is_call:
        parameters["tool"] = {"description": "The tool that is asked, for example `helpdesk`."}
    policy = "compact" if topic.compacted else "delete"
    return {
        "address": f"{{prefix}}.{topic.noun}{'.{tool}' if is_call else ''}",
        "title": topic.noun,
        "description": f"{topic.description} From {topic.producer} to {topic.consumer}.",
        "servers": [{"$ref": "#/servers/kafka"}],
        "parameters": parameters,
        "messages": {topic.message.__name__: {"$ref": f"#/components/messages/{topic.message.__name__}"}},
        "bindings": {"kafka": {"topicConfiguration": {"cleanup.policy": [policy]}, "bindingVersion": "0.5.0"}},
    }


def _operations(topic: t.Topic) -> list[tuple[str, Schema]]:
    """Describe both ends of a topic, each named after what happens there."""
    channel = f"#/channels/{_channel_name(topic)}"
    message = [{"$ref": f"{channel}/messages/{topic.message.__name__}"}]
    ends = (("send", topic.producer), ("receive", topic.consumer))
    return [
        (
            f"{action}-{topic.noun}",
            {"action": action, "channel": {"$ref": channel}, "title": f"{who}: {action}", "messages": message},
        )
        for action, who in ends
    ]


def _message(topic: t.Topic) -> Schema:
    name = topic.message.__name__
    return {
        "name": topic.event_type,
        "title": name,
        "summary": topic.description,
        "contentType": "application/json",
        "headers": _headers(topic),
        "payload": {"$ref": f"#/components/schemas/{name}"},
        "bindings": {"kafka": {"key": {"type": "string", "description": _key(topic)}, "bindingVersion": "0.5.0"}},
    }


def _key(topic: t.Topic) -> str:
    match topic.noun:
        case t.TASKS:
            return "Any key, or none: the run gets a partition of its own choosing."
        case t.CONTRACTS:
            return "The tool's name."
        case t.DEAD_LETTERS:
            return "Where the record stood."
    return "The run id."


def _headers(topic: t.Topic) -> Schema:
    """CloudEvents 1.0 in Kafka's binary mode."""
    text: Schema = {"type": "string"}
    headers: Schema = {
        "type": "object",
        "description": "CloudEvents 1.0, binary mode.",
        "properties": {
            "ce_specversion": {"type": "string", "const": "1.0"},
            "ce_id": {**text, "description": "Deterministic, so that a repeat is recognisable."},
            "ce_type": {"type": "string", "const": topic.event_type},
            "ce_source": {**text, "description": "Who sent it."},
            "ce_tenant": {**text, "description": "The tenant that the message belongs to."},
            "ce_dataref": {**text, "description": "`claim:<run id>/<sha256>`: the body lies in the database."},
            "content-type": {"type": "string", "const": "application/json"},
            "traceparent": {**text, "description": "W3C Trace Context."},
        },
    }
    if topic.noun not in _CLIENT_SIDE:
        headers["required"] = ["ce_specversion", "ce_id", "ce_type", "ce_source"]
    return headers


def _component_schemas() -> Schema:
    """Return every model that a message uses, once."""
    models = [(topic.message, "validation") for topic in t.CATALOG]
    _refs, schema = models_json_schema(models, ref_template="#/components/schemas/{model}")  # type: ignore[arg-type]
    definitions: Schema = schema["$defs"]
    return {name: _in_asyncapi(definition) for name, definition in definitions.items()}


def _in_asyncapi(node: Any) -> Any:
    """Return a schema in the form of AsyncAPI: a discriminator is the name of a property there, as in OpenAPI 2."""
    if isinstance(node, dict):
        return {
            key: value["propertyName"] if key == "discriminator" and "propertyName" in value else _in_asyncapi(value)
            for key, value in node.items()
        }
    return [_in_asyncapi(item) for item in node] if isinstance(node, list) else node

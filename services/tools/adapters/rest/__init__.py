"""Calls over HTTP that are declared and not programmed: how arguments become a request, and an answer data.

Whether the declaration comes from an OpenAPI document or from a table of options is not its business.
"""

from triptych.tools.adapters.rest.auth import Auth, authentication
from triptych.tools.adapters.rest.declared import (
    CallbackOption,
    KeyOption,
    LookupOption,
    Success,
    completion_of,
    lookup_of,
)
from triptych.tools.adapters.rest.endpoint import (
    Body,
    BodyForm,
    Endpoint,
    FieldWriting,
    KeyCarrier,
    KeyPlace,
    Parameter,
    Place,
    Style,
)
from triptych.tools.adapters.rest.engine import Connection, Engine, Lookup, Upstream

__all__ = [
    "Auth",
    "Body",
    "BodyForm",
    "CallbackOption",
    "Connection",
    "Endpoint",
    "Engine",
    "FieldWriting",
    "KeyCarrier",
    "KeyOption",
    "KeyPlace",
    "Lookup",
    "LookupOption",
    "Parameter",
    "Place",
    "Style",
    "Success",
    "Upstream",
    "authentication",
    "completion_of",
    "lookup_of",
]

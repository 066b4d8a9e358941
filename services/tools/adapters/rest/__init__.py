"""Calls over HTTP that are declared and not programmed: how arguments become a request, and an answer data.

Whether the declaration comes from an OpenAPI document or from a table of options is not its business.
"""

from triptych.tools.adapters.rest.auth import Auth, authentication
from triptych.tools.adapters.rest.endpoint import (
    BodyForm,
    Endpoint,
    FieldEncoding,
    KeyCarrier,
    KeyLocation,
    Parameter,
    ParameterLocation,
    RequestBody,
    Style,
)
from triptych.tools.adapters.rest.operations import HttpOperations, Lookup, Upstream, UpstreamOptions
from triptych.tools.adapters.rest.write_options import (
    CallbackOption,
    KeyOption,
    LookupOption,
    Success,
    completion_from,
    lookup_from,
)

__all__ = [
    "Auth",
    "BodyForm",
    "CallbackOption",
    "Endpoint",
    "FieldEncoding",
    "HttpOperations",
    "KeyCarrier",
    "KeyLocation",
    "KeyOption",
    "Lookup",
    "LookupOption",
    "Parameter",
    "ParameterLocation",
    "RequestBody",
    "Style",
    "Success",
    "Upstream",
    "UpstreamOptions",
    "authentication",
    "completion_from",
    "lookup_from",
]

"""What stands under `options` of a tool that is made from an OpenAPI document."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from triptych.schemas.base import Json
from triptych.schemas.contract import BusinessKey, Effect, Reading
from triptych.tools.adapters.rest import KeyOption, LookupOption, Success, UpstreamOptions
from triptych.tools.sdk.source import Options

_TimeoutMs = Annotated[int, Field(gt=0, le=600_000)]


class OperationOptions(Options):
    """What the document does not say of one operation, or says wrongly."""

    effect: Effect | None = None
    timeout_ms: _TimeoutMs | None = None
    key: KeyOption | None = None
    lookup: LookupOption | None = None
    business_key: BusinessKey | None = None
    """The key that makes two of its writes the same, also of different runs."""
    success: Success | None = None
    """CEL over `body`: true when it worked, for an API that answers 200 to failures too."""
    result: Reading = Reading.LENIENT
    """How to take an answer that differs from the document: as data with warnings, or as a failure (`strict`)."""
    media_type: str | None = None
    """As what the body is sent, where the document names several, or a range such as `image/*`."""
    empty_at: str | None = None
    """Where in the data (dotted) the list stands whose emptiness means that nothing was found."""


class OpenApiOptions(UpstreamOptions):
    """The whole table."""

    spec: str
    """The document, relative to triptych.toml: a copy, so that nothing depends on an address when a tool starts."""
    source: str | None = None
    """Where the document came from, to fetch it again."""
    include: tuple[str, ...] = ()
    """Only these operations: their name, their operationId, or `METHOD /path`; `*` stands for anything."""
    exclude: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    """Only operations with one of these tags."""
    set: dict[str, Json] = Field(default_factory=dict)
    """Parameters that are always sent with this value, and are not arguments."""
    idempotency_header: str | None = None
    """The header in which every POST and PATCH sends its key; that makes them idempotent."""
    timeout_ms: _TimeoutMs = 10_000
    operations: dict[str, OperationOptions] = Field(default_factory=dict)

"""The reasons why an operation of a document is skipped."""

from __future__ import annotations

from enum import StrEnum


class SkipReason(StrEnum):
    """The reasons, as reports give them."""

    NOT_SELECTED = "not_selected"
    METHOD = "method"
    """HEAD, OPTIONS and TRACE answer nothing that could be data."""
    STREAM = "stream"
    """Its only answer is a stream, which has no end that could be waited for."""
    REQUEST_MEDIA_TYPE = "request_media_type"
    PARAMETER = "parameter"
    REFERENCE = "reference"
    """Something it refers to is not in the document."""
    SCHEMA = "schema"
    """A schema of it is not valid."""
    ADDRESS = "address"
    """The document does not say where its server is."""
    TOO_LARGE = "too_large"
    UNREADABLE = "unreadable"
    """It is not what OpenAPI has in its place."""


class SkipOperationError(Exception):
    """This operation is not offered by the tool."""

    def __init__(self, reason: SkipReason, why: str) -> None:
        self.reason, self.why = reason, why
        super().__init__(f"{reason}: {why}")

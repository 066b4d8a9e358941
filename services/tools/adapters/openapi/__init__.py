"""The adapter for APIs that describe themselves with an OpenAPI 3.0 or 3.1 document."""

from triptych.tools.adapters.openapi.tool import tool

__all__ = ["tool"]

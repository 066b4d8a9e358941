"""The model adapter: questions to a language model as operations of a tool."""

from triptych.tools.adapters.model.tool import tool

__all__ = ["tool"]

"""The knowledge base adapter: searches documents by words and by meaning, with a score that means something."""

from triptych.tools.adapters.kb.tool import tool

__all__ = ["tool"]

"""Calls to language models: one attempt, within a grant, with a structured answer or a named failure.

Used by the planner, the critic and the tool `model`. Nothing here retries, falls back, or keeps a
conversation: each prompt is built anew, and what follows from a failure is the executor's decision.
"""

from triptych.kernel.models.budget import remaining, total
from triptych.kernel.models.client import ModelClient, ModelReply
from triptych.kernel.models.failure import ModelFailure
from triptych.kernel.models.prompts import load_prompt
from triptych.kernel.models.settings import ModelSettings

__all__ = ["ModelClient", "ModelFailure", "ModelReply", "ModelSettings", "load_prompt", "remaining", "total"]

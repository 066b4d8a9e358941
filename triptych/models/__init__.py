"""Calls to language models: one question, within a grant, with a structured answer or a named failure.

Used by the planner, the critic and the tool `model`. If a model does not respond, the next of its tier is asked.
Nothing here asks the same model twice or keeps a conversation: each prompt is built from scratch. The executor decides
what follows from a failure.
"""

from triptych.models.budget import remaining, total
from triptych.models.client import Memo, ModelClient, ModelReply
from triptych.models.failure import ModelFailure
from triptych.models.form import AnswerFault
from triptych.models.memory import WorkingMemory
from triptych.models.prompts import load_prompt
from triptych.models.settings import ModelSettings
from triptych.models.tokens import estimated_tokens

__all__ = [
    "AnswerFault",
    "Memo",
    "ModelClient",
    "ModelFailure",
    "ModelReply",
    "ModelSettings",
    "WorkingMemory",
    "estimated_tokens",
    "load_prompt",
    "remaining",
    "total",
]

"""CEL expressions, and the `${{ expression }}` templates built from them.

Expressions come from playbooks and from models, so they are checked before a run and bounded while
it runs. Nothing here reads a clock, does I/O or calls `eval`.

Numbers have one kind, as in JSON, and arithmetic on them is our own. A literal `${{` is written `${{ "${{" }}`.
"""

from triptych.playbook.expressions.budget import metered
from triptych.playbook.expressions.error import ExpressionError
from triptych.playbook.expressions.paths import ANSWER, BRANCH, FEEDBACK, VARIABLES, Read, operands, reads
from triptych.playbook.expressions.program import FUNCTIONS, Scope, check, evaluate, holds, references_of
from triptych.playbook.expressions.templates import (
    expressions,
    has_templates,
    is_reference,
    references,
    refuse_volume,
    render,
)
from triptych.playbook.expressions.tokens import OPEN

__all__ = [
    "ANSWER",
    "BRANCH",
    "FEEDBACK",
    "FUNCTIONS",
    "OPEN",
    "VARIABLES",
    "ExpressionError",
    "Read",
    "Scope",
    "check",
    "evaluate",
    "expressions",
    "has_templates",
    "holds",
    "is_reference",
    "metered",
    "operands",
    "reads",
    "references",
    "references_of",
    "refuse_volume",
    "render",
]

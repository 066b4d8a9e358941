"""Read plans. All plans of a fixed playbook are equal, and to read a plan costs more than to read anything else.

So the bytes of a valid plan are kept, and the same bytes give the same object. It is checked once, and its JSON for
the journal is made once. The rest of the answer is read every time.
"""

from __future__ import annotations

from collections import OrderedDict

from pydantic import ValidationError

from triptych.schemas import Plan, PlanAnswer, codec
from triptych.schemas.codec import InvalidJson

MAX_KNOWN = 256
_PLAN = b'"plan":'
_NO_PLAN = b'"plan":null}'


class PlanReader:
    """Reads answers of the planner."""

    def __init__(self) -> None:
        self._known: OrderedDict[bytes, Plan] = OrderedDict()
        """By what follows the key `plan` to the end of the answer."""

    def read(self, body: bytes) -> PlanAnswer:
        """Read an answer. Raises InvalidJson and pydantic's ValidationError."""
        before, _, rest = body.partition(_PLAN)
        if (plan := self._known.get(rest)) is not None:
            self._known.move_to_end(rest)
            try:
                return codec.read(PlanAnswer, before + _NO_PLAN, limits=codec.ANSWER).model_copy(update={"plan": plan})
            except (
                InvalidJson,
                ValidationError,
            ):  # `plan` is not a key of the answer itself here: what it is, its whole says
                return codec.read(PlanAnswer, body, limits=codec.ANSWER)
        answer = codec.read(PlanAnswer, body, limits=codec.ANSWER)
        if answer.plan is not None and _ends_with_plan(before, answer):
            self._known[rest] = answer.plan
            while len(self._known) > MAX_KNOWN:
                self._known.popitem(last=False)
        return answer


def _ends_with_plan(before: bytes, answer: PlanAnswer) -> bool:
    """Return whether the plan is the last part of the answer."""
    try:
        alone = codec.read(PlanAnswer, before + _NO_PLAN, limits=codec.ANSWER)
    except (InvalidJson, ValidationError):
        return False
    return alone.model_copy(update={"plan": answer.plan}) == answer

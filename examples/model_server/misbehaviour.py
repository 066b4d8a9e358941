"""What a text can make the model do wrong: a marker in the input, for the demo and the tests.

`[[model:refuse]]` concerns every task, `[[model:draft:refuse]]` only that one. Markers that end in
`-once` strike once for each distinct input of a task, so that a repair or a retry meets a model that
has come to its senses.
"""

from __future__ import annotations

import hashlib
import json
import re
from enum import StrEnum

from triptych.examples.model_server.prompt import Prompt

MARKER = re.compile(r"\s*\[\[model:(?:(?P<task>[a-z]+):)?(?P<what>[a-z0-9-]+)\]\]")


class Misbehaviour(StrEnum):
    INVALID_JSON_ONCE = "invalid-json-once"
    INVALID_JSON = "invalid-json"
    WRONG_TYPES = "wrong-types"
    """Every field is there, and none has the type that was asked for."""
    INVENTED_TOOL = "invented-tool"
    """The answer is a call of a tool that was not offered."""
    INVENTED_OPERATION = "invented-operation"
    """A plan has a step with an operation that is not among those on offer."""
    INVENTED_ID = "invented-id"
    """A plan has an id of its own making where the input has one."""
    LOOP = "loop"
    """The same over and over, until it is cut off."""
    ERROR_ONCE = "500-once"
    TRUNCATE = "truncate"
    REFUSE = "refuse"
    SLOW = "slow"


class Temper:
    """Which markers have struck. It lives in memory, as long as the server."""

    def __init__(self) -> None:
        self._struck: set[str] = set()

    def provoked(self, prompt: Prompt) -> Misbehaviour | None:
        """Return the misbehaviour this prompt provokes now, if any."""
        material = json.dumps(prompt.input, sort_keys=True)
        for marker in MARKER.finditer(material):
            if marker["task"] in (None, prompt.task) and marker["what"] in set(Misbehaviour):
                what = Misbehaviour(marker["what"])
                if not what.endswith("-once") or self._first_time(f"{prompt.task} {what} {material}"):
                    return what
        return None

    def _first_time(self, occasion: str) -> bool:
        digest = hashlib.sha256(occasion.encode()).hexdigest()
        first = digest not in self._struck
        self._struck.add(digest)
        return first


def without_markers(text: str) -> str:
    """Return the text as the rules should read it."""
    return MARKER.sub("", text)

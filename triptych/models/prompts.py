"""Prompts: small text files in the package that uses them, and the frame that every call shares.

The system message holds what we say; the user message is one JSON object and holds what anyone else
said. Nothing from a task, a tool or an earlier model call may get into the system message.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files

from triptych.schemas import Json, codec


def load_prompt(package: str, name: str) -> str:
    """Return the text of `prompts/<name>.txt` in `package`."""
    return files(package).joinpath("prompts", f"{name}.txt").read_text("utf-8").strip()


def system_message(kind: str, frame: str, instructions: str) -> str:
    """Write the part of the operator: the kind of task on the first line, the frame, then the task's instructions."""
    return "\n\n".join(part for part in (f"TASK: {kind}", frame, instructions.strip()) if part)


def user_message(payload: Mapping[str, Json], constraints: Sequence[str]) -> str:
    """Write what others said, as one JSON object, with the constraints at its end, next to the newest input."""
    return codec.encode_text({**payload, "constraints": list(constraints)})

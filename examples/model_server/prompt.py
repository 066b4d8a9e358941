"""What a chat completion request asks for: the task, its material, and the form of the answer.

The runtime names the task in the system prompt (`TASK: draft`) and gives the material as one JSON
object in the first user message.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

TASK = re.compile(r"^TASK:\s*(\w+)\s*$", re.MULTILINE)


class TaskKind(StrEnum):
    CLASSIFY = "classify"
    DRAFT = "draft"
    PLAN = "plan"
    JUDGE = "judge"
    ANSWER = "answer"


class PromptError(Exception):
    """The request cannot be answered; `param` is the part of it that has to change."""

    def __init__(self, message: str, param: str) -> None:
        super().__init__(message)
        self.param = param


class ChatMessage(BaseModel):
    model_config = ConfigDict(extra="ignore")

    role: str
    content: str | list[dict[str, Any]] | None = None

    @property
    def text(self) -> str:
        """The content as text; of a list of parts, the text parts."""
        if isinstance(self.content, list):
            return "\n".join(str(part.get("text", "")) for part in self.content)
        return self.content or ""


class Function(BaseModel):
    model_config = ConfigDict(extra="ignore")

    name: str
    parameters: dict[str, Any] = {}


class OfferedTool(BaseModel):
    model_config = ConfigDict(extra="ignore")

    function: Function


class ChatRequest(BaseModel):
    """The part of OpenAI's chat completion request that this model reads."""

    model_config = ConfigDict(extra="ignore")

    model: str
    messages: list[ChatMessage] = Field(min_length=1)
    tools: list[OfferedTool] = []
    tool_choice: str | dict[str, Any] = "auto"
    response_format: dict[str, Any] | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    stream: bool | None = False


@dataclass(frozen=True, slots=True)
class Prompt:
    """A request, understood."""

    task: TaskKind
    material: dict[str, Any]
    text: str
    tool: Function | None
    schema: dict[str, Any] | None
    max_tokens: int | None

    @property
    def input(self) -> dict[str, Any]:
        """What the task is about. Where nothing is called `input`, the whole material is."""
        found = self.material.get("input", self.material)
        return found if isinstance(found, dict) else {"text": found}


def understand(request: ChatRequest) -> Prompt:
    """Read the task, its material and the wanted form out of a request. Raises PromptError."""
    if request.stream:
        raise PromptError("This model does not stream; send 'stream': false.", "stream")
    system = "\n".join(message.text for message in request.messages if message.role in ("system", "developer"))
    user = next((message.text for message in request.messages if message.role == "user"), "")
    named = TASK.search(system)
    if named is None or named[1] not in set(TaskKind):
        raise PromptError(f"The system prompt needs a line 'TASK: {'|'.join(TaskKind)}'.", "messages")
    try:
        material = json.loads(user)
    except ValueError as error:
        raise PromptError(f"The first user message is not JSON: {error}.", "messages") from error
    if not isinstance(material, dict):
        raise PromptError("The first user message must be one JSON object.", "messages")
    tool = _chosen(request)
    return Prompt(
        task=TaskKind(named[1]),
        material=material,
        text="\n".join(message.text for message in request.messages),
        tool=tool,
        schema=tool.parameters if tool else _native_schema(request),
        max_tokens=request.max_completion_tokens or request.max_tokens,
    )


def _chosen(request: ChatRequest) -> Function | None:
    """Choose the tool that carries the answer: the one the client names, else the first."""
    if not request.tools or request.tool_choice == "none":
        return None
    if isinstance(request.tool_choice, dict):
        name = request.tool_choice.get("function", {}).get("name")
        for tool in request.tools:
            if tool.function.name == name:
                return tool.function
    return request.tools[0].function


def _native_schema(request: ChatRequest) -> dict[str, Any] | None:
    wanted = request.response_format or {}
    if wanted.get("type") != "json_schema":
        return None
    schema = wanted.get("json_schema", {}).get("schema")
    return schema if isinstance(schema, dict) else None

"""How each provider's API asks and answers: OpenAI and compatible APIs, Anthropic, Google, Bedrock, Azure.

Each request is read as the chat completion request that it amounts to, and each answer is written in
the provider's own words. Only the part of each API that a client with one tool uses is spoken.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from triptych.examples.model_server.prompt import Prompt

CHARACTERS_A_TOKEN = 4

Body = dict[str, Any]


class Finish(StrEnum):
    """Why the model stopped."""

    STOP = "stop"
    CUT = "cut"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Reply:
    """What the model says, before it is put into a provider's words."""

    said: str
    prompt: Prompt
    model: str
    finish: Finish = Finish.STOP
    calls: str | None = None
    """A tool that the request did not offer."""

    @property
    def identity(self) -> str:
        """The same for the same question to the same model."""
        return hashlib.sha256(f"{self.model}\n{self.prompt.text}".encode()).hexdigest()[:24]

    @property
    def tool(self) -> str | None:
        """The tool that carries the answer; a refusal is said in text."""
        if self.prompt.tool is None or self.finish is Finish.REFUSED:
            return None
        return self.calls or self.prompt.tool.name

    @property
    def arguments(self) -> Any:
        """Return what is said as the value that some APIs want. Text that is not JSON stays a text."""
        try:
            return json.loads(self.said)
        except ValueError:
            return {"text": self.said}

    @property
    def tokens_in(self) -> int:
        return _tokens(self.prompt.text + json.dumps(self.prompt.schema))

    @property
    def tokens_out(self) -> int:
        return _tokens(self.said)

    def within_its_limit(self) -> Reply:
        """Cut the reply to the question's limit."""
        limit = self.prompt.max_tokens
        if limit is None or self.tokens_out <= limit:
            return self
        return replace(self, said=self.said[: limit * CHARACTERS_A_TOKEN], finish=Finish.CUT)


@dataclass(frozen=True, slots=True)
class Dialect:
    """One API: where it is, how it asks and how it answers."""

    name: str
    path: str
    read: Callable[[Body, Mapping[str, str]], Body]
    write: Callable[[Reply], Body]
    is_ours: bool = False
    """Whether only the models that are listed can be asked; behind the other APIs any name will do."""


def _tokens(text: str) -> int:
    return -(-len(text) // CHARACTERS_A_TOKEN)


# --- OpenAI, Azure and everyone compatible ----------------------------------------------------------


def _read_openai(body: Body, path: Mapping[str, str]) -> Body:
    return body | ({"model": path["model"]} if "model" in path else {})


def _write_openai(reply: Reply) -> Body:
    message: Body = {"role": "assistant", "content": reply.said, "refusal": None}
    finish = {Finish.STOP: "stop", Finish.CUT: "length", Finish.REFUSED: "stop"}[reply.finish]
    if reply.finish is Finish.REFUSED:
        message |= {"content": None, "refusal": reply.said}
    elif reply.tool is not None:
        function = {"name": reply.tool, "arguments": reply.said}
        call = {"id": f"call_{reply.identity}", "type": "function", "function": function}
        message |= {"content": None, "tool_calls": [call]}
        finish = "tool_calls" if reply.finish is Finish.STOP else finish
    return {
        "id": f"chatcmpl-{reply.identity}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": reply.model,
        "choices": [{"index": 0, "message": message, "finish_reason": finish, "logprobs": None}],
        "usage": {
            "prompt_tokens": reply.tokens_in,
            "completion_tokens": reply.tokens_out,
            "total_tokens": reply.tokens_in + reply.tokens_out,
        },
    }


# --- Anthropic --------------------------------------------------------------------------------------


def _read_anthropic(body: Body, _path: Mapping[str, str]) -> Body:
    system = body.get("system", "")
    return {
        "model": body["model"],
        "messages": [{"role": "system", "content": system}, *body["messages"]],
        "tools": [_function(tool["name"], tool["input_schema"]) for tool in body.get("tools", ())],
        "max_tokens": body["max_tokens"],
    }


def _write_anthropic(reply: Reply) -> Body:
    content: Body = {"type": "text", "text": reply.said}
    if reply.tool is not None:
        content = {
            "type": "tool_use", "id": f"toolu_{reply.identity}", "name": reply.tool, "input": reply.arguments
        }  # fmt: skip
    stop = {Finish.STOP: "tool_use" if reply.tool else "end_turn", Finish.CUT: "max_tokens", Finish.REFUSED: "refusal"}
    return {
        "id": f"msg_{reply.identity}",
        "type": "message",
        "role": "assistant",
        "model": reply.model,
        "content": [content],
        "stop_reason": stop[reply.finish],
        "stop_sequence": None,
        "usage": {
            "input_tokens": reply.tokens_in,
            "output_tokens": reply.tokens_out,
            "cache_read_input_tokens": 0,
            "cache_creation_input_tokens": 0,
        },
    }


# --- Google -----------------------------------------------------------------------------------------


def _read_google(body: Body, path: Mapping[str, str]) -> Body:
    declared = [each for tool in body.get("tools", ()) for each in tool.get("functionDeclarations", ())]
    schemas = ((each["name"], each.get("parametersJsonSchema") or each.get("parameters") or {}) for each in declared)
    return {
        "model": path["model"],
        "messages": [
            {"role": "system", "content": body.get("systemInstruction", {}).get("parts", [])},
            *({"role": turn.get("role", "user"), "content": turn["parts"]} for turn in body["contents"]),
        ],
        "tools": [_function(name, schema) for name, schema in schemas],
        "max_tokens": body.get("generationConfig", {}).get("maxOutputTokens"),
    }


def _write_google(reply: Reply) -> Body:
    part: Body = {"text": reply.said}
    if reply.tool is not None:
        part = {"functionCall": {"name": reply.tool, "args": reply.arguments}}
    finish = {Finish.STOP: "STOP", Finish.CUT: "MAX_TOKENS", Finish.REFUSED: "PROHIBITED_CONTENT"}[reply.finish]
    return {
        "candidates": [{"index": 0, "content": {"role": "model", "parts": [part]}, "finishReason": finish}],
        "usageMetadata": {
            "promptTokenCount": reply.tokens_in,
            "candidatesTokenCount": reply.tokens_out,
            "totalTokenCount": reply.tokens_in + reply.tokens_out,
        },
        "modelVersion": reply.model,
        "responseId": reply.identity,
    }


# --- Bedrock ----------------------------------------------------------------------------------------


def _read_bedrock(body: Body, path: Mapping[str, str]) -> Body:
    tools = (tool["toolSpec"] for tool in body.get("toolConfig", {}).get("tools", ()) if "toolSpec" in tool)
    return {
        "model": path["model"],
        "messages": [{"role": "system", "content": body.get("system", [])}, *body["messages"]],
        "tools": [_function(tool["name"], tool["inputSchema"]["json"]) for tool in tools],
        "max_tokens": body.get("inferenceConfig", {}).get("maxTokens"),
    }


def _write_bedrock(reply: Reply) -> Body:
    content: Body = {"text": reply.said}
    if reply.tool is not None:
        use = {"toolUseId": f"tooluse_{reply.identity}", "name": reply.tool, "input": reply.arguments}
        content = {"toolUse": use}
    stop = {
        Finish.STOP: "tool_use" if reply.tool else "end_turn",
        Finish.CUT: "max_tokens",
        Finish.REFUSED: "content_filtered",
    }[reply.finish]
    return {
        "output": {"message": {"role": "assistant", "content": [content]}},
        "stopReason": stop,
        "usage": {
            "inputTokens": reply.tokens_in,
            "outputTokens": reply.tokens_out,
            "totalTokens": reply.tokens_in + reply.tokens_out,
        },
        "metrics": {"latencyMs": 1},
    }


def _function(name: str, schema: Body) -> Body:
    return {"type": "function", "function": {"name": name, "parameters": schema}}


DIALECTS = (
    Dialect("OpenAI", "/v1/chat/completions", _read_openai, _write_openai, is_ours=True),
    Dialect("Azure", "/openai/deployments/{model}/chat/completions", _read_openai, _write_openai),
    Dialect("Anthropic", "/v1/messages", _read_anthropic, _write_anthropic),
    Dialect("Google", "/v1beta/models/{model}:generateContent", _read_google, _write_google),
    Dialect("Bedrock", "/model/{model}/converse", _read_bedrock, _write_bedrock),
)

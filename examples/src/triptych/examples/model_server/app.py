"""The OpenAI HTTP API of the scripted model: chat completions, not streamed, with real token counts."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from typing import Any

from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from triptych.examples.faults import FaultBook, under
from triptych.examples.model_server.classify import classify
from triptych.examples.model_server.draft import answer, draft
from triptych.examples.model_server.judge import judge
from triptych.examples.model_server.misbehaviour import Misbehaviour, Temper, without_markers
from triptych.examples.model_server.plan import plan
from triptych.examples.model_server.prompt import ChatRequest, Prompt, PromptError, TaskKind, understand

MODELS = ("scripted-strong", "scripted-cheap")
CHARACTERS_A_TOKEN = 4
SLOW_S = 2.0


class ModelServer:
    """The endpoints; the rules live in a module for each task."""

    def __init__(self) -> None:
        self._faults = FaultBook()
        self._temper = Temper()

    def routes(self) -> list[Route]:
        return [
            Route("/health", self.health, methods=["GET"]),
            Route("/v1/models", self.models, methods=["GET"]),
            Route("/v1/chat/completions", self.complete, methods=["POST"]),
            *self._faults.routes(),
        ]

    async def health(self, _: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def models(self, _: Request) -> Response:
        data = [{"id": name, "object": "model", "created": 0, "owned_by": "triptych"} for name in MODELS]
        return JSONResponse({"object": "list", "data": data})

    async def complete(self, request: Request) -> Response:
        try:
            asked = ChatRequest.model_validate_json(await request.body())
            prompt = understand(asked)
        except ValidationError as error:
            return _error(400, f"This is no chat completion request: {error}")
        except PromptError as error:
            return _error(400, str(error), param=error.param)
        if asked.model not in MODELS:
            return _error(404, f"There is no model {asked.model!r}; there are {', '.join(MODELS)}.", param="model")
        fault = self._faults.take(prompt.task, lambda ticket: ticket in prompt.text)
        return await under(fault, lambda: self._answer(asked.model, prompt))

    async def _answer(self, model: str, prompt: Prompt) -> Response:
        said = json.dumps(_fit(_reply(prompt), prompt.schema), ensure_ascii=False)
        match self._temper.provoked(prompt):
            case Misbehaviour.ERROR_ONCE:
                return _error(500, "The model was provoked by its input.")
            case Misbehaviour.REFUSE:
                return JSONResponse(_completion(model, prompt, "I cannot help with this request.", refused=True))
            case Misbehaviour.TRUNCATE:
                return JSONResponse(_completion(model, prompt, said[: len(said) // 2], cut=True))
            case Misbehaviour.INVALID_JSON_ONCE:
                return JSONResponse(_completion(model, prompt, f"{said[:-1]},,"))
            case Misbehaviour.SLOW:
                await asyncio.sleep(SLOW_S)
        return JSONResponse(_completion(model, prompt, said))


def create_app() -> Starlette:
    """The application. It asks for no key: it runs on the machine that asks."""
    return Starlette(routes=ModelServer().routes())


def _reply(prompt: Prompt) -> dict[str, Any]:
    """The answer by the rules of the prompt's task."""
    material = json.loads(without_markers(json.dumps(prompt.material)))
    subject = json.loads(without_markers(json.dumps(prompt.input)))
    match prompt.task:
        case TaskKind.CLASSIFY:
            return classify(subject)
        case TaskKind.DRAFT:
            return draft(subject)
        case TaskKind.PLAN:
            return plan(material, subject)
        case TaskKind.JUDGE:
            return judge(material)
        case TaskKind.ANSWER:
            return answer({**material, **subject})


def _fit(reply: dict[str, Any], schema: dict[str, Any] | None) -> Any:
    """The reply in the wanted form: fields the schema does not know fall away, a bare list is wrapped as asked."""
    known = (schema or {}).get("properties")
    if not isinstance(known, dict):
        return reply
    if set(known) == {"response"}:
        (only, *others) = reply.values()
        return {"response": only if not others else reply}
    return {name: value for name, value in reply.items() if name in known}


def _completion(model: str, prompt: Prompt, said: str, *, cut: bool = False, refused: bool = False) -> dict[str, Any]:
    """A chat completion object: the answer as a tool call where the client asked for one, else as text."""
    if prompt.max_tokens is not None and _tokens(said) > prompt.max_tokens:
        said, cut = said[: prompt.max_tokens * CHARACTERS_A_TOKEN], True
    identity = hashlib.sha256(f"{model}\n{prompt.text}".encode()).hexdigest()[:24]
    message: dict[str, Any] = {"role": "assistant", "content": said, "refusal": None}
    finish = "length" if cut else "stop"
    if refused:
        message |= {"content": None, "refusal": said}
    elif prompt.tool is not None:
        function = {"name": prompt.tool.name, "arguments": said}
        message |= {
            "content": None,
            "tool_calls": [{"id": f"call_{identity}", "type": "function", "function": function}],
        }
        finish = "length" if cut else "tool_calls"
    tokens_in, tokens_out = _tokens(prompt.text + json.dumps(prompt.schema)), _tokens(said)
    return {
        "id": f"chatcmpl-{identity}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [{"index": 0, "message": message, "finish_reason": finish, "logprobs": None}],
        "usage": {
            "prompt_tokens": tokens_in,
            "completion_tokens": tokens_out,
            "total_tokens": tokens_in + tokens_out,
        },
    }


def _tokens(text: str) -> int:
    return -(-len(text) // CHARACTERS_A_TOKEN)


def _error(status: int, message: str, *, param: str | None = None) -> JSONResponse:
    kind = "invalid_request_error" if status < 500 else "server_error"  # noqa: PLR2004
    return JSONResponse({"error": {"message": message, "type": kind, "param": param, "code": None}}, status)

"""The scripted model over HTTP: each provider's API, not streamed, with real token counts.

What is asked and what is answered is the same behind each of them; only the words on the wire differ.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from triptych.examples.faults import FaultBook, under
from triptych.examples.model_server.classify import classify
from triptych.examples.model_server.dialects import DIALECTS, Dialect, Finish, Reply
from triptych.examples.model_server.draft import answer, draft
from triptych.examples.model_server.judge import judge
from triptych.examples.model_server.misbehaviour import Misbehaviour, Temper, without_markers
from triptych.examples.model_server.plan import plan
from triptych.examples.model_server.prompt import ChatRequest, Prompt, PromptError, TaskKind, understand
from triptych.examples.model_server.turns import next_turn

MODELS = ("scripted-strong", "scripted-cheap")
SLOW_S = 2.0
LOOP_TOKENS = 1_000
LOOP_WORDS = "and so on, "
INVENTED_STEP = {
    "id": "invented",
    "operation": "helpdesk.wipe",
    "arguments": {"ticket_id": "${{ input.ticket_id }}"},
}


class ModelServer:
    """The endpoints; the rules live in a module for each task, and each provider's words in `dialects`."""

    def __init__(self) -> None:
        self._faults = FaultBook()
        self._temper = Temper()

    def routes(self) -> list[Route]:
        return [
            Route("/health", self.health, methods=["GET"]),
            Route("/v1/models", self.models, methods=["GET"]),
            *(Route(dialect.path, self._speaking(dialect), methods=["POST"]) for dialect in DIALECTS),
            *self._faults.routes(),
        ]

    async def health(self, _: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def models(self, _: Request) -> Response:
        data = [{"id": name, "object": "model", "created": 0, "owned_by": "triptych"} for name in MODELS]
        return JSONResponse({"object": "list", "data": data})

    def _speaking(self, dialect: Dialect) -> Callable[[Request], Awaitable[Response]]:
        async def complete(request: Request) -> Response:
            return await self._complete(request, dialect)

        return complete

    async def _complete(self, request: Request, dialect: Dialect) -> Response:
        try:
            asked = ChatRequest.model_validate(dialect.read(json.loads(await request.body()), request.path_params))
            prompt = understand(asked)
        except PromptError as error:
            return _error(400, str(error), param=error.param)
        except ValueError as error:
            return _error(400, f"This is not a request of the {dialect.name} API: {error}")
        if dialect.is_ours and asked.model not in MODELS:
            return _error(404, f"There is no model {asked.model!r}; there are {', '.join(MODELS)}.", param="model")
        fault = self._faults.take(prompt.task, lambda ticket: ticket in prompt.text)
        return await under(fault, lambda: self._answer(dialect, asked.model, prompt))

    async def _answer(self, dialect: Dialect, model: str, prompt: Prompt) -> Response:
        answer = _fit(_reply(prompt), prompt.schema)
        reply = Reply(json.dumps(answer, ensure_ascii=False), prompt, model)
        match self._temper.provoked(prompt):
            case None:
                pass
            case Misbehaviour.ERROR_ONCE:
                return _error(500, "The model was provoked by its input.")
            case Misbehaviour.SLOW:
                await asyncio.sleep(SLOW_S)
            case misbehaviour:
                reply = _provoked(misbehaviour, reply, answer)
        return JSONResponse(dialect.write(reply.within_its_limit()))


def _provoked(misbehaviour: Misbehaviour, reply: Reply, answer: dict[str, Any]) -> Reply:  # noqa: PLR0911 - a table
    """Reply as a model that misbehaves."""
    said = reply.said
    match misbehaviour:
        case Misbehaviour.REFUSE:
            return replace(reply, said="I cannot help with this request.", finish=Finish.REFUSED)
        case Misbehaviour.TRUNCATE:
            return replace(reply, said=said[: len(said) // 2], finish=Finish.CUT)
        case Misbehaviour.INVALID_JSON_ONCE | Misbehaviour.INVALID_JSON:
            return replace(reply, said=f"{said[:-1]},,")
        case Misbehaviour.WRONG_TYPES:
            return replace(reply, said=json.dumps({name: _mistyped(value) for name, value in answer.items()}))
        case Misbehaviour.INVENTED_TOOL:
            return replace(reply, calls="send_money")
        case Misbehaviour.INVENTED_OPERATION:
            return replace(reply, said=json.dumps({**answer, "steps": [*answer.get("steps", []), INVENTED_STEP]}))
        case Misbehaviour.INVENTED_ID:
            return replace(reply, said=said.replace("${{ input.ticket_id }}", "T-99999"))
        case Misbehaviour.LOOP:
            return replace(reply, said=f"{said[:-2]} {LOOP_WORDS * (reply.prompt.max_tokens or LOOP_TOKENS)}")
    return reply


def create_app() -> Starlette:
    """Build the application. It asks for no key: it runs on the machine that asks."""
    return Starlette(routes=ModelServer().routes())


def _reply(prompt: Prompt) -> dict[str, Any]:
    """Answer by the rules of the prompt's task."""
    material = json.loads(without_markers(json.dumps(prompt.material)))
    subject = json.loads(without_markers(json.dumps(prompt.input)))
    match prompt.task:
        case TaskKind.CLASSIFY:
            return classify(subject)
        case TaskKind.DRAFT:
            return draft(subject)
        case TaskKind.PLAN:
            return next_turn(material, subject) if "pattern" in material else plan(material, subject)
        case TaskKind.JUDGE:
            return judge(material)
        case TaskKind.ANSWER:
            return answer({**material, **subject})


def _mistyped(value: Any) -> Any:
    return value if isinstance(value, dict) else "all of it" if isinstance(value, list | bool | float) else [value]


def _fit(reply: dict[str, Any], schema: dict[str, Any] | None) -> Any:
    """Put the reply into the wanted form: unknown fields are removed, and a bare list is wrapped as asked."""
    known = (schema or {}).get("properties")
    if not isinstance(known, dict):
        return reply
    if set(known) == {"response"}:
        (only, *others) = reply.values()
        return {"response": only if not others else reply}
    return {name: value for name, value in reply.items() if name in known}


def _error(status: int, message: str, *, param: str | None = None) -> JSONResponse:
    kind = "invalid_request_error" if status < 500 else "server_error"  # noqa: PLR2004
    return JSONResponse({"error": {"message": message, "type": kind, "param": param, "code": None}}, status)

"""The client: one question to one model, answered through a tool whose schema is the wanted output.

It makes exactly one attempt: retries are off in pydantic-ai and in the SDK below it. It never sends
anything that the grant does not cover, and it reports what was spent on failures too.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Final, Self

import jsonschema_rs
import orjson
from pydantic import BaseModel, ValidationError
from pydantic_ai import ModelRequest, ModelResponse, SystemPromptPart, TextPart, ToolCallPart, UserPromptPart
from pydantic_ai.direct import model_request
from pydantic_ai.exceptions import ModelAPIError, UnexpectedModelBehavior, UserError
from pydantic_ai.models import Model, ModelRequestParameters, infer_model
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.profiles.openai import OpenAIModelProfile
from pydantic_ai.providers.openai_compatible import OpenAICompatibleProvider
from pydantic_ai.settings import ModelSettings as RequestSettings
from pydantic_ai.tools import ToolDefinition

from triptych.kernel import failpoints
from triptych.kernel.errors import ConfigurationError
from triptych.kernel.models import budget, prompts
from triptych.kernel.models.failure import ModelFailure, from_error
from triptych.kernel.models.prices import Price, price_of
from triptych.kernel.models.settings import ModelSettings
from triptych.schemas import ErrorCode, Grant, Json, ModelCall, Spend

ANSWER_TOOL: Final = "answer"
MAX_PROBLEMS: Final = 5
"""So many mistakes of an output are named; the rest would not help anyone."""
MAX_PROBLEM_CHARS: Final = 300


@dataclass(frozen=True, slots=True)
class ModelReply:
    """A usable answer and what it cost."""

    output: dict[str, Json]
    spend: Spend


@dataclass(frozen=True, slots=True)
class _Tier:
    """A configured model with its price."""

    tier: str
    name: str
    model: Model
    price: Price

    def billed(self, response: ModelResponse, duration_ms: int) -> ModelCall:
        usage = response.usage
        return ModelCall(
            model=self.name,
            tier=self.tier,
            tokens_in=usage.input_tokens,
            tokens_out=usage.output_tokens,
            usd_micros=self.price.micros(usage),
            duration_ms=duration_ms,
        )


@dataclass(frozen=True, slots=True)
class _Form:
    """The form that an output must have: a JSON Schema, or a model that also gives the schema."""

    schema: dict[str, Json]
    model: type[BaseModel] | None

    @classmethod
    def of(cls, wanted: dict[str, Json] | type[BaseModel]) -> _Form:
        return cls(wanted, None) if isinstance(wanted, dict) else cls(wanted.model_json_schema(), wanted)

    def problems(self, output: Json) -> list[str]:
        """What is wrong with an output, in words that its author can act on."""
        if not isinstance(output, dict):
            return [f"it is a {type(output).__name__}, not an object"]
        if self.model is None:
            validator = jsonschema_rs.Draft202012Validator(self.schema)
            found = [(error.instance_path, error.message) for error in validator.iter_errors(output)]
        else:
            try:
                self.model.model_validate_json(orjson.dumps(output))
            except ValidationError as error:
                found = [(list(problem["loc"]), problem["msg"]) for problem in error.errors(include_url=False)]
            else:
                found = []
        return [
            f"{'.'.join(str(part) for part in path) or 'the output'}: {text[:MAX_PROBLEM_CHARS]}"
            for path, text in found[:MAX_PROBLEMS]
        ]


@dataclass(frozen=True, slots=True)
class _Question:
    """One request, within its limits."""

    system: str
    user: str
    form: _Form
    max_tokens: int
    timeout_ms: int


class ModelClient:
    """Asks the configured models, by tier. As a context manager it closes its connections at the end."""

    def __init__(self, settings: ModelSettings) -> None:
        """Raises ConfigurationError when a model cannot be used, or nobody knows its price."""
        self._tiers = {tier: _tier(tier, name, settings) for tier, name in settings.tiers.items()}
        self._connections = AsyncExitStack()
        self._frame = prompts.load_prompt("triptych.kernel.models", "frame")

    async def __aenter__(self) -> Self:
        for tier in self._tiers.values():
            await self._connections.enter_async_context(tier.model)
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self._connections.aclose()

    async def ask(
        self,
        kind: str,
        tier: str,
        payload: Mapping[str, Json],
        output_schema: dict[str, Json] | type[BaseModel],
        *,
        grant: Grant,
        timeout_ms: int,
        instructions: str = "",
        constraints: Sequence[str] = (),
    ) -> ModelReply:
        """Ask once. `instructions` and `constraints` are the operator's words, `payload` is everyone else's.

        Raises:
            ModelFailure: there is no usable answer. Its `spend` is what it cost all the same; when that
                cannot be known, it is the whole grant.
        """
        asked = self._tiers.get(tier)
        if asked is None:
            known = ", ".join(self._tiers) or "none"
            raise ModelFailure(
                ErrorCode.FORBIDDEN,
                f"no model is configured for tier `{tier}` (configured: {known}); set TRIPTYCH_MODEL_STRONG and "
                "TRIPTYCH_MODEL_CHEAP for the tiers `strong` and `cheap`",
            )
        form = _Form.of(output_schema)
        system = prompts.system_message(kind, self._frame, instructions)
        user = prompts.user_message(payload, constraints)
        prompt_tokens = budget.estimated_tokens(system.encode(), user.encode(), orjson.dumps(form.schema))
        max_tokens = budget.answer_tokens(grant, asked.price, prompt_tokens)
        question = _Question(system, user, form, max_tokens, timeout_ms)
        response, spend = await _send(asked, question, grant)
        try:
            return ModelReply(_output(response, question), spend)
        except _UnusableOutput as unusable:
            raise ModelFailure(unusable.code, f"{asked.name} {unusable.message}", spend=spend) from unusable


def _tier(tier: str, name: str, settings: ModelSettings) -> _Tier:
    given = settings.prices
    if settings.base_url is not None:
        provider = OpenAICompatibleProvider(
            "configured-endpoint",
            base_url=settings.base_url,
            # The SDK insists on a key even where the endpoint wants none.
            api_key=settings.api_key.get_secret_value() if settings.api_key else "none",
        )
        # Endpoints other than OpenAI's own understand `max_tokens`; a limit that is ignored is no limit.
        profile = OpenAIModelProfile(openai_chat_supports_max_completion_tokens=False)
        model: Model = OpenAIChatModel(name, provider=provider, profile=profile)
        return _Tier(tier, name, model, price_of(name, model=name, provider=None, given=given, is_listed=False))
    try:
        model = infer_model(name if ":" in name else f"openai-chat:{name}")
    except (UserError, ValueError, ImportError) as error:
        raise ConfigurationError(
            f"TRIPTYCH_MODEL_{tier.upper()}: {name} cannot be used: {error}. Set TRIPTYCH_MODEL_BASE_URL for an "
            "OpenAI-compatible endpoint, or install and configure the model's provider"
        ) from error
    price = price_of(name, model=model.model_name, provider=model.system, given=given, is_listed=True)
    return _Tier(tier, name, model, price)


async def _send(asked: _Tier, question: _Question, grant: Grant) -> tuple[ModelResponse, Spend]:
    """Send the one request; the response comes with what it cost."""
    seconds = question.timeout_ms / 1000
    settings = RequestSettings(max_tokens=question.max_tokens, max_retries=0, request_timeout=seconds, timeout=seconds)
    answer = ToolDefinition(
        name=ANSWER_TOOL,
        description="Gives the answer.",
        parameters_json_schema=question.form.schema,
        kind="output",
    )
    parameters = ModelRequestParameters(output_mode="tool", output_tools=[answer], allow_text_output=False)
    messages = [ModelRequest(parts=[SystemPromptPart(question.system), UserPromptPart(question.user)])]
    started = time.monotonic()
    failpoints.hit("model.before_call")
    try:
        response = await model_request(
            asked.model, messages, model_settings=settings, model_request_parameters=parameters
        )
        failpoints.hit("model.after_call")
    except (ModelAPIError, UnexpectedModelBehavior) as error:
        call = ModelCall(model=asked.name, tier=asked.tier, duration_ms=_since_ms(started))
        raise from_error(error, asked.name, unknown=budget.whole(grant, call), unbilled=_unbilled(call)) from error
    call = asked.billed(response, _since_ms(started))
    if not response.usage.has_values():
        # An endpoint that does not say what it used could have used anything.
        return response, budget.whole(grant, call)
    return response, Spend(tokens=call.tokens_in + call.tokens_out, usd_micros=call.usd_micros, model_calls=(call,))


def _since_ms(started: float) -> int:
    return round((time.monotonic() - started) * 1000)


def _unbilled(call: ModelCall) -> Spend:
    return Spend(model_calls=(call,))


class _UnusableOutput(Exception):
    """The model answered, but not what it was asked for."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        self.code, self.message = code, message
        super().__init__(message)


def _output(response: ModelResponse, question: _Question) -> dict[str, Json]:
    """The checked output of a response. Raises _UnusableOutput, naming what is wrong."""
    call = next((part for part in response.parts if isinstance(part, ToolCallPart)), None)
    wrong = ErrorCode.CONTRACT_VIOLATION
    if response.finish_reason == "content_filter":
        raise _UnusableOutput(ErrorCode.FORBIDDEN, "refused to answer; a person has to")
    if response.finish_reason == "length":
        limit = f"{question.max_tokens} tokens, the most that the grant allows"
        raise _UnusableOutput(wrong, f"was cut off at {limit}; raise `tokens` of this step, plan or judge")
    if call is None:
        said = any(isinstance(part, TextPart) and part.content.strip() for part in response.parts)
        raise _UnusableOutput(
            wrong, f"answered in text, not through the tool `{ANSWER_TOOL}`" if said else "said nothing"
        )
    try:
        output = orjson.loads(call.args) if isinstance(call.args, str) else call.args
    except orjson.JSONDecodeError as error:
        raise _UnusableOutput(wrong, f"gave an output that is not JSON: {error}") from error
    if problems := question.form.problems(output):
        raise _UnusableOutput(wrong, f"gave an output that does not fit: {'; '.join(problems)}")
    return dict(output or {})

"""The client: one question to the models of a tier, answered through a tool whose schema is the wanted output.

Each model is sent the question at most once: retries are off in pydantic-ai and in the SDKs below it.
A model that was not there is followed by the next of its tier, within the same grant. Nothing is sent
that the grant does not cover, and what was spent is reported on failures too.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Final, Self

import asyncpg
from pydantic import BaseModel
from pydantic_ai import ModelRequest, ModelResponse, SystemPromptPart, UserPromptPart
from pydantic_ai.direct import model_request
from pydantic_ai.exceptions import ModelAPIError, UnexpectedModelBehavior
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.tools import ToolDefinition
from pydantic_ai.usage import RequestUsage

from triptych.kernel import failpoints
from triptych.models import budget, prompts, tokens
from triptych.models.cache import AnswerCache, fingerprint
from triptych.models.failure import PASSING, ModelFailure, from_error
from triptych.models.form import ANSWER_TOOL, Form, UnusableOutputError, checked_output
from triptych.models.prices import Price
from triptych.models.providers import Candidate, candidate
from triptych.models.settings import ModelSettings
from triptych.schemas import ErrorCode, Grant, Json, ModelCall, Recall, Spend, codec

REST_S: Final = 10.0
"""A model that was not there is asked after the others of its tier for so long, or for as long as it says."""
LONGEST_REST_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class ModelReply:
    """A usable answer and what it cost, failed attempts included."""

    output: dict[str, Json]
    spend: Spend


def _always(_output: dict[str, Json]) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Memo:
    """Whether an answer may come from the cache of a tenant, and which answers are worth keeping there."""

    tenant: str
    recall: Recall
    is_worth_keeping: Callable[[dict[str, Json]], bool] = _always


@dataclass(frozen=True, slots=True)
class _Question:
    """A question, for any model."""

    kind: str
    tier: str
    system: str
    user: str
    form: Form

    def fingerprint(self, tenant: str, models: Iterable[str]) -> bytes:
        schema = codec.encode(self.form.schema, sort_keys=True)
        return fingerprint((tenant, ",".join(models), self.system, self.user, schema))

    def estimated_tokens(self, model: str) -> int:
        parts = (self.system.encode(), self.user.encode(), codec.encode(self.form.schema))
        return tokens.estimated_tokens(*parts, model=model)


class ModelClient:
    """Asks the configured models, by tier. As a context manager it closes its connections at the end."""

    def __init__(self, settings: ModelSettings) -> None:
        """Build the models. Raises ConfigurationError when one cannot be used, or its price is not known."""
        self._cache_ttl_s = settings.cache_ttl_s
        self._cache: AnswerCache | None = None
        self._tiers = {
            tier: tuple(candidate(tier, name, settings) for name in names) for tier, names in settings.tiers.items()
        }
        self._resting_until: dict[str, float] = {}
        self._connections = AsyncExitStack()
        self._frame = prompts.load_prompt("triptych.models", "frame")

    def keep_answers_in(self, pool: asyncpg.Pool) -> None:
        """Keep answers in the schema of the pool's role from now on."""
        self._cache = AnswerCache(pool, self._cache_ttl_s) if self._cache_ttl_s else None

    async def __aenter__(self) -> Self:
        if self._tiers:
            await asyncio.to_thread(tokens.prepare)
        for candidates in self._tiers.values():
            for each in candidates:
                await self._connections.enter_async_context(each.model)
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
        memo: Memo | None = None,
    ) -> ModelReply:
        """Ask once. `instructions` and `constraints` are the operator's words, `payload` is everyone else's.

        With a `memo` the answer may be one that was given before; it costs nothing, and its call says so.

        Raises:
            ModelFailure: there is no usable answer. Its `spend` is what the call cost nevertheless; when that
                cannot be known, it is the whole grant.
        """
        system = prompts.system_message(kind, self._frame, instructions)
        user = prompts.user_message(payload, constraints)
        question = _Question(kind, tier, system, user, Form.of(output_schema))
        if self._cache is None or memo is None or memo.recall is Recall.NO:
            return await self._ask(question, grant, timeout_ms)
        return await self._recall_or_ask(self._cache, memo, question, grant, timeout_ms)

    async def _recall_or_ask(
        self, cache: AnswerCache, memo: Memo, question: _Question, grant: Grant, timeout_ms: int
    ) -> ModelReply:
        started = time.monotonic()
        names = [each.name for each in self._candidates(question.tier)]
        asked = question.fingerprint(memo.tenant, names)
        if memo.recall is Recall.YES and (known := await cache.find(memo.tenant, asked)) is not None:
            call = ModelCall(model=known.model, tier=question.tier, duration_ms=_since_ms(started), cached=True)
            return ModelReply(known.output, Spend(model_calls=(call,)))
        reply = await self._ask(question, grant, timeout_ms)
        if memo.is_worth_keeping(reply.output):
            await cache.keep(
                memo.tenant, asked, kind=question.kind, tier=question.tier, output=reply.output, spend=reply.spend
            )
        return reply

    async def _ask(self, question: _Question, grant: Grant, timeout_ms: int) -> ModelReply:
        """Ask the models of the tier, one after the other until one answers."""
        deadline = time.monotonic() + timeout_ms / 1000
        failures: list[ModelFailure] = []
        for asked in self._in_order(question.tier):
            spent = budget.total(failure.spend for failure in failures)
            left_s = max(0.001, deadline - time.monotonic())
            try:
                output, spend = await _ask_one(asked, question, budget.remaining(grant, spent), left_s)
            except ModelFailure as failure:
                failures.append(failure)
                if not failure.is_elsewhere_worth_a_try:
                    break
                self._rest(asked, failure)
            else:
                self._resting_until.pop(asked.name, None)
                return ModelReply(output, budget.total([spent, spend]))
        raise _all_failed(failures)

    def _candidates(self, tier: str) -> Sequence[Candidate]:
        candidates = self._tiers.get(tier)
        if candidates is None:
            known = ", ".join(self._tiers) or "none"
            raise ModelFailure(
                ErrorCode.FORBIDDEN,
                f"no model is configured for tier `{tier}` (configured: {known}); set TRIPTYCH_MODEL_STRONG and "
                "TRIPTYCH_MODEL_CHEAP for the tiers `strong` and `cheap`",
            )
        return candidates

    def _in_order(self, tier: str) -> Sequence[Candidate]:
        """Return the models of a tier in the order in which they are asked now: those that just failed come last."""
        now, candidates = time.monotonic(), self._candidates(tier)
        return sorted(candidates, key=lambda each: self._resting_until.get(each.name, now) > now)

    def _rest(self, asked: Candidate, failure: ModelFailure) -> None:
        rest_s = REST_S if failure.retry_after_ms is None else failure.retry_after_ms / 1000
        self._resting_until[asked.name] = time.monotonic() + min(rest_s, LONGEST_REST_S)


def _all_failed(failures: Sequence[ModelFailure]) -> ModelFailure:
    """Return the failure of a whole tier: what each model said, under a code that time may cure if one has it."""
    if len(failures) == 1:
        return failures[0]
    telling = next((each for each in reversed(failures) if each.code in PASSING), failures[-1])
    waits = [each.retry_after_ms for each in failures if each.retry_after_ms is not None]
    return ModelFailure(
        telling.code,
        "; then ".join(each.message for each in failures),
        min(waits) if len(waits) == len(failures) else None,
        budget.total(each.spend for each in failures),
        details=telling.details,
    )


async def _ask_one(
    asked: Candidate, question: _Question, grant: Grant, seconds: float
) -> tuple[dict[str, Json], Spend]:
    """Ask one model once; its checked output, and what that cost."""
    prompt_tokens = await asyncio.to_thread(question.estimated_tokens, asked.speaks)
    max_tokens = budget.answer_tokens(grant, asked.price, prompt_tokens)
    response, spend = await _send(asked, question, grant, max_tokens, seconds)
    try:
        return checked_output(response, question.form, max_tokens), spend
    except UnusableOutputError as unusable:
        message = f"{asked.name} {unusable.message}"
        failed = _marked(spend, unusable.fault)
        raise ModelFailure(unusable.code, message, spend=failed, details={"model": unusable.fault}) from unusable


async def _send(
    asked: Candidate, question: _Question, grant: Grant, max_tokens: int, seconds: float
) -> tuple[ModelResponse, Spend]:
    """Send the one request; the response comes with what it cost."""
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
            asked.model,
            messages,
            model_settings=asked.request_settings(max_tokens, seconds),
            model_request_parameters=parameters,
        )
        failpoints.hit("model.after_call")
    except (ModelAPIError, UnexpectedModelBehavior) as error:
        call = ModelCall(model=asked.name, tier=question.tier, duration_ms=_since_ms(started))
        failure = from_error(error, asked.name, unknown=budget.whole(grant, call), unbilled=Spend(model_calls=(call,)))
        failure.spend = _marked(failure.spend, failure.code)
        raise failure from error
    call = ModelCall(model=asked.name, tier=question.tier, duration_ms=_since_ms(started))
    return response, _billed(response.usage, asked.price, call) or budget.whole(grant, call)


def _billed(usage: RequestUsage, price: Price, call: ModelCall) -> Spend | None:
    """Return the cost of a call as its endpoint states it; None when it states nothing, or nothing possible."""
    if not usage.has_values():
        return None
    try:
        counted = {
            "tokens_in": usage.input_tokens,
            "tokens_cached": usage.cache_read_tokens,
            "tokens_out": usage.output_tokens,
            "usd_micros": price.micros(usage),
        }
        billed = ModelCall.model_validate(call.model_dump() | counted)
    except ValueError:
        return None
    return Spend(tokens=billed.tokens_in + billed.tokens_out, usd_micros=billed.usd_micros, model_calls=(billed,))


def _since_ms(started: float) -> int:
    return round((time.monotonic() - started) * 1000)


def _marked(spend: Spend, why: str) -> Spend:
    """Mark the calls of a spend with why they gave no usable answer."""
    calls = tuple(call.model_copy(update={"failed": str(why)}) for call in spend.model_calls)
    return spend.model_copy(update={"model_calls": calls})

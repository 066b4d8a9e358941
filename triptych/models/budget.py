"""Keeping a model call within its grant: what the prompt will use, what is left for the answer.

Pure arithmetic. Tokens of a prompt can only be estimated before it is sent; the estimate is
pessimistic, and should it still be too low, the answer reports what was really used.
"""

from __future__ import annotations

from collections.abc import Iterable

from pydantic_ai.usage import RequestUsage

from triptych.models.failure import ModelFailure
from triptych.models.prices import Price
from triptych.schemas import ErrorCode, Grant, ModelCall, Spend

LEAST_ANSWER_TOKENS = 64
"""With less than this left, no useful answer can be written, so nothing is sent."""


def answer_tokens(grant: Grant, price: Price, prompt_tokens: int) -> int:
    """Return how many tokens the answer may have so that the whole call stays within the grant, in tokens and in money.

    Raises:
        ModelFailure: `budget_exceeded`; nothing was sent and nothing spent.
    """
    by_tokens = grant.tokens - prompt_tokens
    if by_tokens < LEAST_ANSWER_TOKENS:
        raise ModelFailure(
            ErrorCode.BUDGET_EXCEEDED,
            f"the prompt needs about {prompt_tokens} tokens and an answer at least {LEAST_ANSWER_TOKENS}, but the "
            f"grant is {grant.tokens}. Raise `tokens` of this step, plan or judge, or give it less to read",
            details={"budget": "tokens"},
        )

    def cost(tokens_out: int) -> int:
        return price.micros(RequestUsage(input_tokens=prompt_tokens, output_tokens=tokens_out))

    if cost(by_tokens) <= grant.usd_micros:
        return by_tokens
    least = cost(LEAST_ANSWER_TOKENS)
    if least > grant.usd_micros:
        raise ModelFailure(
            ErrorCode.BUDGET_EXCEEDED,
            f"the shortest answer to this prompt costs {least} millionths of a US dollar, but the grant is "
            f"{grant.usd_micros}. Raise `usd` of this step, plan or judge, or use a cheaper model",
            details={"budget": "usd"},
        )
    affordable, too_much = LEAST_ANSWER_TOKENS, by_tokens
    while too_much - affordable > 1:
        middle = (affordable + too_much) // 2
        affordable, too_much = (middle, too_much) if cost(middle) <= grant.usd_micros else (affordable, middle)
    return affordable


def whole(grant: Grant, call: ModelCall) -> Spend:
    """Return the spend of a call whose cost cannot be known: all of its grant."""
    billed = call.model_copy(update={"tokens_in": grant.tokens, "tokens_out": 0, "usd_micros": grant.usd_micros})
    return Spend(tokens=grant.tokens, usd_micros=grant.usd_micros, model_calls=(billed,))


def total(spends: Iterable[Spend]) -> Spend:
    """Add several spends up to one."""
    spends = tuple(spends)
    return Spend(
        tokens=sum(spend.tokens for spend in spends),
        usd_micros=sum(spend.usd_micros for spend in spends),
        model_calls=tuple(call for spend in spends for call in spend.model_calls),
    )


def remaining(grant: Grant, spend: Spend) -> Grant:
    """Return what is left of a grant, never less than nothing."""
    return Grant(tokens=max(0, grant.tokens - spend.tokens), usd_micros=max(0, grant.usd_micros - spend.usd_micros))

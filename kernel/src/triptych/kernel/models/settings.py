"""Which models there are and what they cost. Environment prefix `TRIPTYCH_MODEL_`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, NonNegativeFloat, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class ModelSettings(BaseSettings):
    """Models by tier. A service whose playbooks ask no model needs none of this."""

    model_config = SettingsConfigDict(env_prefix="TRIPTYCH_MODEL_", frozen=True, extra="ignore")

    base_url: Annotated[
        str | None,
        Field(
            pattern=r"^https?://",
            description="An OpenAI-compatible endpoint, `http://host:port/v1`, that serves both tiers. "
            "When absent, tiers are pydantic-ai model names such as `anthropic:claude-haiku-4-5`.",
        ),
    ] = None
    api_key: Annotated[
        SecretStr | None,
        Field(description="The key for `base_url`. Other providers read their own, such as OPENAI_API_KEY."),
    ] = None
    strong: Annotated[
        str | None, Field(min_length=1, description="The model of the tier `strong`: plans, drafts, answers.")
    ] = None
    cheap: Annotated[
        str | None, Field(min_length=1, description="The model of the tier `cheap`: classification and judgement.")
    ] = None
    prices: Annotated[
        dict[str, tuple[NonNegativeFloat, NonNegativeFloat]],
        Field(
            description="US dollars for a million tokens in and out, by model name, as JSON: "
            '`{"my-model": [0.5, 1.5]}`. They go before the prices that genai-prices knows.'
        ),
    ] = {}

    timeout_ms: Annotated[
        int, Field(ge=100, le=600_000, description="The longest that one call of the planner or critic may take.")
    ] = 60_000

    @property
    def tiers(self) -> dict[str, str]:
        """The configured tiers and their model names."""
        named = {"strong": self.strong, "cheap": self.cheap}
        return {tier: name for tier, name in named.items() if name is not None}

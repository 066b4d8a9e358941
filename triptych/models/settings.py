"""Which models there are, in which order they are asked, and what they cost. Environment prefix `TRIPTYCH_MODEL_`.

No key is ever part of these settings, except in `base_url`. An endpoint names the variable that holds its key, so
settings can be printed, logged and kept in a repository.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, SecretStr, StringConstraints, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

EndpointName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_-]{0,62}$")]
Prices = Annotated[tuple[NonNegativeFloat, ...], Field(min_length=2, max_length=3)]


class Provider(StrEnum):
    """The APIs that models are asked through."""

    OPENAI = "openai"
    ANTHROPIC = "anthropic"
    GOOGLE = "google"
    BEDROCK = "bedrock"
    AZURE = "azure"
    OLLAMA = "ollama"
    COMPATIBLE = "openai-compatible"


class ModelEndpoint(BaseModel):
    """Where a provider's API is reached. What is absent, the provider's own variables say."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    provider: Provider
    base_url: Annotated[str | None, Field(pattern=r"^https?://")] = None
    key_env: Annotated[str | None, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] = None
    region: str | None = None
    api_version: str | None = None

    @model_validator(mode="after")
    def _has_what_its_provider_needs(self) -> ModelEndpoint:
        if self.provider is Provider.COMPATIBLE and self.base_url is None:
            raise ValueError("an endpoint of the provider openai-compatible needs a base_url")
        if self.region and self.provider is not Provider.BEDROCK:
            raise ValueError("only an endpoint of the provider bedrock has a region")
        if self.api_version and self.provider is not Provider.AZURE:
            raise ValueError("only an endpoint of the provider azure has an api_version")
        if self.key_env and self.provider is Provider.BEDROCK:
            raise ValueError("Bedrock reads its credentials from AWS's own variables and files; leave key_env out")
        return self


class ModelSettings(BaseSettings):
    """Models by tier. A service whose playbooks ask no model needs none of this."""

    model_config = SettingsConfigDict(env_prefix="TRIPTYCH_MODEL_", frozen=True, extra="ignore")

    strong: Annotated[
        str | None,
        Field(
            min_length=1,
            description="The models of the tier `strong` (plans, drafts, answers), by comma, in the order in which "
            "they are asked: `anthropic:claude-sonnet-4-5, local:llama-3.3-70b`. [Models](models.md) has more.",
        ),
    ] = None
    cheap: Annotated[
        str | None,
        Field(min_length=1, description="The models of the tier `cheap` (classification, judgement), likewise."),
    ] = None
    base_url: Annotated[
        str | None,
        Field(
            pattern=r"^https?://",
            description="An OpenAI-compatible endpoint, `http://host:port/v1`, for models that name none.",
        ),
    ] = None
    api_key: Annotated[
        SecretStr | None,
        Field(description="The key for `base_url`. Other providers read their own, such as `ANTHROPIC_API_KEY`."),
    ] = None
    endpoints: Annotated[
        dict[EndpointName, ModelEndpoint],
        Field(
            description="Endpoints by name, as JSON: "
            '`{"local": {"provider": "openai-compatible", "base_url": "http://gpu:8000/v1", "key_env": "GPU_KEY"}}`.'
        ),
    ] = {}
    prices: Annotated[
        dict[str, Prices],
        Field(
            description="US dollars for a million tokens in, out and, if they differ, in from the provider's cache, "
            'by model name, as JSON: `{"local:llama-3.3-70b": [0.5, 1.5]}`. They go before the prices that '
            "genai-prices knows."
        ),
    ] = {}
    timeout_ms: Annotated[
        int, Field(ge=100, le=600_000, description="The longest that one call of the planner or critic may take.")
    ] = 60_000

    cache_ttl_s: Annotated[
        int,
        Field(
            ge=0,
            le=30 * 86_400,
            description="For so long an answer may be given again to the same question, where the playbook allows it; "
            "0 keeps none.",
        ),
    ] = 86_400

    @property
    def tiers(self) -> dict[str, tuple[str, ...]]:
        """The configured tiers and the names of their models, the first choice first."""
        listed = {"strong": self.strong, "cheap": self.cheap}
        named = {tier: _names(names) for tier, names in listed.items() if names is not None}
        return {tier: names for tier, names in named.items() if names}


def _names(listed: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name.strip() for name in listed.split(",") if name.strip()))

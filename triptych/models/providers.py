"""From a configured name to a model that can be asked, through the provider that the name says.

A name is `ENDPOINT:MODEL`, where ENDPOINT is configured or a provider with its own variables, or it is
the bare name of a model at `base_url`. Nothing is sent from here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from openai.types.chat import ChatCompletion
from pydantic_ai.exceptions import UserError
from pydantic_ai.models import Model, infer_model
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.profiles.openai import OpenAIModelProfile
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.providers.openai_compatible import OpenAICompatibleProvider
from pydantic_ai.settings import ModelSettings as RequestSettings

from triptych.kernel.errors import ConfigurationError
from triptych.kernel.process.extras import require_extra
from triptych.kernel.process.tracing import upstream_headers
from triptych.models.prices import Price, price_of
from triptych.models.settings import ModelEndpoint, ModelSettings, Provider
from triptych.schemas import codec

CONNECT_WITHIN_S = 5.0
"""A provider that does not even accept a connection is given up for the next one after this."""
LONGEST_ANSWER_S = 600


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model that a tier may ask, with its price."""

    name: str
    """As configured; it says the endpoint too."""
    model: Model
    price: Price
    speaks: str
    """The name by which its tokenizer may be known; empty where anything may answer to a name."""
    sets_transport: bool
    """Whether time limit and retries travel with a request; boto3 has them for the whole client."""

    def request_settings(self, max_tokens: int, seconds: float) -> RequestSettings:
        """Return the settings of one request that is sent once."""
        settings = RequestSettings(max_tokens=max_tokens, request_timeout=seconds)
        if origin := upstream_headers():
            settings["extra_headers"] = dict(origin)
        return settings | RequestSettings(max_retries=0, timeout=seconds) if self.sets_transport else settings


def candidate(tier: str, name: str, settings: ModelSettings) -> Candidate:
    """Build the model that a name stands for.

    Raises:
        ConfigurationError: the endpoint does not exist, it lacks a key, or the price is not known.
    """
    try:
        model, provider = _model(name, settings)
    except (UserError, ValueError, ImportError) as error:
        raise ConfigurationError(
            f"TRIPTYCH_MODEL_{tier.upper()}: {name} cannot be used: {error}. Set TRIPTYCH_MODEL_BASE_URL for an "
            "OpenAI-compatible endpoint, or configure the model's provider (docs/reference/models.md)"
        ) from error
    is_listed = provider is not Provider.COMPATIBLE
    price = price_of(name, model=model.model_name, provider=model.system, given=settings.prices, is_listed=is_listed)
    speaks = "" if provider in {Provider.COMPATIBLE, Provider.OLLAMA} else model.model_name
    return Candidate(name, model, price, speaks, sets_transport=provider is not Provider.BEDROCK)


def _model(name: str, settings: ModelSettings) -> tuple[Model, Provider | None]:
    """Return the model, and the provider that it is asked through if it is one of ours."""
    prefix, colon, rest = name.partition(":")
    endpoint = settings.endpoints.get(prefix) if colon else None
    if endpoint is not None:
        return _BUILDERS[endpoint.provider](rest, endpoint, _key(endpoint)), endpoint.provider
    if colon and prefix in set(Provider) - {Provider.COMPATIBLE}:
        provider = Provider(prefix)
        return _BUILDERS[provider](rest, ModelEndpoint(provider=provider), None), provider
    if settings.base_url is not None:
        endpoint = ModelEndpoint(provider=Provider.COMPATIBLE, base_url=settings.base_url)
        key = settings.api_key.get_secret_value() if settings.api_key else None
        return _compatible(name, endpoint, key), endpoint.provider
    return infer_model(name if colon else f"openai-chat:{name}"), None


# Imports wait inside: an SDK takes up to a second and tens of megabytes, and most processes need one of them.


def _openai(model: str, endpoint: ModelEndpoint, key: str | None) -> Model:
    return OpenAIChatModel(model, provider=OpenAIProvider(base_url=endpoint.base_url, api_key=key))


def _anthropic(model: str, endpoint: ModelEndpoint, key: str | None) -> Model:
    from pydantic_ai.models.anthropic import AnthropicModel
    from pydantic_ai.providers.anthropic import AnthropicProvider

    return AnthropicModel(model, provider=AnthropicProvider(base_url=endpoint.base_url, api_key=key))


def _google(model: str, endpoint: ModelEndpoint, key: str | None) -> Model:
    from pydantic_ai.models.google import GoogleModel
    from pydantic_ai.providers.google import GoogleProvider

    return GoogleModel(model, provider=GoogleProvider(base_url=endpoint.base_url, api_key=key))


def _azure(deployment: str, endpoint: ModelEndpoint, key: str | None) -> Model:
    from pydantic_ai.providers.azure import AzureProvider

    azure = AzureProvider(azure_endpoint=endpoint.base_url, api_key=key, api_version=endpoint.api_version)
    return OpenAIChatModel(deployment, provider=azure)


def _ollama(model: str, endpoint: ModelEndpoint, key: str | None) -> Model:
    from pydantic_ai.models.ollama import OllamaModel
    from pydantic_ai.providers.ollama import OllamaProvider

    class Lenient(_Lenient, OllamaModel):
        pass

    return Lenient(model, provider=OllamaProvider(base_url=endpoint.base_url, api_key=key))


def _bedrock(model: str, endpoint: ModelEndpoint, _key: str | None) -> Model:
    """Build a model of Bedrock. The provider's own client would make five attempts and wait a minute to connect."""
    require_extra("bedrock", f"the model {model} on Amazon Bedrock")
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError
    from pydantic_ai.models.bedrock import BedrockConverseModel
    from pydantic_ai.providers.bedrock import BedrockProvider

    config = Config(retries={"total_max_attempts": 1}, connect_timeout=CONNECT_WITHIN_S, read_timeout=LONGEST_ANSWER_S)
    try:
        session = boto3.Session(region_name=endpoint.region)
        client = session.client("bedrock-runtime", config=config, endpoint_url=endpoint.base_url)
    except BotoCoreError as error:
        raise ValueError(str(error)) from error
    return BedrockConverseModel(model, provider=BedrockProvider(bedrock_client=client))


def _compatible(model: str, endpoint: ModelEndpoint, key: str | None) -> Model:
    assert endpoint.base_url is not None  # noqa: S101 - the settings have checked it
    # Endpoints other than OpenAI's own understand `max_tokens`. A limit that is ignored does not limit anything.
    profile = OpenAIModelProfile(openai_chat_supports_max_completion_tokens=False)
    provider = OpenAICompatibleProvider("configured-endpoint", base_url=endpoint.base_url, api_key=key)
    return _Lenient(model, provider=provider, profile=profile)


class _Lenient(OpenAIChatModel):
    """For servers that almost speak the API of OpenAI: arguments may come as an object, and calls without an id."""

    def _validate_completion(self, response: ChatCompletion) -> Any:
        for choice in response.choices or ():
            message = getattr(choice, "message", None)
            for number, call in enumerate(getattr(message, "tool_calls", None) or (), 1):
                call.id = getattr(call, "id", None) or f"call_{number}"
                function: Any = getattr(call, "function", None)
                if isinstance(getattr(function, "arguments", None), dict):
                    function.arguments = codec.encode_text(function.arguments)
        return super()._validate_completion(response)


_BUILDERS: Mapping[Provider, Callable[[str, ModelEndpoint, str | None], Model]] = {
    Provider.OPENAI: _openai,
    Provider.ANTHROPIC: _anthropic,
    Provider.GOOGLE: _google,
    Provider.AZURE: _azure,
    Provider.OLLAMA: _ollama,
    Provider.BEDROCK: _bedrock,
    Provider.COMPATIBLE: _compatible,
}


def _key(endpoint: ModelEndpoint) -> str | None:
    """Return the key from the variable that the endpoint names. Raises ValueError when it is not set."""
    if endpoint.key_env is None:
        return None
    key = os.environ.get(endpoint.key_env)
    if not key:
        raise ValueError(
            f"its endpoint takes the key from {endpoint.key_env}, which is not set here; "
            "set it where the stack is started, and name it under pass_env of this service in triptych.toml"
        )
    return key

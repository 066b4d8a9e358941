"""Texts as vectors, by a small model that runs here or by a provider. Every search by meaning uses it.

It embeds and nothing else: it keeps no text and no vector.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, Protocol

from openai import AsyncOpenAI
from pydantic import Field, SecretStr
from pydantic_ai import Embedder as ProviderClient
from pydantic_ai.embeddings.openai import OpenAIEmbeddingModel
from pydantic_ai.exceptions import ModelAPIError, UnexpectedModelBehavior, UserError
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_settings import BaseSettings, SettingsConfigDict

from triptych.kernel.errors import ConfigurationError
from triptych.models.failure import ModelFailure, from_error
from triptych.schemas.base import Spend

LOCAL = "wordllama"
BATCH_TEXTS = 64
"""So many texts go into one request, or one turn of the model that runs here."""

Vector = list[float]


class EmbeddingSettings(BaseSettings):
    """Which model turns texts into vectors. Environment prefix `TRIPTYCH_EMBEDDING_`."""

    model_config = SettingsConfigDict(env_prefix="TRIPTYCH_EMBEDDING_", frozen=True, extra="ignore")

    model: Annotated[
        str,
        Field(
            min_length=1,
            description="`wordllama`, a small model for English that comes with the package and runs in the process. "
            "Or a pydantic-ai name such as `openai:text-embedding-3-small`. With a base URL, a model there.",
        ),
    ] = LOCAL
    base_url: Annotated[
        str | None,
        Field(
            pattern=r"^https?://",
            description="An OpenAI-compatible endpoint with `/embeddings`, `http://host:port/v1`.",
        ),
    ] = None
    api_key: Annotated[
        SecretStr | None,
        Field(description="The key for `base_url`. Other providers read their own, such as OPENAI_API_KEY."),
    ] = None


class Embedder(Protocol):
    """One model. Vectors of different models cannot be compared, so they are kept by its name."""

    name: str

    async def embed(self, texts: Sequence[str], *, query: bool = False) -> list[Vector]:
        """Return a vector of length 1 for each text; `query` says that the texts are questions.

        Raises:
            ModelFailure: the provider does not answer.
        """
        ...


@asynccontextmanager
async def open_embedder(settings: EmbeddingSettings) -> AsyncIterator[Embedder]:
    """Open the configured model, with its connections for as long as the body runs.

    Raises:
        ConfigurationError: such a model does not exist, or something that it needs is missing.
    """
    if settings.base_url is not None:
        key = settings.api_key.get_secret_value() if settings.api_key else "none"
        async with AsyncOpenAI(base_url=settings.base_url, api_key=key, max_retries=0) as http:
            model = OpenAIEmbeddingModel(settings.model, provider=OpenAIProvider(openai_client=http))
            yield ProviderEmbedder(settings.model, ProviderClient(model))
    elif settings.model == LOCAL:
        yield LocalEmbedder()
    else:
        try:
            client = ProviderClient(settings.model, defer_model_check=False)
        except (UserError, ImportError, ValueError) as error:
            raise ConfigurationError(f"TRIPTYCH_EMBEDDING_MODEL {settings.model!r} cannot be used: {error}") from error
        yield ProviderEmbedder(settings.model, client)


class LocalEmbedder:
    """WordLlama: averaged token vectors, 256 dimensions, 16 MB that ship in its package. It needs no network."""

    def __init__(self) -> None:
        # A third of a second and 60 MB, so only for who asks for it.
        import wordllama  # noqa: PLC0415

        self.name = LOCAL
        folder = Path(wordllama.__file__).parent
        self._model: Any = wordllama.WordLlama.load(cache_dir=folder, disable_download=True)

    async def embed(self, texts: Sequence[str], *, query: bool = False) -> list[Vector]:
        """Return a vector for each text; questions and answers are treated alike."""
        del query
        vectors: list[Vector] = []
        for start in range(0, len(texts), BATCH_TEXTS):
            vectors += await asyncio.to_thread(self._embed, list(texts[start : start + BATCH_TEXTS]))
        return vectors

    def _embed(self, texts: list[str]) -> list[Vector]:
        vectors: list[Vector] = self._model.embed(texts, norm=True).tolist()
        return vectors


class ProviderEmbedder:
    """A model of a provider, over HTTP."""

    def __init__(self, name: str, client: ProviderClient) -> None:
        self.name, self._client = name, client

    async def embed(self, texts: Sequence[str], *, query: bool = False) -> list[Vector]:
        """Return a vector for each text, in as many requests as it takes."""
        ask = self._client.embed_query if query else self._client.embed_documents
        vectors: list[Vector] = []
        for start in range(0, len(texts), BATCH_TEXTS):
            try:
                answer = await ask(list(texts[start : start + BATCH_TEXTS]))
            except (ModelAPIError, UnexpectedModelBehavior) as error:
                raise self._failure(error) from error
            vectors += [_unit(vector) for vector in answer.embeddings]
        return vectors

    def _failure(self, error: ModelAPIError | UnexpectedModelBehavior) -> ModelFailure:
        failure = from_error(error, self.name, unknown=Spend(), unbilled=Spend())
        message = failure.message.replace("TRIPTYCH_MODEL_", "TRIPTYCH_EMBEDDING_")
        return ModelFailure(failure.code, message, failure.retry_after_ms, details=failure.details)


def _unit(vector: Sequence[float]) -> Vector:
    length = sum(part * part for part in vector) ** 0.5 or 1.0
    return [part / length for part in vector]

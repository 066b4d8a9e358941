"""Fetch the document of an API: from its address, from the file that it was copied from, or the stored copy."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx

from triptych.kernel.errors import ConfigurationError
from triptych.tools.adapters.openapi.document import DOCUMENT_MAX_BYTES, DocumentError, OpenApiDocument
from triptych.tools.adapters.openapi.options import OpenApiOptions
from triptych.tools.adapters.rest.address import shown
from triptych.tools.http.client import exchange, location_of, open_client, read_body
from triptych.tools.http.errors import shown_location
from triptych.tools.sdk.failure import ToolFailure
from triptych.tools.sdk.source import Source

FETCH_TIMEOUT_S = 60


async def fetched(origin: str, source: Source) -> bytes:
    """Return the document as it is now at its address, or in the file that it was copied from.

    Raises:
        ConfigurationError: it is not to be had, has moved to another host, or is too large.
    """
    if not origin.startswith(("http://", "https://")):
        return read_file(source.path(origin))
    return await downloaded(origin)


def read_file(file: Path) -> bytes:
    """Return a document in a file. Raises ConfigurationError: it cannot be read, or is too large."""
    try:
        with file.open("rb") as opened:
            raw = opened.read(DOCUMENT_MAX_BYTES + 1)
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be read: {error.strerror}") from None
    if len(raw) > DOCUMENT_MAX_BYTES:
        raise DocumentError(str(file), f"more than {DOCUMENT_MAX_BYTES} bytes", "Cut out the part that you need")
    return raw


async def downloaded(url: str) -> bytes:
    """Return a document on the web. Redirects are followed on its own host; nothing else is asked for.

    Raises:
        ConfigurationError: it is not to be had within the time, has moved to another host, or is too large.
    """
    told = shown(url)
    try:
        async with asyncio.timeout(FETCH_TIMEOUT_S), open_client() as client:
            response = await exchange(client, client.build_request("GET", url), is_read=True)
            try:
                if response.is_redirect and location_of(response) is not None:
                    raise ConfigurationError(
                        f"{told} has moved to {shown_location(response)}; name that address if you trust it"
                    )
                if not response.is_success:
                    raise ConfigurationError(
                        f"{told} answered {response.status_code}; save the document and name the file"
                    )
                return await read_body(response, DOCUMENT_MAX_BYTES)
            finally:
                await response.aclose()
    except TimeoutError:
        raise ConfigurationError(f"{told} was not there in whole after {FETCH_TIMEOUT_S} s") from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ConfigurationError(f"{told} cannot be fetched ({type(error).__name__})") from None
    except ToolFailure as failure:
        raise ConfigurationError(f"{told} cannot be read: {failure.message}") from None


def read_document(source: Source, options: OpenApiOptions) -> OpenApiDocument:
    """Return the copy of the document that lies beside triptych.toml.

    Raises:
        ConfigurationError: it is not there, or no OpenAPI 3 document.
    """
    file = source.path(options.spec)
    if not file.is_file():
        raise ConfigurationError(
            f"tools.{source.name}.options.spec: {file} is not there; `triptych tools add openapi` stores it"
        )
    return OpenApiDocument.parse(read_file(file), shown(options.source or str(file)))

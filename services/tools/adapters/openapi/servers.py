"""Where an operation's server is, as the document says."""

from __future__ import annotations

from urllib.parse import urljoin

import httpx

from triptych.schemas.base import Json
from triptych.tools.adapters.openapi.document import OpenApiDocument, OperationEntry
from triptych.tools.adapters.openapi.options import OpenApiOptions
from triptych.tools.adapters.openapi.skip_reasons import SkipOperationError, SkipReason
from triptych.tools.adapters.rest.address import problem_of_base_url, problem_of_template, shown


def address_of(document: OpenApiDocument, place: OperationEntry, options: OpenApiOptions) -> str:
    """Return the URL of an operation: after the base URL where the options give one, else absolute.

    Raises:
        SkipOperationError: neither the options nor the document say where the server is.
    """
    if problem := problem_of_template(place.path):
        raise SkipOperationError(SkipReason.ADDRESS, f"its path cannot be used: {problem}")
    if options.base_url is not None or options.base_url_env is not None:
        return place.path
    server = _first(place.operation) or _first(place.item) or _first(document.content)
    url = _filled(server) if server else "/"
    if not url.startswith(("http://", "https://")):
        if options.source is None or not options.source.startswith(("http://", "https://")):
            raise SkipOperationError(
                SkipReason.ADDRESS, f"the document says {url!r} of its server and no host; give --base-url https://..."
            )
        url = urljoin(options.source, url)
    problem = problem_of_base_url(url) or ("it holds a user" if httpx.URL(url).userinfo else None)
    if problem is not None:
        stated = str(server["url"]) if server else url
        raise SkipOperationError(
            SkipReason.ADDRESS, f"its server {shown(stated)!r} cannot be used: {problem}; give --base-url https://..."
        )
    return url.rstrip("/") + place.path


def _first(level: dict[str, Json]) -> dict[str, Json] | None:
    servers = level.get("servers")
    if isinstance(servers, list) and servers and isinstance(servers[0], dict) and servers[0].get("url"):
        return servers[0]
    return None


def _filled(server: dict[str, Json]) -> str:
    """Return the URL with the default of each variable."""
    url = str(server["url"])
    variables = server.get("variables")
    for name, variable in variables.items() if isinstance(variables, dict) else ():
        if isinstance(variable, dict) and "default" in variable:
            url = url.replace(f"{{{name}}}", str(variable["default"]))
    return url

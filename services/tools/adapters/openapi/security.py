"""Which credentials a document asks for, as the `auth` of a tool's options.

A tool has one credential. Where a document knows several schemes, this proposes one and never mixes them.
"""

from __future__ import annotations

from collections import Counter

from pydantic import ValidationError

from triptych.kernel.errors import ConfigurationError
from triptych.schemas.base import Json
from triptych.tools.adapters.openapi.document import OpenApiDocument, OperationEntry, UnresolvedError
from triptych.tools.adapters.rest.auth import (
    CREDENTIAL_HEADERS,
    ApiKeyOptions,
    Auth,
    BasicOptions,
    BearerOptions,
    ClientCredentials,
)

_URLS = ("authorizationUrl", "tokenUrl", "refreshUrl")
_KEY_HEADERS = CREDENTIAL_HEADERS - {"authorization", "cookie", "proxy-authorization"}


def proposed_auth(document: OpenApiDocument, tool: str) -> Auth | None:
    """Return the scheme that most operations accept and that can be had without a person, or None."""
    schemes = _schemes(document)
    default = document.content.get("security")
    wanted: Counter[str] = Counter()
    for place in document.places():
        alternatives = place.operation.get("security", default)
        wanted.update(
            name
            for each in (alternatives if isinstance(alternatives, list) else [])
            if isinstance(each, dict) and len(each) == 1
            for name in each
        )
    for name in sorted(schemes, key=lambda name: (_needs_a_person(schemes[name]), -wanted[name])):
        if (wanted[name] or not wanted) and (auth := auth_of(schemes[name], tool)) is not None:
            return auth
    return _from_headers(document, tool)


def _needs_a_person(scheme: dict[str, Json]) -> bool:
    """Return whether a token comes out of a browser in which somebody has logged in."""
    flows = scheme.get("flows")
    is_machine = isinstance(flows, dict) and "clientCredentials" in flows
    # A tuple, since the value need not be hashable.
    return scheme.get("type") in ("oauth2", "openIdConnect") and not is_machine


def chosen_auth(document: OpenApiDocument, tool: str, chosen: str) -> Auth:
    """Return the scheme of this name in the document, or `bearer`, `basic`, or `header:NAME` and so with query, cookie.

    Raises:
        ConfigurationError: it is none of these, or of a kind that cannot be used.
    """
    schemes = _schemes(document)
    kind, _, name = chosen.partition(":")
    scheme: dict[str, Json] | None = schemes.get(chosen)
    if scheme is None and chosen in {"bearer", "basic"}:
        scheme = {"type": "http", "scheme": chosen}
    elif scheme is None and name:
        scheme = {"type": "apiKey", "in": kind, "name": name}
    auth = None if scheme is None else auth_of(scheme, tool)
    if auth is None:
        known = ", ".join((*schemes, "none", "bearer", "basic", "header:NAME", "query:NAME", "cookie:NAME"))
        raise ConfigurationError(f"{document.origin}: there is no way to authenticate called {chosen!r}; use {known}")
    return auth


def described(document: OpenApiDocument, place: OperationEntry) -> str:
    """Describe how callers of an operation authenticate. The words change when that changes."""
    schemes = _schemes(document)
    alternatives = place.operation.get("security", document.content.get("security"))
    told = []
    for each in alternatives if isinstance(alternatives, list) else ():
        names = sorted(each) if isinstance(each, dict) else []
        told.append(" and ".join(_in_words(schemes.get(name, {}), name) for name in names) or "nothing")
    return " or ".join(told)


def _in_words(scheme: dict[str, Json], name: str) -> str:
    words = [str(scheme.get(key)) for key in ("type", "scheme", "in", "name", "openIdConnectUrl") if key in scheme]
    flows = scheme.get("flows")
    for flow, stated in sorted(flows.items()) if isinstance(flows, dict) else ():
        urls = [str(stated[key]) for key in _URLS if key in stated] if isinstance(stated, dict) else []
        words.append(f"{flow} {' '.join(urls)}")
    return f"{name} ({', '.join(words) or 'not described'})"


def auth_of(scheme: dict[str, Json], tool: str) -> Auth | None:
    """Return the `auth` of one security scheme, with variables named after the tool; None if its kind is unknown."""
    try:
        return _auth_of(scheme, tool.upper().replace("-", "_"))
    except ValidationError:
        return None  # a name or a URL that nothing can be sent with


def _auth_of(scheme: dict[str, Json], prefix: str) -> Auth | None:
    match scheme:
        case {"type": "apiKey", "in": "header" | "query" | "cookie" as place, "name": str(name)}:
            return ApiKeyOptions(kind="api_key", place=place, name=name, key_env=f"{prefix}_KEY")
        case {"type": "http", "scheme": str(kind)} if kind.lower() == "basic":
            return BasicOptions(kind="basic", username_env=f"{prefix}_USERNAME", password_env=f"{prefix}_PASSWORD")
        case {"type": "oauth2", "flows": {"clientCredentials": {"tokenUrl": str(url), **flow}}} if url.startswith(
            "http"
        ):
            scopes = flow.get("scopes")
            return ClientCredentials(
                kind="client_credentials",
                token_url=url,
                client_id_env=f"{prefix}_CLIENT_ID",
                client_secret_env=f"{prefix}_CLIENT_SECRET",
                scopes=tuple(sorted(scopes)) if isinstance(scopes, dict) else (),
            )
        case {"type": "oauth2" | "openIdConnect"} | {"type": "http", "scheme": _}:
            return BearerOptions(kind="bearer", token_env=f"{prefix}_TOKEN")
    return None


def _schemes(document: OpenApiDocument) -> dict[str, dict[str, Json]]:
    components = document.content.get("components")
    stated = components.get("securitySchemes") if isinstance(components, dict) else None
    found = {}
    for name, scheme in stated.items() if isinstance(stated, dict) else ():
        try:
            found[name] = document.resolved(scheme)
        except UnresolvedError:
            continue
    return found


def _from_headers(document: OpenApiDocument, tool: str) -> Auth | None:
    """Return the auth of a document that has no schemes and declares the header of its key as a parameter."""
    for place in document.places():
        parameters = place.operation.get("parameters")
        for stated in parameters if isinstance(parameters, list) else ():
            if isinstance(stated, dict) and stated.get("in") == "header":
                name = str(stated.get("name"))
                if name.lower() in _KEY_HEADERS:
                    return ApiKeyOptions(kind="api_key", name=name, key_env=f"{tool.upper().replace('-', '_')}_KEY")
    return None

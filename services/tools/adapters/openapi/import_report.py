"""Import every operation of a document: as an endpoint with a contract, or skipped with a reason.

Whether an operation can be offered is decided for each by itself, so that one mistake in a document costs one
operation. What is offered is what the document says; where it says too little, a note tells what was assumed.
"""

from __future__ import annotations

import difflib
import time
from dataclasses import dataclass
from fnmatch import fnmatchcase

import httpx
from pydantic import ValidationError

from triptych.json_schema import InvalidSchemaError, JsonSchema
from triptych.kernel.errors import ConfigurationError
from triptych.schemas.base import Json
from triptych.schemas.contract import Contract, Effect
from triptych.tools.adapters.openapi import naming
from triptych.tools.adapters.openapi.arguments import ArgumentsReader
from triptych.tools.adapters.openapi.document import OpenApiDocument, OperationEntry, UnresolvedError
from triptych.tools.adapters.openapi.options import OpenApiOptions, OperationOptions
from triptych.tools.adapters.openapi.results import ResultReader
from triptych.tools.adapters.openapi.security import described
from triptych.tools.adapters.openapi.servers import address_of
from triptych.tools.adapters.openapi.skip_reasons import SkipOperationError, SkipReason
from triptych.tools.adapters.rest import Endpoint, KeyCarrier, KeyLocation
from triptych.tools.adapters.rest.auth import ClientCredentials
from triptych.tools.http.client import origin_of
from triptych.tools.sdk.guard import Rate

DESCRIPTION_MAX_CHARS = 1_000
_EFFECTS = {
    "get": Effect.READ,
    "put": Effect.IDEMPOTENT,
    "delete": Effect.IDEMPOTENT,
    "post": Effect.ONCE,
    "patch": Effect.ONCE,
}
OPERATIONS_MAX = 20_000
IMPORT_MAX_S = 300
CONTRACT_MAX_BYTES = 1_048_576
"""A larger contract would not be read by anybody, and least of all by a model."""


@dataclass(frozen=True, slots=True)
class ImportedOperation:
    """An operation that the tool offers."""

    place: OperationEntry
    endpoint: Endpoint
    notes: tuple[str, ...]
    """What was assumed, or could not be taken over."""
    rate: str | None = None
    """How often it may be called, as the document says."""
    examples: tuple[tuple[str, str, Json], ...] = ()
    """What the document shows for its arguments: the argument, the name of the example, and the value."""


@dataclass(frozen=True, slots=True)
class SkippedOperation:
    """An operation that it does not offer, and why."""

    place: OperationEntry
    reason: SkipReason
    why: str


@dataclass(frozen=True, slots=True)
class ImportReport:
    """All operations of a document; each is in exactly one of the two."""

    imported: tuple[ImportedOperation, ...]
    skipped: tuple[SkippedOperation, ...]
    webhooks: int
    """Calls that the API makes to its clients. A tool cannot make them, so they are not operations."""

    notes: tuple[str, ...] = ()
    """What could not be taken over of the document as a whole."""
    rate: str | None = None
    """How often the whole API may be called, as the document says."""

    @property
    def operations(self) -> int:
        return len(self.imported) + len(self.skipped)

    def hosts(self, options: OpenApiOptions) -> tuple[str, ...]:
        """Return the origins that the credential goes to: those of the operations, and where its token comes from."""
        if options.base_url_env is not None:
            return ()  # It is known where the tool runs.
        urls = [each.endpoint.url.partition("{")[0] for each in self.imported if each.endpoint.authenticated]
        if options.base_url is not None:
            urls = [options.base_url]
        if isinstance(options.auth, ClientCredentials):
            urls.append(options.auth.token_url)
        return tuple(sorted({origin_of(httpx.URL(url)) for url in urls}))


def import_document(document: OpenApiDocument, tool: str, options: OpenApiOptions) -> ImportReport:
    """Look at every operation of a document.

    Raises:
        ConfigurationError: an option names something that is not in the document, or nothing is left.
    """
    places = list(document.places())
    if len(places) > OPERATIONS_MAX:
        raise ConfigurationError(
            f"{document.origin}: {len(places)} operations, and {OPERATIONS_MAX} are the most; cut out what you need"
        )
    given = naming.names(places)
    _check_names(tool, options, places, given)
    writer = _Writer(document, tool, options)
    until = time.monotonic() + IMPORT_MAX_S
    imported: list[ImportedOperation] = []
    skipped = [SkippedOperation(place, SkipReason.UNREADABLE, why) for place, why in document.unreadable()]
    for place, name in zip(places, given, strict=True):
        try:
            imported.append(writer.write(place, name))
        except SkipOperationError as error:
            skipped.append(SkippedOperation(place, error.reason, error.why))
        except UnresolvedError as error:
            skipped.append(SkippedOperation(place, SkipReason.REFERENCE, str(error)))
        except Exception as error:  # noqa: BLE001 - a document can be wrong in any way, and this costs one operation
            skipped.append(
                SkippedOperation(place, SkipReason.UNREADABLE, f"it cannot be read ({type(error).__name__})")
            )
        if time.monotonic() > until:
            raise ConfigurationError(f"{document.origin}: it takes more than {IMPORT_MAX_S} s; cut out what you need")
    if unused := options.set.keys() - writer.arguments.fixed_used:
        key = f"tools.{tool}.options.set.{min(unused)}"
        raise ConfigurationError(f"{key}: no operation that is offered has a parameter of this name")
    webhooks = document.content.get("webhooks")
    notes: list[str] = []
    rate = rate_of(document.content, notes) or rate_of(_info(document), notes)
    hosts = sorted({each.endpoint.url.split("/")[2] for each in imported if not each.endpoint.url.startswith("/")})
    if len(hosts) > 1:
        notes.append(f"the document sends operations, and the credential with them, to {', '.join(hosts)}")
    count = len(webhooks) if isinstance(webhooks, dict) else 0
    return ImportReport(tuple(imported), tuple(skipped), count, tuple(notes), rate)


def _info(document: OpenApiDocument) -> dict[str, Json]:
    info = document.content.get("info")
    return info if isinstance(info, dict) else {}


def _check_names(tool: str, options: OpenApiOptions, places: list[OperationEntry], given: list[str]) -> None:
    """Refuse patterns that fit nothing: they are mistakes, and never a reason to offer less."""
    for key, patterns in (("include", options.include), ("exclude", options.exclude)):
        for pattern in patterns:
            if not any(_fits(pattern, place, name) for place, name in zip(places, given, strict=True)):
                raise ConfigurationError(f"tools.{tool}.options.{key}: {pattern!r} {_nearest(pattern, given)}")
    tags = {tag for place in places for tag in _tags(place)}
    for tag in options.tags:
        if tag not in tags:
            raise ConfigurationError(f"tools.{tool}.options.tags: {tag!r} {_nearest(tag, sorted(tags))}")
    for name in options.operations:
        if name not in given:
            raise ConfigurationError(f"tools.{tool}.options.operations.{name}: it {_nearest(name, given)}")


def _nearest(wanted: str, known: list[str]) -> str:
    near = difflib.get_close_matches(wanted, known, n=3)
    hint = f"; did you mean {' or '.join(near)}?" if near else f"; there are {', '.join(known[:10])}"
    return f"fits nothing in the document{hint}"


def _fits(pattern: str, place: OperationEntry, name: str) -> bool:
    stated = place.operation.get("operationId")
    return any(fnmatchcase(each, pattern) for each in (name, place.title, str(stated)) if each)


def _tags(place: OperationEntry) -> list[str]:
    tags = place.operation.get("tags")
    return [str(tag) for tag in tags] if isinstance(tags, list) else []


class _Writer:
    """Makes endpoints of operations."""

    def __init__(self, document: OpenApiDocument, tool: str, options: OpenApiOptions) -> None:
        self._document, self._tool, self._options = document, tool, options
        self.arguments = ArgumentsReader(document, options)
        self._results = ResultReader(document)
        self._default_security = document.content.get("security")

    def write(self, place: OperationEntry, name: str) -> ImportedOperation:
        """Return an operation. Raises SkipOperationError or UnresolvedError."""
        self._check_selected(place, name)
        if place.method not in _EFFECTS:
            raise SkipOperationError(SkipReason.METHOD, f"{place.method.upper()} answers nothing that could be data")
        stated = self._options.operations.get(name, OperationOptions())
        arguments, arguments_schema = self.arguments.read(place, stated.media_type)
        answer = self._results.read(place)
        notes = [*arguments.notes, *answer.notes]
        if name != naming.wanted_name(place):
            notes.append(f"called {name}, since another operation wants {naming.wanted_name(place)} as well")
        key = self._key(place, stated, arguments.key)
        try:
            contract = Contract(
                operation=f"{self._tool}.{name}",
                version=self._document.version,
                description=_description(place),
                arguments=arguments_schema,
                result=answer.schema,
                reading=stated.result,
                effect=stated.effect or self._effect(place, key),
                timeout_ms=stated.timeout_ms or self._options.timeout_ms,
                business_key=stated.business_key,
            )
        except ValidationError as error:
            raise SkipOperationError(SkipReason.SCHEMA, error.errors(include_url=False)[0]["msg"]) from None
        _check_contract(contract)
        endpoint = Endpoint(
            contract=contract,
            method=place.method.upper(),
            url=address_of(self._document, place, self._options),
            parameters=tuple(arguments.parameters),
            body=arguments.body,
            fixed=tuple(arguments.fixed),
            key=key if contract.effect.writes else None,
            accept=answer.accept,
            authenticated=self._is_authenticated(place),
            security=described(self._document, place),
            success=stated.success,
            empty_at=stated.empty_at,
            defaults=arguments.defaults,
        )
        rate = rate_of(place.operation, notes)
        return ImportedOperation(place, endpoint, tuple(notes), rate, tuple(arguments.examples))

    def _check_selected(self, place: OperationEntry, name: str) -> None:
        options = self._options
        if options.tags and not set(_tags(place)) & set(options.tags):
            raise SkipOperationError(SkipReason.NOT_SELECTED, "it has none of the tags")
        if options.include and not any(_fits(pattern, place, name) for pattern in options.include):
            raise SkipOperationError(SkipReason.NOT_SELECTED, "it is not included")
        if any(_fits(pattern, place, name) for pattern in options.exclude):
            raise SkipOperationError(SkipReason.NOT_SELECTED, "it is excluded")

    def _key(self, place: OperationEntry, stated: OperationOptions, declared: KeyCarrier | None) -> KeyCarrier | None:
        """Return how the key is sent: by the options, else by the document, else in the header for all writes."""
        if stated.key is not None:
            return stated.key.carrier
        if declared is not None:
            return declared
        header = self._options.idempotency_header
        return KeyCarrier(KeyLocation.HEADER, header) if header and place.method in {"post", "patch"} else None

    def _effect(self, place: OperationEntry, key: KeyCarrier | None) -> Effect:
        """Return what repeating it does: as the document says, else as HTTP has it for the method and the key."""
        stated = place.operation.get("x-triptych-effect")
        if stated in {effect.value for effect in Effect}:
            return Effect(str(stated))
        effect = _EFFECTS[place.method]
        if effect.must_be_reconciled and (key is not None or place.operation.get("x-idempotent") is True):
            return Effect.IDEMPOTENT
        return effect

    def _is_authenticated(self, place: OperationEntry) -> bool:
        """Return a call that the document declares as open is made without credentials."""
        security = place.operation.get("security", self._default_security)
        return security not in ([], [{}])


def rate_of(level: dict[str, Json], notes: list[str]) -> str | None:
    """Return `x-ratelimit: 600/min` of a document or an operation. A value that is not a rate gives a note."""
    stated = level.get("x-ratelimit")
    if stated is None:
        return None
    try:
        Rate.of(str(stated))
    except ValueError as error:
        notes.append(f"x-ratelimit: {error}")
        return None
    return str(stated)


def _description(place: OperationEntry) -> str:
    """Return what the planner reads: the summary and the beginning of the description."""
    said = [place.operation.get("summary"), place.operation.get("description"), place.item.get("summary")]
    parts = [" ".join(text.split()) for text in said if isinstance(text, str) and text.strip()]
    text = ". ".join(part.rstrip(".") for part in dict.fromkeys(parts)) or place.title
    return text if len(text) <= DESCRIPTION_MAX_CHARS else text[: DESCRIPTION_MAX_CHARS - 1] + "…"


def _check_contract(contract: Contract) -> None:
    """Raise SkipOperationError when no value can be checked against this contract."""
    for what, schema in (("arguments", contract.arguments), ("result", contract.result)):
        try:
            JsonSchema.of(schema)
        except InvalidSchemaError as error:
            raise SkipOperationError(SkipReason.SCHEMA, f"the schema of its {what} cannot be used: {error}") from None
    size = len(contract.to_bytes())
    if size > CONTRACT_MAX_BYTES:
        raise SkipOperationError(
            SkipReason.TOO_LARGE, f"its contract has {size} bytes, and {CONTRACT_MAX_BYTES} are the most"
        )

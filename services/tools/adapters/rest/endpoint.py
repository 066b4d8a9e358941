"""One call over HTTP, declared: where each argument goes, how the idempotency key travels, what may come back."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from triptych.schemas.base import Json
from triptych.schemas.contract import Contract


class ParameterLocation(StrEnum):
    """The location of a parameter in a request (`in` in OpenAPI)."""

    PATH = "path"
    QUERY = "query"
    HEADER = "header"
    COOKIE = "cookie"


class Style(StrEnum):
    """How a value is written there (OpenAPI 3, section Style Values)."""

    SIMPLE = "simple"
    LABEL = "label"
    MATRIX = "matrix"
    FORM = "form"
    SPACE_DELIMITED = "spaceDelimited"
    PIPE_DELIMITED = "pipeDelimited"
    DEEP_OBJECT = "deepObject"


@dataclass(frozen=True, slots=True)
class Parameter:
    """An argument that goes into the path, the query, a header or a cookie."""

    argument: str
    """Its name among the arguments."""
    name: str
    """Its name in the request."""
    place: ParameterLocation
    style: Style
    explode: bool
    allow_reserved: bool = False
    as_json: bool = False
    """The value is written as JSON, with any style."""


class BodyForm(StrEnum):
    """How the body is written."""

    JSON = "json"
    FORM = "form"
    MULTIPART = "multipart"
    TEXT = "text"
    BINARY = "binary"


@dataclass(frozen=True, slots=True)
class FieldEncoding:
    """How one field of a form is written, where the document says it for this field."""

    name: str
    content_type: str | None = None
    """Of the part; a JSON type means that the value is written as JSON."""
    style: Style | None = None
    explode: bool = True


@dataclass(frozen=True, slots=True)
class RequestBody:
    """The argument that becomes the request's body."""

    argument: str
    form: BodyForm
    media_type: str
    fields: tuple[FieldEncoding, ...] = ()

    def writing_of(self, name: str) -> FieldEncoding:
        """Return how a field is written."""
        return next((each for each in self.fields if each.name == name), FieldEncoding(name))


class KeyLocation(StrEnum):
    """Where the idempotency key is sent."""

    HEADER = "header"
    QUERY = "query"
    FIELD = "field"
    """A field of the body, which must be an object."""
    NATURAL = "natural"
    """Nowhere: an argument, such as an order's number, makes the call recognisable by itself."""


@dataclass(frozen=True, slots=True)
class KeyCarrier:
    """How an upstream wants to be told that two requests are the same one."""

    place: KeyLocation
    name: str


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A contract, and the request that keeps it."""

    contract: Contract
    method: str
    url: str
    """Absolute, or a path after the upstream's base URL; `{name}` stands for the path parameter of that name."""
    parameters: tuple[Parameter, ...] = ()
    body: RequestBody | None = None
    fixed: tuple[tuple[Parameter, Json], ...] = ()
    """Parameters that are always sent with the same value, and are not arguments."""
    key: KeyCarrier | None = None
    accept: str = "application/json"
    authenticated: bool = True
    security: str = ""
    """How the document wants a caller to authenticate, in words."""
    empty_at: str | None = None
    """Where in the data (dotted) a list stands whose emptiness means that nothing was found."""
    success: str | None = None
    """CEL over `body`: true when it worked, for an upstream that answers 200 to failures too."""
    templates: dict[str, Json] | None = None
    """Rendered for each call, where the arguments do not go into the request as they are."""
    defaults: dict[str, Json] = field(default_factory=dict)
    """What is sent, and what templates see, for an argument that is not given."""

    def facts(self, base_url: str) -> dict[str, str]:
        """Return where a call goes and how it is made, by name. It is accepted together with the contract.

        What an accepted fact says never changes unasked. A fact that is added, such as a new parameter, may be.
        """
        address = base_url + self.url
        known = {
            "request": f"{self.method} {address}",
            "authentication": (self.security or "as configured") if self.authenticated else "none",
            "body": "none" if self.body is None else f"{self.body.media_type} ({self.body.form})",
            "idempotency key": "none" if self.key is None else f"{self.key.place} {self.key.name}",
        }
        for field_ in () if self.body is None else self.body.fields:
            known[f"field {field_.name}"] = f"{field_.content_type} {field_.style} {field_.explode}"
        for each in self.parameters:
            known[f"parameter {each.argument}"] = _written(each)
            if self.templates is None and each.argument in self.defaults:
                known[f"default of {each.argument}"] = repr(self.defaults[each.argument])
        for each, value in self.fixed:
            known[f"fixed parameter {each.argument}"] = f"{_written(each)} = {value!r}"
        return known

    @property
    def is_done_when_gone(self) -> bool:
        """Return whether 404 for a repeated deletion means success. It does when the deletion promises no data."""
        return self.method == "DELETE" and self.contract.result.get("type") == "null"

    @property
    def name(self) -> str:
        """Return the operation's name without the tool's."""
        return self.contract.operation.partition(".")[2]


def _written(parameter: Parameter) -> str:
    """Return where a parameter stands, and how its value is written there."""
    style = "json" if parameter.as_json else parameter.style.value
    more = [word for word, is_so in (("explode", parameter.explode), ("reserved", parameter.allow_reserved)) if is_so]
    return f"{parameter.place} {parameter.name} ({', '.join((style, *more))})"

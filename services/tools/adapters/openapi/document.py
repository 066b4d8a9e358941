"""An OpenAPI document: read from JSON or YAML, known to be 3.0 or 3.1, with references resolved.

It must never fetch anything: a document that points into another one is told so, operation by operation.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import yaml

from triptych.json_schema import unescaped
from triptych.kernel.errors import ConfigurationError
from triptych.schemas import codec
from triptych.schemas.base import Json

DOCUMENT_MAX_BYTES: Final = 32 * 1_048_576
NODES_MAX: Final = 2_000_000
DEPTH_MAX: Final = 200
_READ: Final = codec.JsonLimits(max_bytes=DOCUMENT_MAX_BYTES, max_depth=450, max_values=5_000_000)
"""What is read at all. What is deeper than DEPTH_MAX is cut off, and told where an operation needs it."""
_STORED: Final = codec.JsonLimits(max_bytes=2**30, max_depth=DEPTH_MAX + 1, max_values=2**30, max_digits=1_000)
_TOLD_MAX_CHARS: Final = 300
_VERSION_MAX_CHARS: Final = 100
_REFERENCES_MAX: Final = 50
"""So many references in a row are a circle."""

METHODS = ("get", "put", "post", "delete", "options", "head", "patch", "trace")


class DocumentError(ConfigurationError):
    """The file is not an OpenAPI 3 document."""

    def __init__(self, origin: str, problem: str, cure: str) -> None:
        self.origin, self.problem, self.cure = origin, problem, cure
        super().__init__(f"{origin}: {problem}. {cure}")


class UnresolvedError(Exception):
    """A reference leads nowhere, or out of the document."""

    def __init__(self, reference: str, why: str) -> None:
        self.reference, self.why = reference, why
        super().__init__(f"the reference {reference} {why}")


@dataclass(frozen=True, slots=True)
class OperationEntry:
    """One operation as the document has it: an Operation Object with its path and its method."""

    path: str
    method: str
    item: dict[str, Json]
    """The path item around it."""
    operation: dict[str, Json]

    @property
    def title(self) -> str:
        return f"{self.method.upper()} {self.path}"


@dataclass(frozen=True, slots=True)
class OpenApiDocument:
    """A document of a version that is understood."""

    origin: str
    content: dict[str, Json]

    @classmethod
    def parse(cls, raw: bytes, origin: str) -> OpenApiDocument:
        """Read JSON or YAML. `origin` is a file or URL, for errors.

        Raises:
            DocumentError: it is too large, neither JSON nor YAML, or another kind of document.
        """
        if len(raw) > DOCUMENT_MAX_BYTES:
            raise DocumentError(origin, f"more than {DOCUMENT_MAX_BYTES} bytes", "Cut out the part that you need")
        content = _load(raw, origin)
        if not isinstance(content, dict):
            raise DocumentError(origin, "no OpenAPI document: not an object", "Name the document itself, not a page")
        _check_kind(content, origin)
        return cls(origin, content)

    def to_bytes(self) -> bytes:
        """Return the document as it is stored: JSON, since that is read in no time, in lines that a review can read."""
        return codec.encode(self.content, indent=True, limits=_STORED)

    @property
    def is_3_0(self) -> bool:
        return str(self.content["openapi"]).startswith("3.0")

    @property
    def version(self) -> str:
        """Return the API's version, as its author gave it."""
        info = self.content.get("info")
        return str(info.get("version", "1"))[:_VERSION_MAX_CHARS] if isinstance(info, dict) else "1"

    def places(self) -> Iterator[OperationEntry]:
        """Yield every operation that can be read, in the document's order."""
        for path, item in self._items():
            whole = self._whole(item)
            if isinstance(whole, dict):
                yield from (
                    OperationEntry(path, method, whole, whole[method])
                    for method in METHODS
                    if _is_operation(whole, method)
                )

    def unreadable(self) -> Iterator[tuple[OperationEntry, str]]:
        """Yield what is in the place of an operation and is not one, with the reason."""
        for path, item in self._items():
            whole = self._whole(item)
            if not isinstance(whole, dict):
                yield OperationEntry(path, "", {}, {}), whole
                continue
            for method in METHODS:
                if method in whole and not _is_operation(whole, method):
                    yield OperationEntry(path, method, {}, {}), f"it is {_kind(whole[method])}, not an object"

    def _items(self) -> Iterator[tuple[str, Json]]:
        paths = self.content.get("paths")
        # What begins with `x-` is the author's own.
        yield from (
            (path, item)
            for path, item in (paths.items() if isinstance(paths, dict) else ())
            if not path.startswith("x-")
        )

    def _whole(self, item: Json) -> dict[str, Json] | str:
        """Return a path item with what it refers to, or why it is none."""
        if not isinstance(item, dict):
            return f"its path is {_kind(item)}, not an object"
        try:
            return {**self.resolved(item), **{key: value for key, value in item.items() if key != "$ref"}}
        except UnresolvedError as error:
            return str(error)

    def at(self, reference: str) -> Json:
        """Return what a local reference (`#/components/...`) points to.

        Raises:
            UnresolvedError: it leaves the document, or nothing is there.
        """
        if not reference.startswith("#"):
            raise UnresolvedError(reference, "leads to another document; bundle them into one")
        found: Any = self.content
        for part in reference.removeprefix("#").removeprefix("/").split("/") if reference not in {"#", "#/"} else ():
            name = unescaped(part)
            if isinstance(found, dict) and name in found:
                found = found[name]
            elif isinstance(found, list) and name.isdecimal() and int(name) < len(found):
                found = found[int(name)]
            else:
                raise UnresolvedError(reference, "leads nowhere in this document")
        return found

    def resolved(self, value: Json) -> dict[str, Json]:
        """Return an object, or what it refers to, however many references lie between.

        Raises:
            UnresolvedError: a reference leads nowhere, out of the document or in a circle.
        """
        reference = ""
        for _ in range(_REFERENCES_MAX):
            if not isinstance(value, dict):
                raise UnresolvedError(reference, "leads to something that is not an object")
            if not isinstance(value.get("$ref"), str):
                return value
            reference = value["$ref"]
            value = self.at(reference)
        raise UnresolvedError(reference, "leads in a circle")


def _check_kind(content: dict[str, Json], origin: str) -> None:
    if "swagger" in content:
        raise DocumentError(
            origin,
            f"this is Swagger {content['swagger']}, and OpenAPI 3.0 or 3.1 is needed",
            "Convert it (`npx swagger2openapi FILE`, or https://converter.swagger.io) and add the result",
        )
    if str(content.get("kind", "")).startswith("discovery#") or "discoveryVersion" in content:
        raise _is_discovery(origin)
    version = content.get("openapi")
    if version is None and {"schemas", "basePath", "servicePath"} <= content.keys():
        raise _is_discovery(origin)
    if version is None:
        raise DocumentError(
            origin, "no OpenAPI document: it has no field `openapi`", "Name the document itself, such as openapi.json"
        )
    if not str(version).startswith(("3.0", "3.1")):
        raise DocumentError(
            origin, f"this is OpenAPI {version}, and 3.0 and 3.1 are understood", "Ask the API for one of these"
        )
    if not isinstance(content.get("paths", {}), dict):
        raise DocumentError(origin, "`paths` is not an object", "Check the document with an OpenAPI linter")


def _is_discovery(origin: str) -> DocumentError:
    return DocumentError(
        origin,
        "this is a Google API discovery document, and not OpenAPI",
        "Convert it to OpenAPI 3 (for example with `google-discovery-to-swagger` and `swagger2openapi`)",
    )


# JSON and YAML


class _Loader(yaml.CSafeLoader):  # type: ignore[misc]
    """YAML 1.2 as OpenAPI wants it: what looks like a date, `yes`, `no` or `12:30` is text. The C loader, for speed."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, Any]]] = {}  # noqa: RUF012 - PyYAML's own way


def _integer(loader: _Loader, node: Any) -> int | str:
    """Return an integer; text where it has more digits than any has, for to read it would take long."""
    return loader.construct_yaml_int(node) if len(node.value) <= _TOLD_MAX_CHARS else str(node.value)[:_TOLD_MAX_CHARS]


_Loader.add_constructor("tag:yaml.org,2002:int", _integer)

_CORE = {
    "tag:yaml.org,2002:bool": (r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    "tag:yaml.org,2002:null": (r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    "tag:yaml.org,2002:int": (r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$", "-+0123456789"),
    "tag:yaml.org,2002:float": (
        r"^(?:[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+)$",
        "-+0123456789.",
    ),
    "tag:yaml.org,2002:merge": (r"^(?:<<)$", "<"),
}
for _tag, (_pattern, _first) in _CORE.items():
    _Loader.add_implicit_resolver(_tag, re.compile(_pattern), list(_first))


def _load(raw: bytes, origin: str) -> Json:
    if raw.lstrip()[:1] in {b"{", b"["}:
        try:
            loaded = codec.decode(raw, limits=_READ, unique_names=False)
        except codec.InvalidJson as error:
            # YAML is a superset of JSON, and a flow mapping may open a YAML file.
            problem = f"not JSON: {error}"
        else:
            if _can_be_stored(loaded):
                return loaded
            return _Plain(origin).of(loaded)
    else:
        problem = ""
    try:
        loaded = yaml.load(raw, Loader=_Loader)  # noqa: S506 - a subclass of the safe loader
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        problem = problem or "not YAML: " + " ".join(str(error).split())[:_TOLD_MAX_CHARS]
        raise DocumentError(origin, problem, "Check that the whole document was saved") from None
    return _Plain(origin).of(loaded)


def _can_be_stored(content: Json) -> bool:
    if not codec.fits_64_bits(content):
        return False
    try:
        codec.encode(content, limits=_STORED)
    except codec.InvalidJson:
        return False
    return True


class _Plain:
    """JSON values only, with texts as keys, within limits: a few nested aliases could fill the memory otherwise.

    What JSON has no form for is replaced by a reference that leads nowhere, so that it costs the operations that need
    it and no others.
    """

    def __init__(self, origin: str) -> None:
        self._origin = origin
        self._known: dict[int, _Sized] = {}
        """Of each list and object, by identity: an alias is the same object again, so it is converted only once."""
        self._open: set[int] = set()
        """What is being looked at: an alias of it leads in a circle."""

    def of(self, value: Any) -> Json:
        """Return the value as JSON.

        Raises:
            DocumentError: it has more values than may be once aliases are written out.
        """
        return self._sized(value, 0).value

    def _sized(self, value: Any, depth: int) -> _Sized:
        match value:
            case None | bool() | str():
                return _Sized(value)
            case int() | float():
                return _Sized(_number(value))
            case dict() | list():
                pass
            case _:
                return _unusable(f"a-{type(value).__name__}-has-no-form-in-json")
        known = self._known.get(id(value))
        if id(value) in self._open:
            return _unusable("an-alias-of-yaml-leads-in-a-circle")
        if depth >= DEPTH_MAX or (known is not None and depth + known.height > DEPTH_MAX):
            return _unusable(f"nested-deeper-than-{DEPTH_MAX}-levels")
        if known is None:
            self._open.add(id(value))
            known = self._known[id(value)] = self._container(value, depth)
            self._open.discard(id(value))
        return known

    def _container(self, value: dict[Any, Any] | list[Any], depth: int) -> _Sized:
        parts = [self._sized(item, depth + 1) for item in (value.values() if isinstance(value, dict) else value)]
        size = 1 + sum(each.size for each in parts)
        if size > NODES_MAX:
            problem = f"more than {NODES_MAX} values"
            raise DocumentError(self._origin, problem, "Use fewer aliases, or cut out the part that you need")
        items = [each.value for each in parts]
        plain = dict(zip(map(str, value), items, strict=True)) if isinstance(value, dict) else items
        return _Sized(plain, size, 1 + max((each.height for each in parts), default=0))


@dataclass(frozen=True, slots=True)
class _Sized:
    """A value, how many values are in it once aliases are written out, and how deep it is."""

    value: Json
    size: int = 1
    height: int = 0


def _number(value: float) -> Json:
    """Convert a number as most readers of JSON do: beyond 64 bits to a double, and beyond a double to text."""
    if codec.fits_64_bits(value) and math.isfinite(value):
        return value
    try:
        double = float(value)
    except OverflowError:
        return str(value)[:_TOLD_MAX_CHARS]
    return double if math.isfinite(double) else str(value)


def _unusable(why: str) -> _Sized:
    return _Sized({"$ref": f"#/{why}"}, height=1)


def _is_operation(item: dict[str, Json], method: str) -> bool:
    return isinstance(item.get(method), dict)


def _kind(value: Json) -> str:
    return "null" if value is None else f"a {type(value).__name__}"

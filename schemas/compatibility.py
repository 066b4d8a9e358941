"""What in a changed JSON Schema breaks those who still speak the previous version. Pure.

A service that was deployed earlier reads new messages, and its messages are still read. So a required field stays,
and a new field is never required. People and clients write closed objects (unknown fields are errors), so these keep
all their fields.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

Schema = dict[str, Any]

_LOWER_BOUNDS = ("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties")
_UPPER_BOUNDS = ("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties")


@dataclass(frozen=True, slots=True)
class Break:
    """A change that somebody who speaks the previous version would notice."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path or '(the message)'}: {self.message}"


def breaks(old: Schema, new: Schema) -> list[Break]:
    """Return everything in `new` that breaks a reader or a writer of `old`. Both stand on their own."""
    return list(_Comparison(old, new).compare(old, new, ""))


class _Comparison:
    """Compares two documents node by node, each with its own definitions."""

    def __init__(self, old: Schema, new: Schema) -> None:
        self._old, self._new = old, new
        self._seen: set[tuple[str, str]] = set()

    def compare(self, old: Schema, new: Schema, path: str) -> Iterator[Break]:
        old_variants, new_variants = _variants(old, self._old), _variants(new, self._new)
        for name, old_variant in old_variants.items():
            new_variant = new_variants.get(name)
            if new_variant is None:
                yield Break(path, f"`{name}` is not accepted any more (now: {', '.join(new_variants)})")
            elif (name, path) not in self._seen:
                self._seen.add((name, path))
                yield from self._compare_one(old_variant, new_variant, path)

    def _compare_one(self, old: Schema, new: Schema, path: str) -> Iterator[Break]:
        yield from _compare_values(old, new, path)
        yield from _compare_bounds(old, new, path)
        yield from self._compare_fields(old, new, path)
        for keyword in ("items", "additionalProperties"):
            if isinstance(old.get(keyword), dict) and isinstance(new.get(keyword), dict):
                yield from self.compare(old[keyword], new[keyword], f"{path}[]")

    def _compare_fields(self, old: Schema, new: Schema, path: str) -> Iterator[Break]:
        old_fields, new_fields = old.get("properties", {}), new.get("properties", {})
        old_required, new_required = set(old.get("required", ())), set(new.get("required", ()))
        closed = new.get("additionalProperties") is False
        for name, field in old_fields.items():
            at = f"{path}.{name}".removeprefix(".")
            if name not in new_fields:
                if closed:
                    yield Break(at, "the field is gone, and those who still send it are refused")
                elif name in old_required:
                    yield Break(at, "the field is gone, and those who still read it require it")
                continue
            if name in new_required - old_required:
                yield Break(at, "the field has become required, and those who do not send it are refused")
            if name in old_required - new_required and not closed:
                yield Break(at, "the field has become optional, and those who still read it require it")
            yield from self.compare(field, new_fields[name], at)
        for name in sorted(new_required - set(old_fields)):
            yield Break(f"{path}.{name}".removeprefix("."), "the field is new and required; no sender has it yet")


def _compare_values(old: Schema, new: Schema, path: str) -> Iterator[Break]:
    if "enum" in new or "const" in new:
        allowed = new.get("enum", [new.get("const")])
        before = old.get("enum", [old["const"]] if "const" in old else None)
        if before is None:
            yield Break(path, f"only {allowed} is accepted now")
        else:
            for value in before:
                if value not in allowed:
                    yield Break(path, f"the value {value!r} is gone (now: {allowed})")
    if "pattern" in new and new["pattern"] != old.get("pattern"):
        yield Break(path, f"the pattern has changed from {old.get('pattern')} to {new['pattern']}")


def _compare_bounds(old: Schema, new: Schema, path: str) -> Iterator[Break]:
    for keyword in (*_LOWER_BOUNDS, *_UPPER_BOUNDS):
        if keyword not in new or new[keyword] == old.get(keyword):
            continue
        before = old.get(keyword)
        tighter = before is None or (new[keyword] > before if keyword in _LOWER_BOUNDS else new[keyword] < before)
        if tighter:
            yield Break(path, f"{keyword} has become stricter: {before} -> {new[keyword]}")


def _variants(node: Schema, document: Schema) -> dict[str, Schema]:
    """Return the alternatives of a node, by what tells them apart: the kind of value or, for models, the name."""
    if reference := node.get("$ref"):
        name = str(reference).rpartition("/")[2]
        definition = document["$defs"][name]
        return {name if "properties" in definition else _kind(definition): definition}
    alternatives = node.get("anyOf") or node.get("oneOf")
    if alternatives:
        return {name: variant for one in alternatives for name, variant in _variants(one, document).items()}
    return {_kind(node): node}


def _kind(node: Schema) -> str:
    kind = node.get("type", "anything")
    return kind if isinstance(kind, str) else "/".join(sorted(kind))

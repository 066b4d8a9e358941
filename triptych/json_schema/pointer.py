"""References within a schema: JSON pointers in the fragment of a URI (RFC 6901, section 6)."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import unquote

from triptych.schemas import Json


def referred(root: Json, reference: str) -> Json:
    """Return what a reference such as `#/$defs/Name` leads to; None where it leads out of the schema or nowhere."""
    if reference != "#" and not reference.startswith("#/"):
        return None
    found = root
    for name in names_of(reference):
        if isinstance(found, Mapping) and name in found:
            found = found[name]
        elif isinstance(found, list) and name.isdecimal() and int(name) < len(found):
            found = found[int(name)]
        else:
            return None
    return found


def names_of(pointer: str) -> list[str]:
    """Return the names and indexes of a pointer, such as `/$defs/Name`."""
    return [unescaped(part) for part in pointer.split("/")[1:]]


def unescaped(part: str) -> str:
    """Return one name or index of a pointer as the value has it."""
    return unquote(part).replace("~1", "/").replace("~0", "~")

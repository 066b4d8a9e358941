"""Names of operations: what the document calls them, in the form that a contract's name has.

The same document always gives the same names, whatever part of it is used.
"""

from __future__ import annotations

import re

from triptych.tools.openapi.document import Place

NAME_MAX_CHARS = 63
_LOWER_UPPER = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_ACRONYM = re.compile(r"(?<=[A-Z])(?=[A-Z][a-z])")
_OTHER = re.compile(r"[^a-z0-9]+")


def snake(text: str) -> str:
    """`listCustomers`, `Customers/list` or `get-HTTPStatus` as `list_customers` and the like; may be empty."""
    split = _ACRONYM.sub("_", _LOWER_UPPER.sub("_", text))
    return _OTHER.sub("_", split.lower()).strip("_")


def wanted_name(place: Place) -> str:
    """The operation's id, or its method and path, as a name; it may be taken."""
    stated = place.operation.get("operationId")
    name = snake(stated) if isinstance(stated, str) else ""
    name = name or snake(f"{place.method} {place.path}") or place.method
    if not name[0].isalpha():
        name = f"{place.method}_{name}"
    return name[:NAME_MAX_CHARS].rstrip("_")


def names(places: list[Place]) -> list[str]:
    """A name for each operation. Where two want the same one the first has it, and the next one is told by number."""
    taken: set[str] = set()
    given = []
    for place in places:
        name = wanted_name(place)
        number = 2
        free = name
        while free in taken:
            ending = f"_{number}"
            free = name[: NAME_MAX_CHARS - len(ending)] + ending
            number += 1
        taken.add(free)
        given.append(free)
    return given

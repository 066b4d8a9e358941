"""Names of operations: what the document calls them, in the form that a contract's name has.

The same document always gives the same names, also when only a part of it is used.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter

from triptych.tools.adapters.openapi.document import OperationEntry

NAME_MAX_CHARS = 63
_HASH_CHARS = 8
_LOWER_UPPER = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_ACRONYM = re.compile(r"(?<=[A-Z])(?=[A-Z][a-z])")
_OTHER = re.compile(r"[^a-z0-9]+")


def snake(text: str) -> str:
    """Convert `listCustomers` or `Customers-list` to snake case, such as `list_customers`. The result may be empty."""
    split = _ACRONYM.sub("_", _LOWER_UPPER.sub("_", text))
    return _OTHER.sub("_", split.lower()).strip("_")


def wanted_name(place: OperationEntry) -> str:
    """Return the operation's id, or its method and path, as a name; others may want it too."""
    stated = place.operation.get("operationId")
    name = snake(stated) if isinstance(stated, str) else ""
    name = name or snake(f"{place.method} {place.path}") or place.method
    if not name[0].isalpha():
        name = f"{place.method}_{name}"
    return name[:NAME_MAX_CHARS].rstrip("_")


def names(places: list[OperationEntry]) -> list[str]:
    """Return a name for each operation: what it wants, where no other wants it.

    Where several do, the name of each ends in a hash of its method and path. So no name depends on the order of a
    document, and what is added to one never gets a name that meant something else.
    """
    wanted = [wanted_name(place) for place in places]
    counts = Counter(wanted)
    given = [name if counts[name] == 1 else _hashed(name, place) for name, place in zip(wanted, places, strict=True)]
    if len(set(given)) == len(given):
        return given
    # One wants a name that another got by its hash: then all have one, and no two have the same method and path.
    return [_hashed(name, place) for name, place in zip(wanted, places, strict=True)]


def _hashed(name: str, place: OperationEntry) -> str:
    digest = hashlib.sha256(f"{place.method.upper()} {place.path}".encode(errors="replace")).hexdigest()
    ending = f"_{digest[:_HASH_CHARS]}"
    return name[: NAME_MAX_CHARS - len(ending)].rstrip("_") + ending

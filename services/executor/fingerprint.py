"""What makes two JSON values the same: what they say, and not how they are written. Pure.

The order of names does not count, and `1.0` is `1`, as in JSON Schema and in Postgres. Everything else counts.
"""

from __future__ import annotations

import hashlib

from triptych.schemas import Json, Task, codec

SIZE_BYTES = 12


def fingerprint(*values: Json) -> bytes:
    """Return a hash that is the same for values with the same meaning."""
    written = codec.encode(canonical(values), sort_keys=True)
    return hashlib.blake2b(written, digest_size=SIZE_BYTES).digest()


def fingerprint_of(task: Task) -> bytes:
    """Hash what a repeat of a task has in common with it: playbook, principal and input. Tenant and id are its key."""
    return fingerprint(task.playbook, task.principal, task.input)


def canonical(value: Json) -> Json:
    """Return a form that is the same for a value and for what Postgres makes of it."""
    match value:
        case dict():
            return {name: canonical(item) for name, item in value.items()}
        case list() | tuple():
            return [canonical(item) for item in value]
        case float() if value.is_integer():
            return int(value)
        case _:
            return value

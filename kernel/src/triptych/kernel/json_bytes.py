"""JSON of whatever JSON can say: orjson is quick, and refuses integers beyond 64 bits, which a task may hold.

An answer that cannot be written for a number in it would be a defect, told in words that help nobody.
"""

from __future__ import annotations

import json

import orjson

from triptych.schemas import Json


def json_bytes(value: Json, *, sort_keys: bool = False) -> bytes:
    """Compact JSON in UTF-8. Sorted, the same value gives the same bytes."""
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS if sort_keys else 0)
    except orjson.JSONEncodeError:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=sort_keys).encode()

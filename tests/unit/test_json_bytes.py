"""JSON of whatever a task may hold, wherever it is written."""

from __future__ import annotations

import json

import orjson
import pytest

from triptych.kernel.json_bytes import json_bytes
from triptych.kernel.models.prompts import user_message
from triptych.schemas import Effect
from triptych.tools import Tool
from triptych.tools.ledger import arguments_hash
from triptych.tools.testing import request_for

HUGE = 10**25


@pytest.mark.parametrize("value", [{"b": [1, None, 0.5], "a": "\u20ac\n"}, [], "text", 2**64 - 1])
def test_what_orjson_can_write_is_written_as_orjson_writes_it(value):
    assert json_bytes(value) == orjson.dumps(value)
    assert json_bytes(value, sort_keys=True) == orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


def test_an_integer_beyond_64_bits_is_written_whole():
    assert json_bytes({"b": HUGE, "a": "\u20ac"}, sort_keys=True) == f'{{"a":"\u20ac","b":{HUGE}}}'.encode()


def test_a_model_is_told_of_a_task_with_an_integer_beyond_64_bits():
    assert json.loads(user_message({"input": {"order": HUGE}}, ()))["input"] == {"order": HUGE}


def test_a_write_with_an_integer_beyond_64_bits_has_a_hash_of_its_own():
    made = Tool("desk")

    @made.operation(effect=Effect.IDEMPOTENT)
    async def close(order: int) -> int:
        """Closes."""
        return order

    hashes = {arguments_hash(request_for(made, "close", {"order": order})) for order in (HUGE, HUGE, HUGE + 1)}
    assert len(hashes) == 2

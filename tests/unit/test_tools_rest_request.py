"""From arguments to a request: what cannot stand where it belongs is refused before anything is sent."""

from __future__ import annotations

import httpx
import pytest

from triptych.schemas import Contract, Effect, ErrorCode
from triptych.tools import ToolFailure
from triptych.tools.rest.endpoint import Endpoint, Parameter, Place, Style
from triptych.tools.rest.request import build

CONTRACT = Contract(
    operation="crm.note", description="Notes.", arguments={"type": "object"}, result={}, effect=Effect.ONCE
)
NOTE = Endpoint(
    CONTRACT, "POST", "/notes", (Parameter("author", "x-author", Place.HEADER, Style.SIMPLE, explode=False),)
)


@pytest.mark.parametrize("author", ["Jörg", "山田", "ana\r\nx-admin: yes", "ana\x00"])
async def test_what_cannot_be_sent_in_a_header_is_refused_as_certainly_not_done(author: str) -> None:
    async with httpx.AsyncClient() as client:
        with pytest.raises(ToolFailure) as refused:
            build(client, NOTE, "https://crm.test", {"author": author}, "key")
    assert (refused.value.code, refused.value.undone) == (ErrorCode.INVALID_ARGUMENTS, True)
    assert "arguments.author" in refused.value.message


async def test_a_header_carries_a_name() -> None:
    async with httpx.AsyncClient() as client:
        request = build(client, NOTE, "https://crm.test", {"author": "Ana M."}, "key")
    assert request.headers["x-author"] == "Ana M."

"""A request that ends the worker that reads it is dead-lettered unread, and the others are served."""

from __future__ import annotations

import os
import subprocess
import sys
from base64 import b64decode
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from ends import Ends, call_request, open_ends
from parrot import settings_of

from triptych.kernel.postgres.database import connect
from triptych.schemas import CallRequest, DeadLetter, ErrorCode

PROGRAM = Path(__file__).with_name("deadly_reader.py")
STARTS_WITHIN_S = 400
"""Several starts of a process and several sessions that end, on a busy machine."""


@pytest.fixture
async def ends(servers, prefix, database, create_topics) -> AsyncIterator[Ends]:
    await create_topics("calls.echo", "withdrawals", "results", "dead-letters")
    settings = settings_of(servers.kafka, database, prefix)
    async with (
        await connect(settings.postgres.get_secret_value(), "test") as pool,
        open_ends(settings, pool, "dead-letters") as ends,
    ):
        yield ends


def start(ends: Ends) -> subprocess.Popen[bytes]:
    env = os.environ | {
        "TRIPTYCH_KAFKA": ends.settings.kafka,
        "TRIPTYCH_POSTGRES": ends.settings.postgres.get_secret_value(),
        "TRIPTYCH_TOPIC_PREFIX": ends.settings.topic_prefix,
        "TRIPTYCH_INSTANCE": "deadly-reader",
        "TRIPTYCH_SESSION_TIMEOUT_MS": "6000",
        "TRIPTYCH_LOG_LEVEL": "warning",
    }
    return subprocess.Popen([sys.executable, str(PROGRAM)], env=env)


async def send(ends: Ends, request: CallRequest) -> None:
    """Publish a request as the executor does, with its headers."""
    await ends.producer.send_and_wait(
        ends.settings.topic("calls.echo"),
        request.to_bytes(),
        key=str(request.run_id).encode(),
        partition=request.partition,
        headers=[("ce_id", request.request_id.encode()), ("ce_tenant", b"acme")],
    )


@pytest.mark.parametrize("word", ["DEADLY", "EXHAUSTING"])
async def test_a_request_that_ends_its_reader_is_answered_unread_and_the_others_are_served(
    ends: Ends, eventually: Any, word: str
) -> None:
    innocents = [call_request() for _ in range(6)]
    odd = call_request(arguments={"value": word})
    for request in (*innocents[:3], odd, *innocents[3:]):
        await send(ends, request)
    process = start(ends)
    deaths = 0

    def done() -> bool:
        nonlocal process, deaths
        if process.poll() is not None:
            deaths += 1
            process = start(ends)
        return bool(buried()) and all(ends.answers_to(request) for request in (*innocents, odd))

    def buried() -> list[str]:
        letters = [DeadLetter.model_validate_json(record.value) for record in ends.others]
        return [letter.reason.code for letter in letters if odd.request_id.encode() in b64decode(letter.value_base64)]

    try:
        await eventually(done, within_s=STARTS_WITHIN_S)
    finally:
        process.kill()
        process.wait()
    assert deaths <= 5
    (answer, *_) = ends.answers_to(odd)
    assert answer.result.error.code is ErrorCode.CONTRACT_VIOLATION
    assert all(ends.answers_to(request)[0].result.error is None for request in innocents)
    assert buried() == ["deadly_record" if word == "DEADLY" else "internal"]

"""Waits for the executor's answer to a command. It sends none."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from uuid import UUID

from triptych.client import JournalEntry, Operator

_POLL_S = 0.1


async def wait_for_answers(operator: Operator, run_id: UUID, command_id: str, within_s: float) -> list[JournalEntry]:
    """Wait for the events of a run that answer a command. None come when no executor answers in time."""
    with suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            while True:
                journal = await operator.journal(run_id)
                if answers := [entry for entry in journal if entry.data.get("command_id") == command_id]:
                    return answers
                await asyncio.sleep(_POLL_S)
    return []

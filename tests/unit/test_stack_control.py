"""Asking the supervisor, when it does not answer or fails."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

import pytest
import structlog

from triptych.embedded import control
from triptych.embedded.errors import FailedError, NoAnswerError, NotRunningError
from triptych.embedded.layout import Layout


def test_a_supervisor_that_is_busy_is_told_from_one_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = Layout.at(tmp_path)
    with pytest.raises(NotRunningError):
        control.ask(layout, {"do": "status"})
    monkeypatch.setattr(control, "_TIMEOUT_S", 0.05)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as busy:
        busy.bind(str(control.socket_path(layout)))
        busy.listen()
        with pytest.raises(NoAnswerError, match=r"has not answered for 0\.05 s.*supervisor\.log"):
            control.ask(layout, {"do": "status"})


async def test_an_error_of_its_own_is_told_and_the_next_request_is_answered(tmp_path: Path) -> None:
    layout = Layout.at(tmp_path)

    async def answer(request: dict[str, Any]) -> dict[str, Any]:
        return {"is": request["what"]}

    async with control.serve(layout, answer, structlog.stdlib.get_logger()):
        with pytest.raises(FailedError, match=r"KeyError: 'what'.*supervisor\.log"):
            await asyncio.to_thread(control.ask, layout, {"do": "status"})
        assert await asyncio.to_thread(control.ask, layout, {"what": "well"}) == {"is": "well"}

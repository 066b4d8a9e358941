"""Asking the supervisor, when it does not answer."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from triptych.cli.stack import control
from triptych.cli.stack.errors import NoAnswerError, NotRunningError
from triptych.cli.stack.layout import Layout


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

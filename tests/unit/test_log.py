"""What a log never holds, and that nobody can keep a process busy with what it is made to log."""

from __future__ import annotations

import pytest

from triptych.kernel.log import mask_secrets


def masked(text: str) -> str:
    return mask_secrets(None, "warning", {"error": text})["error"]


def test_the_password_of_a_dsn_is_masked_wherever_it_stands() -> None:
    text = "cannot reach postgresql://triptych:hunter2@db:5432/x, nor (amqp://a:b:c/d@host)"
    assert masked(text) == "cannot reach postgresql://triptych:***@db:5432/x, nor (amqp://a:***@host)"


@pytest.mark.timeout(60)
@pytest.mark.parametrize("piece", ["n", "a://", "a://b:", "a://b:c"])
def test_a_long_text_that_looks_like_a_dsn_takes_no_minutes(piece: str) -> None:
    text = piece * (200_000 // len(piece)) + " https://errors.example"
    assert masked(text) == text

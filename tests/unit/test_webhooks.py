"""Standard Webhooks: which keys are taken, what a signature covers, and that no header ends in an exception."""

from __future__ import annotations

import base64
import string
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import SecretStr
from standardwebhooks import Webhook

from triptych.embedded.layout import Layout
from triptych.kernel.errors import ConfigurationError
from triptych.tools.runtime.webhooks import Signed, Verifier

KEY = b"a key of four and twenty bytes"
SECRET = f"whsec_{base64.b64encode(KEY).decode()}"
NOW = datetime(2026, 11, 30, tzinfo=UTC)
STATED = str(int(NOW.timestamp()))
BODY = b'{"state": "done"}'
HERE, THERE = "https://tools.example/callbacks/here", "https://tools.example/callbacks/there"


def signature(body: bytes, *, secret: str = SECRET) -> str:
    """As the library of senders signs."""
    # It takes the local time of a moment for UTC.
    return Webhook(secret).sign("msg_1", NOW.replace(tzinfo=None), body.decode())


def headers(signed: str) -> dict[str, str]:
    return {"webhook-id": "msg_1", "webhook-timestamp": STATED, "webhook-signature": signed}


@pytest.mark.parametrize("length", [24, 32, 64])
def test_a_key_of_the_specification_is_the_same_for_us_and_for_the_libraries_of_senders(length: int) -> None:
    secret = f"whsec_{base64.b64encode(bytes(range(250 - length, 250))).decode()}"
    verifier = Verifier(SecretStr(secret))
    assert verifier.problem(headers(signature(BODY, secret=secret)), BODY, NOW) is None


@pytest.mark.parametrize(
    ("secret", "told"),
    [
        ("", "it is empty"),
        ("whsec_", "0 bytes"),
        (f"whsec_{base64.b64encode(b'x' * 23).decode()}", "23 bytes"),
        (f"whsec_{base64.b64encode(b'x' * 65).decode()}", "65 bytes"),
        (f"whsec_{base64.urlsafe_b64encode(bytes([251]) * 24).decode()}", "not base64 with"),
        (f"whsec_{'A' * 31}!", "not base64 with"),
        (f"whsec_{'A' * 33}", "not base64 with"),
        ("whsec_" + "ä" * 32, "not base64 with"),
        (f"{SECRET} whsec_new", "not base64|bytes"),
    ],
)
def test_a_key_that_a_sender_could_not_use_is_refused_with_the_cure(secret: str, told: str) -> None:
    with pytest.raises(ConfigurationError, match=told) as refused:
        Verifier(SecretStr(secret))
    assert "openssl rand -base64 24" in str(refused.value)
    assert "AAAA" not in str(refused.value)


def test_every_secret_that_the_stack_makes_up_is_a_key(tmp_path: Path) -> None:
    layout = Layout.at(tmp_path / "data")
    for number in range(50):
        secret = f"whsec_{layout.secret(f'one-{number}')}"
        assert set(secret.removeprefix("whsec_")) <= set(string.ascii_letters + string.digits)
        assert len(base64.b64decode(secret.removeprefix("whsec_"))) == 24
        signed = headers(signature(BODY, secret=secret))
        assert Verifier(SecretStr(secret)).problem(signed, BODY, NOW) is None


def test_a_signature_may_cover_the_address_and_then_fits_no_other() -> None:
    verifier = Verifier(SecretStr(SECRET))
    signed = headers(signature(HERE.encode() + b"." + BODY))
    checked = verifier.check(signed, BODY, NOW, HERE)
    assert isinstance(checked, Signed)
    assert checked.names_address
    assert verifier.check(signed, BODY, NOW, THERE) == "no signature fits"
    plain = verifier.check(headers(signature(BODY)), BODY, NOW, HERE)
    assert isinstance(plain, Signed)
    assert not plain.names_address
    assert plain == verifier.check(headers(signature(BODY)), BODY, NOW, THERE), "the same message, wherever it comes"


odd = st.text(st.characters(codec="latin-1"), max_size=40) | st.sampled_from(("1" * 400, "1" * 5_000, "-1", "1e9", "²"))


@given(odd, odd, odd, st.binary(max_size=30))
@example("a", "1" * 5_000, "v1,x", b"")
@example("a", "²", "v1,x", b"")
@example("a", STATED, "v1,x " * 10_000, b"")
@example("a" * 60_000, STATED, "v1,x", b"")
@example("\xff", STATED, "v1,\xff", b"\xff")
@example("a", STATED, signature(BODY).removeprefix("v1,"), BODY)
@example("a", STATED, signature(BODY).replace("v1,", "v2,"), BODY)
def test_whatever_stands_in_the_headers_a_check_ends_in_a_verdict(
    message_id: str, stated: str, signed: str, body: bytes
) -> None:
    odd_headers = {"webhook-id": message_id, "webhook-timestamp": stated, "webhook-signature": signed}
    assert isinstance(Verifier(SecretStr(SECRET)).check(odd_headers, body, NOW, HERE), str)
    for missing in odd_headers:
        left = {name: value for name, value in odd_headers.items() if name != missing}
        assert isinstance(Verifier(SecretStr(SECRET)).check(left, body, NOW), str)

"""Messages from arguments: nothing that an agent says becomes a header, and what it says arrives as it was said."""

from __future__ import annotations

from email import policy
from email.header import decode_header, make_header
from email.message import EmailMessage, Message
from email.parser import BytesParser
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from triptych.kernel.errors import ConfigurationError
from triptych.schemas import ErrorCode
from triptych.tools import Source, ToolFailure
from triptych.tools.adapters.mail import tool
from triptych.tools.adapters.mail.message import message_id, message_of
from triptych.tools.adapters.mail.options import MailOptions
from triptych.tools.adapters.mail.smtp import wait_ms

OPTIONS = MailOptions(
    host="h", sender="support@ledgerline.example", sender_name='Exämple, "Support"', allow=("*@acme.example",)
)
LETTER: dict[str, Any] = {"to": ["ana@acme.example"], "subject": "Your order", "text": "It is on its way."}
HEADERS = {
    "From", "To", "Cc", "Reply-To", "In-Reply-To", "References", "Subject", "Message-ID", "Date", "Auto-Submitted",
    "MIME-Version", "Content-Type", "Content-Transfer-Encoding",
}  # fmt: skip


def raw(**changes: Any) -> bytes:
    return message_of(LETTER | changes, "<id@x>", OPTIONS)


def read(encoded: bytes) -> Message:
    """As a mail program does: by RFC 5322, which knows nothing of encoded words, and those decoded after."""
    return BytesParser(policy=policy.compat32).parsebytes(encoded)


def subject_of(encoded: bytes) -> str:
    return str(make_header(decode_header(str(read(encoded)["Subject"]))))


lines = st.text(st.characters(exclude_categories=("Cs", "Cc", "Zl", "Zp")), min_size=1, max_size=300)


@given(lines)
@example("=?utf-8?q?=0ABcc=3A?= x")
@example("=?utf-8?q?Invoice=0D=0AReply-To=3A_attacker=40evil.example=0D=0AX-A=3A_b?=")
@example("=?utf-8?q?Hi=0D=0A=0D=0AInjected_body?=")
@example("=?utf-8?b?SGkNClJlcGx5LVRvOiBhQGV2aWwuZXhhbXBsZQ==?=")
@example("Re: =?utf-8?q?broken")
@example("=?" * 150)
@example("x" * 300)
@example("ä" * 300)
@example("Größe =?utf-8?q?x?= & Preis")
@example(" leading and trailing ")
@example("a  b\u00a0c\u200bd")
@example("👩‍👩‍👧" * 30)
def test_a_subject_arrives_as_it_was_said_and_makes_no_other_header(subject: str) -> None:
    encoded = raw(subject=subject)
    found = read(encoded)
    assert subject_of(encoded) == subject
    assert set(found.keys()) <= HEADERS
    assert len(found.keys()) == len(set(found.keys()))
    assert found.get_payload() == read(raw()).get_payload()
    assert all(len(line) <= 998 for line in encoded.splitlines())


@given(st.text(max_size=300))
@example("one\r\n.\r\nMAIL FROM:<eve@evil.example>\r\n")
@example("one\n.\r.\r\n.\n")
@example("nul \0 and bell \a and \x7f")
@example("\ud800")
@example("line\u2028separator\u0085next")
@example("x" * 5_000)
def test_a_text_is_a_message_of_seven_bits_or_is_refused(text: str) -> None:
    if not text:
        return
    if any("\ud800" <= char <= "\udfff" for char in text):
        with pytest.raises(ToolFailure) as refused:
            raw(text=text, html=text)
        assert (refused.value.code, refused.value.undone) == (ErrorCode.INVALID_ARGUMENTS, True)
        return
    encoded = raw(text=text, html=text)
    assert encoded.isascii()
    assert b"\0" not in encoded
    assert all(len(line) <= 998 for line in encoded.splitlines())
    message = BytesParser(policy=policy.default).parsebytes(encoded)
    assert isinstance(message, EmailMessage)
    part = message.get_body(("plain",))
    assert part is not None
    assert "".join(part.get_content().split()) == "".join(text.split())


@pytest.mark.parametrize("length", [10, 80, 280])
def test_the_id_of_what_is_answered_stands_there_literally_however_long(length: int) -> None:
    answered = f"<{'a' * length}=?utf-8?q?b?=@acme.example>"
    found = read(raw(in_reply_to=answered))
    assert (found["In-Reply-To"], found["References"]) == (answered, answered)


@pytest.mark.parametrize(
    "address",
    [
        "=?utf-8?q?a=0D=0AX-Evil=3A1?=@acme.example",
        "a=?utf-8?q?=0D=0A?=b@acme.example",
        "a..b@acme.example",
        ".a@acme.example",
        "a.@acme.example",
    ],
)
@pytest.mark.parametrize("where", ["to", "cc", "reply_to"])
def test_an_address_that_mail_programs_would_decode_or_refuse_is_refused(where: str, address: str) -> None:
    with pytest.raises(ToolFailure) as refused:
        raw(**{where: address if where == "reply_to" else [address]})
    assert refused.value.code is ErrorCode.INVALID_ARGUMENTS
    assert refused.value.undone
    assert where in refused.value.message


@pytest.mark.parametrize("char", ["\n", "\r", "\0", "\x1c", "\x7f", "\u0085", "\u2028", "\u2029"])
@pytest.mark.parametrize("where", ["subject", "in_reply_to", "reply_to"])
def test_what_ends_a_line_somewhere_is_refused_by_the_contract(where: str, char: str) -> None:
    operation = tool(Source("mail", {"host": "h", "sender": "a@b.example", "allow": ["*"]})).operations["mail.send"]
    whole = {
        "subject": f"Hi{char}Bcc: eve@evil.example",
        "in_reply_to": f"<a{char}b>",
        "reply_to": f"a{char}@b.example",
    }
    operation.check_arguments(LETTER)
    with pytest.raises(ToolFailure) as refused:
        operation.check_arguments(LETTER | {where: whole[where]})
    assert refused.value.code is ErrorCode.INVALID_ARGUMENTS


def test_a_name_of_the_sender_that_would_be_decoded_is_refused_when_the_tool_is_made() -> None:
    for key in ("sender_name", "sender"):
        value = "=?utf-8?q?Eve?=" + ("@b.example" if key == "sender" else "")
        with pytest.raises(ConfigurationError, match=f"{key} holds"):
            tool(Source("mail", {"host": "h", "sender": "a@b.example", "allow": ["*"], key: value}))


def test_the_message_id_is_made_from_the_key_alone() -> None:
    assert message_id("a@b.example", "k-1") == message_id("a@b.example", "k-1") != message_id("a@b.example", "k-2")
    assert message_id("a@b.example", "k\r\n<x>").isprintable()


@pytest.mark.parametrize(
    ("said", "waits_ms"),
    [
        ("4.2.0 <a@b>: Recipient address rejected: Greylisted, see http://postgrey.example/help/b.html", 300_000),
        ("4.7.1 Greylisting in action, please come back in 00:04:30", 270_000),
        ("4.7.1 Greylisted, please try again in 180 seconds", 180_000),
        ("4.7.1 Graylisted for 5 minutes", 300_000),
        ("4.7.0 grey-listed; wait 1h", 3_600_000),
        ("Try again in 999999 hours", 86_400_000),
        ("4.3.2 Please try again later", None),
        ("4.4.2 error: timeout exceeded for 10.0.0.1", None),
        ("4.2.2 mailbox full, in 3 folders", None),
    ],
)
def test_a_server_that_refuses_for_now_is_waited_for_as_long_as_it_says(said: str, waits_ms: int | None) -> None:
    assert wait_ms(said) == waits_ms

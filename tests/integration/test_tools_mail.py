"""Mail to a real SMTP server: what arrives, whom it may go to, and what is known when something breaks."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email import message_from_bytes, policy
from email.message import EmailMessage
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from triptych.kernel.errors import ConfigurationError
from triptych.schemas import Effect, ErrorCode, Result
from triptych.tools import Source, Tool
from triptych.tools.adapters.mail import tool as mail_tool
from triptych.tools.testing import call

LETTER = {"to": ["ana@acme.example"], "subject": "Your order", "text": "It is on its way.\n.\nBye"}


@dataclass
class PostOffice:
    """A server that keeps what it gets, and refuses what a test tells it to."""

    port: int
    certificate: Path
    messages: list[EmailMessage] = field(default_factory=list)
    recipients: list[list[str]] = field(default_factory=list)
    drops_repeats: bool = False
    hangs_up: bool = False
    refuses: dict[str, str] = field(default_factory=dict)

    async def handle_RCPT(  # noqa: N802 - the name that aiosmtpd looks for
        self, _server: SMTP, _session: Session, envelope: Envelope, address: str, _options: Any
    ) -> str:
        if address in self.refuses:
            return self.refuses[address]
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, _session: Session, envelope: Envelope) -> str:  # noqa: N802
        if "DATA" in self.refuses:
            return self.refuses["DATA"]
        message = message_from_bytes(envelope.content, policy=policy.default)  # type: ignore[arg-type]
        known = {one["Message-ID"] for one in self.messages}
        if not (self.drops_repeats and message["Message-ID"] in known):
            self.messages.append(message)  # type: ignore[arg-type]
            self.recipients.append(list(envelope.rcpt_tos))
        if self.hangs_up:
            server.transport.abort()
        return "250 OK"


def certificate(folder: Path) -> Path:
    """A certificate of 127.0.0.1, with its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "post office")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file = folder / "post-office.pem"
    file.write_bytes(made.public_bytes(serialization.Encoding.PEM) + private)
    return file


def knows_us(_server: SMTP, _session: Session, _envelope: Envelope, _mechanism: str, data: Any) -> AuthResult:
    return AuthResult(success=data == LoginPassword(b"clerk", b"s3cret-word"), handled=False)


@asynccontextmanager
async def serving(office: PostOffice, *, open_door: bool = False) -> AsyncIterator[PostOffice]:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(office.certificate)
    strict = {} if open_door else {"tls_context": tls, "require_starttls": True, "auth_required": True}
    server = await asyncio.get_running_loop().create_server(
        lambda: SMTP(office, authenticator=knows_us, hostname="post-office", **strict), "127.0.0.1", 0
    )
    office.port = server.sockets[0].getsockname()[1]
    try:
        yield office
    finally:
        server.close()


@pytest.fixture
async def office(tmp_path) -> AsyncIterator[PostOffice]:
    async with serving(PostOffice(0, certificate(tmp_path))) as office:
        yield office


@pytest.fixture
def mail(office, monkeypatch):
    monkeypatch.setenv("MAIL_USER", "clerk")
    monkeypatch.setenv("MAIL_PASSWORD", "s3cret-word")

    def make(**changes: Any) -> Tool:
        options = {
            "host": "127.0.0.1",
            "port": office.port,
            "ca_file": office.certificate.name,
            "username_env": "MAIL_USER",
            "password_env": "MAIL_PASSWORD",
            "sender": "support@ledgerline.example",
            "sender_name": "Ledgerline, Support",
            "allow": ["*@acme.example", "boss@globex.example"],
        }
        return mail_tool(Source("mail", options | changes, office.certificate.parent))

    return make


def code_of(result: Result) -> ErrorCode:
    assert result.error is not None, result
    return result.error.code


async def test_a_message_arrives_whole_over_tls_and_under_a_login(mail, office) -> None:
    letter = LETTER | {
        "cc": ["boss@globex.example"],
        "subject": "Größe & Preis",
        "html": "<p>It is on its way.</p>",
        "reply_to": "desk@ledgerline.example",
        "in_reply_to": "<question.1@acme.example>",
    }
    sent = await call(mail(), "send", letter, idempotency_key="k-1")
    (message,) = office.messages
    assert sent.data == {
        "message_id": message["Message-ID"],
        "accepted": ["ana@acme.example", "boss@globex.example"],
        "refused": [],
    }
    assert message["From"] == '"Ledgerline, Support" <support@ledgerline.example>'
    assert (message["Subject"], message["In-Reply-To"]) == ("Größe & Preis", "<question.1@acme.example>")
    assert message["Auto-Submitted"] == "auto-generated"
    body = message.get_body(("plain",))
    assert body is not None
    assert body.get_content().splitlines() == ["It is on its way.", ".", "Bye"]


async def test_all_attempts_of_a_call_have_one_message_id_and_a_server_that_knows_it_delivers_once(
    mail, office
) -> None:
    assert mail().operations["mail.send"].contract.effect is Effect.ONCE
    tool = mail(deduplicates=True)
    assert tool.operations["mail.send"].contract.effect is Effect.IDEMPOTENT
    office.drops_repeats = office.hangs_up = True
    assert code_of(await call(tool, "send", LETTER, idempotency_key="k-1")) is ErrorCode.UNAVAILABLE
    office.hangs_up = False
    again = await call(tool, "send", LETTER, idempotency_key="k-1")
    other = await call(tool, "send", LETTER, idempotency_key="k-2")
    assert [message["Message-ID"] for message in office.messages] == [
        again.data["message_id"],
        other.data["message_id"],
    ]


async def test_only_those_are_written_to_who_are_allowed(mail, office) -> None:
    for letter, code in (
        (LETTER | {"to": ["eve@evil.example"]}, ErrorCode.FORBIDDEN),
        (LETTER | {"cc": ["other@globex.example"]}, ErrorCode.FORBIDDEN),
        (LETTER | {"to": ["ana@acme.example", "eve@evil.example"]}, ErrorCode.FORBIDDEN),
        (LETTER | {"to": ["ana@acme.example\r\nBcc: eve@evil.example"]}, ErrorCode.INVALID_ARGUMENTS),
        (LETTER | {"subject": "Hi\nBcc: eve@evil.example"}, ErrorCode.INVALID_ARGUMENTS),
        (LETTER | {"to": []}, ErrorCode.INVALID_ARGUMENTS),
        (LETTER | {"to": [f"a{n}@acme.example" for n in range(11)]}, ErrorCode.INVALID_ARGUMENTS),
    ):
        assert code_of(await call(mail(), "send", letter)) is code
    assert office.messages == []


@pytest.mark.parametrize(
    ("refuses", "code"),
    [
        ({"ana@acme.example": "550 no such user"}, ErrorCode.INVALID_ARGUMENTS),
        ({"ana@acme.example": "450 mailbox is busy"}, ErrorCode.UNAVAILABLE),
        ({"DATA": "554 this is spam"}, ErrorCode.FORBIDDEN),
        ({"DATA": "451 try again"}, ErrorCode.UNAVAILABLE),
        ({"DATA": "552 too large"}, ErrorCode.INVALID_ARGUMENTS),
    ],
)
async def test_a_refusal_has_a_code_and_certainly_sent_nothing(mail, office, refuses, code) -> None:
    office.refuses = refuses
    refused = await call(mail(), "send", LETTER)
    assert code_of(refused) is code
    assert refused.error.details["effect"] == "none"
    assert office.messages == []


async def test_who_is_not_taken_is_named_and_the_others_get_it(mail, office) -> None:
    office.refuses = {"gone@acme.example": "550 left the company"}
    sent = await call(mail(), "send", LETTER | {"cc": ["gone@acme.example"]})
    assert sent.data["accepted"] == office.recipients[0] == ["ana@acme.example"]
    assert sent.data["refused"] == [{"address": "gone@acme.example", "reason": "550 left the company"}]


async def test_when_the_line_breaks_after_the_message_nobody_knows_and_nobody_says_so(mail, office) -> None:
    office.hangs_up = True
    broken = await call(mail(), "send", LETTER)
    assert code_of(broken) is ErrorCode.UNAVAILABLE
    assert "effect" not in broken.error.details
    assert len(office.messages) == 1


async def test_a_server_that_is_not_what_it_should_be_gets_no_password(mail, office, monkeypatch) -> None:
    untrusted = await call(mail(ca_file=None), "send", LETTER)
    assert code_of(untrusted) is ErrorCode.UNAVAILABLE
    async with serving(PostOffice(0, office.certificate), open_door=True) as in_the_open:
        assert code_of(await call(mail(port=in_the_open.port), "send", LETTER)) is ErrorCode.UNAVAILABLE
        assert in_the_open.messages == []
    assert code_of(await call(mail(port=1), "send", LETTER)) is ErrorCode.UNAVAILABLE
    monkeypatch.setenv("MAIL_PASSWORD", "wrong")
    wrong = await call(mail(), "send", LETTER)
    assert code_of(wrong) is ErrorCode.UNAUTHENTICATED
    assert wrong.error.details["effect"] == "none"


async def test_a_secret_that_is_missing_is_named_when_the_tool_starts(mail) -> None:
    tool = mail(password_env="NOWHERE")  # noqa: S106 - the name of a variable
    with pytest.raises(ConfigurationError, match="NOWHERE"):
        await call(tool, "send", LETTER)


def test_options_that_cannot_be_are_refused(mail) -> None:
    for changes, told in (
        ({"security": "none"}, "in the open"),
        ({"password_env": None}, "belong together"),
        ({"allow": []}, "allow"),
        ({"sender": "nobody"}, "sender"),
    ):
        with pytest.raises(ConfigurationError, match=told):
            mail(**changes)

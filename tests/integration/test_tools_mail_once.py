"""Mail of class `once`: what is known after DATA, and what is looked up where the server files what it has sent."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from mail_double import ScriptedServer, SentMail, serving

from triptych.kernel.errors import ConfigurationError
from triptych.schemas import ErrorCode, Result, ResultStatus
from triptych.tools import Call, Source, Tool, ToolFailure
from triptych.tools.adapters.mail import tool as mail_tool
from triptych.tools.adapters.mail.message import message_id
from triptych.tools.adapters.mail.smtp import SmtpSender
from triptych.tools.testing import call

LETTER = {"to": ["ana@acme.example"], "subject": "Your order", "text": "It is on its way.\n.\n..\nBye"}
SENDER = "support@ledgerline.example"


@pytest.fixture
async def server() -> AsyncIterator[ScriptedServer]:
    server = ScriptedServer()
    async with serving(server):
        yield server


@pytest.fixture
async def sent() -> AsyncIterator[SentMail]:
    sent = SentMail()
    async with serving(sent):
        yield sent


@pytest.fixture
def mail(server: ScriptedServer, sent: SentMail, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Tool]:
    monkeypatch.setenv("MAIL_USER", "clerk")
    monkeypatch.setenv("MAIL_PASSWORD", "s3cret-word")
    monkeypatch.setenv("WRONG_PASSWORD", "guess")

    def make(*, looks: bool = False, **about: Any) -> Tool:
        folder = {
            "host": "127.0.0.1", "port": sent.port, "security": "none", "username_env": "MAIL_USER",
            "password_env": "MAIL_PASSWORD", "timeout_ms": 5_000,
        }  # fmt: skip
        options = {
            "host": "127.0.0.1", "port": server.port, "security": "none", "sender": SENDER, "allow": ["*"],
            "timeout_ms": 5_000, **({"sent": folder | about} if looks else about),
        }  # fmt: skip
        return mail_tool(Source("mail", options))

    return make


def error_of(result: Result) -> tuple[ErrorCode, bool]:
    """The code, and whether it says that nothing was done."""
    assert result.error is not None, result
    return result.error.code, result.error.details.get("effect") == "none"


@pytest.mark.parametrize(
    "reply",
    [
        b"what?\r\n",
        b"\r\n",
        b"251 forwarded, perhaps\r\n",
        b"354 go on\r\n",
        b"302 elsewhere\r\n",
        b"999 no\r\n",
        b"55 short\r\n",
        b"-55 minus\r\n",
        b"5_5 python\r\n",
        b"550what\r\n",
        b"250-queued\r\n550 no\r\n",
        b"550-no\r\n250 queued\r\n",
        b"\xff\xfe\x00\r\n",
        b"2" * 50_000 + b"\r\n",
        None,
    ],
)
async def test_after_the_message_whatever_is_no_refusal_leaves_a_doubt(
    server: ScriptedServer, mail: Callable[..., Tool], reply: bytes | None
) -> None:
    server.after_data = reply
    result = await call(mail(), "send", LETTER)
    assert error_of(result) == (ErrorCode.UNAVAILABLE, False)
    assert "not known" in result.error.message
    assert len(server.messages) == 1


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        (b"421 4.7.0 try again later\r\n", ErrorCode.UNAVAILABLE),
        (b"451-greylisted\r\n451 try again\r\n", ErrorCode.UNAVAILABLE),
        (b"550\r\n", ErrorCode.INVALID_ARGUMENTS),
        (b"554 \xff\x00spam\r\n", ErrorCode.FORBIDDEN),
    ],
)
async def test_a_well_formed_refusal_says_that_nothing_was_sent(
    server: ScriptedServer, mail: Callable[..., Tool], reply: bytes, code: ErrorCode
) -> None:
    server.after_data = reply
    result = await call(mail(), "send", LETTER)
    assert error_of(result) == (code, True)
    assert result.error.message.isprintable()
    result.to_bytes()


async def test_before_the_message_nothing_was_sent_whatever_is_answered(
    server: ScriptedServer, mail: Callable[..., Tool]
) -> None:
    for reply in (b"what?\r\n", b"302 elsewhere\r\n", b"250-a\r\n550 b\r\n"):
        server.after_rcpt = reply
        assert error_of(await call(mail(), "send", LETTER))[1]
    assert server.messages == []


async def test_a_server_that_greylists_says_when_it_takes_the_message(
    server: ScriptedServer, mail: Callable[..., Tool]
) -> None:
    server.after_rcpt = b"451 4.7.1 Greylisted, try again in 180 seconds\r\n"
    result = await call(mail(), "send", LETTER)
    assert (error_of(result), result.error.retry_after_ms) == ((ErrorCode.UNAVAILABLE, True), 180_000)
    server.after_rcpt, server.after_data = b"250 ok\r\n", b"451-4.7.1 greylisted\r\n451 come back\r\n"
    result = await call(mail(), "send", LETTER)
    assert (error_of(result), result.error.retry_after_ms) == ((ErrorCode.UNAVAILABLE, True), 300_000)


async def test_a_recipient_that_may_be_taken_later_decides_about_another_attempt(
    server: ScriptedServer, mail: Callable[..., Tool]
) -> None:
    server.recipients = {b"gone@": b"550 no such user\r\n", b"ana@": b"450 greylisted\r\n"}
    result = await call(mail(), "send", LETTER | {"to": ["gone@acme.example", "ana@acme.example"]})
    assert error_of(result) == (ErrorCode.UNAVAILABLE, True)
    assert "ana@acme.example" in result.error.message


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        (b"501 5.1.3 bad address syntax\r\n", ErrorCode.INVALID_ARGUMENTS),
        (b"511 bad address\r\n", ErrorCode.INVALID_ARGUMENTS),
        (b"553 5.1.3 mailbox name not allowed\r\n", ErrorCode.INVALID_ARGUMENTS),
        (b"554 5.7.1 relay access denied\r\n", ErrorCode.FORBIDDEN),
    ],
)
async def test_an_address_that_the_server_does_not_take_is_a_matter_of_the_arguments(
    server: ScriptedServer, mail: Callable[..., Tool], reply: bytes, code: ErrorCode
) -> None:
    server.after_rcpt = reply
    assert error_of(await call(mail(), "send", LETTER)) == (code, True)
    assert server.messages == []


async def test_text_that_is_not_ascii_needs_no_server_that_takes_eight_bits(
    server: ScriptedServer, mail: Callable[..., Tool]
) -> None:
    sent = await call(mail(), "send", LETTER | {"text": "Größe\u2028und Preis", "html": "<p>Grüße</p>"})
    assert sent.status is ResultStatus.OK
    assert server.messages[0].isascii()
    assert not any(b"8BITMIME" in line.upper() for line in server.commands)


async def test_dots_and_line_ends_of_a_text_end_no_message_early(
    server: ScriptedServer, mail: Callable[..., Tool]
) -> None:
    smuggled = "a\r\n.\r\nMAIL FROM:<eve@evil.example>\r\nb\n.\nc\r.\rd\r\n.\r\r\n"
    assert (await call(mail(), "send", LETTER | {"text": smuggled})).status is ResultStatus.OK
    (message,) = server.messages
    assert message.count(b"\r\n.\r\n") == 1
    assert b"\n.\n" not in message
    assert not any(line.startswith(b"MAIL") for line in server.commands[2:])


def what_happened(tool: Tool, key: str) -> Any:
    """Ask as the runtime does when an answer was lost."""
    reconcile = tool.operations["mail.send"].reconcile
    assert reconcile is not None

    async def ask() -> Any:
        async with tool.lifespan(None) as state:  # type: ignore[arg-type]
            assert isinstance(state, SmtpSender)
            asked: Any = Call.__new__(Call)
            asked.state, asked.idempotency_key, asked.arguments = state, key, LETTER
            return await reconcile(asked)

    return ask()


async def test_without_a_folder_a_lost_answer_is_in_doubt_and_names_the_message(mail: Callable[..., Tool]) -> None:
    with pytest.raises(ToolFailure) as doubt:
        await what_happened(mail(), "k-1")
    assert doubt.value.code is ErrorCode.IN_DOUBT
    assert message_id(SENDER, "k-1") in doubt.value.message


async def test_a_message_in_the_folder_was_sent_and_one_that_is_not_there_is_in_doubt(
    mail: Callable[..., Tool], sent: SentMail
) -> None:
    sent.ids.add(message_id(SENDER, "k-1"))
    found = await what_happened(mail(looks=True), "k-1")
    assert found == {"message_id": message_id(SENDER, "k-1"), "accepted": ["ana@acme.example"], "refused": []}
    with pytest.raises(ToolFailure) as doubt:
        await what_happened(mail(looks=True), "k-2")
    assert doubt.value.code is ErrorCode.IN_DOUBT
    assert await what_happened(mail(looks=True, is_complete=True), "k-2") is None


async def test_what_an_older_state_of_the_database_does_not_know_of_is_not_sent_again(
    mail: Callable[..., Tool], sent: SentMail, server: ScriptedServer
) -> None:
    sent.ids.add(message_id(SENDER, "k-1"))
    again = await call(mail(looks=True), "send", LETTER, idempotency_key="k-1")
    assert again.data["message_id"] == message_id(SENDER, "k-1")
    assert server.messages == []
    assert (await call(mail(looks=True), "send", LETTER, idempotency_key="k-2")).status is ResultStatus.OK
    assert len(server.messages) == 1


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"password_env": "WRONG_PASSWORD"}, ErrorCode.UNAUTHENTICATED),
        ({"folder": "Elsewhere"}, ErrorCode.UNAVAILABLE),
        ({"port": 1}, ErrorCode.UNAVAILABLE),
    ],
)
async def test_while_the_folder_cannot_be_asked_nothing_is_sent(
    mail: Callable[..., Tool], server: ScriptedServer, change: dict[str, Any], code: ErrorCode
) -> None:
    result = await call(mail(looks=True, **change), "send", LETTER)
    assert error_of(result) == (code, True)
    assert server.messages == []
    with pytest.raises(ToolFailure) as unknown:
        await what_happened(mail(looks=True, **change), "k-1")
    assert unknown.value.code is code


async def test_a_server_that_hangs_up_is_unavailable(mail: Callable[..., Tool], sent: SentMail) -> None:
    sent.is_away = True
    assert error_of(await call(mail(looks=True), "send", LETTER)) == (ErrorCode.UNAVAILABLE, True)


def test_a_folder_whose_name_would_be_a_command_is_refused(mail: Callable[..., Tool]) -> None:
    with pytest.raises(ConfigurationError, match="folder"):
        mail(looks=True, folder='Sent" x\r\n')

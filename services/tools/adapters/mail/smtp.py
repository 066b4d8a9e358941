"""Send messages to one SMTP server, and tell a refusal from an unknown outcome.

Before the first byte of the message, every failure means that nothing was sent. After that, only a well-formed refusal
(RFC 5321, 4.2) says that nothing was done.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import aiosmtplib
from aiosmtplib import SMTP
from aiosmtplib.protocol import SMTPProtocol
from aiosmtplib.response import SMTPResponse

from triptych.schemas.base import Json
from triptych.schemas.result import ErrorCode
from triptych.tools.adapters.mail.message import message_id, message_of, receipt, recipients_of
from triptych.tools.adapters.mail.options import MailOptions
from triptych.tools.adapters.mail.sent_folder import Login, SentFolder
from triptych.tools.sdk import refusals
from triptych.tools.sdk.call import Call
from triptych.tools.sdk.failure import ToolFailure

QUIT_WITHIN_S = 2.0
_REASON_MAX_CHARS = 300
_MALFORMED = -1
"""What aiosmtplib gives as the code of a reply that is none."""
_PERMANENT = range(500, 600)
_REFUSALS = {
    501: ErrorCode.INVALID_ARGUMENTS,
    510: ErrorCode.INVALID_ARGUMENTS,
    511: ErrorCode.INVALID_ARGUMENTS,
    513: ErrorCode.INVALID_ARGUMENTS,
    530: ErrorCode.UNAUTHENTICATED,
    534: ErrorCode.UNAUTHENTICATED,
    535: ErrorCode.UNAUTHENTICATED,
    550: ErrorCode.INVALID_ARGUMENTS,
    551: ErrorCode.INVALID_ARGUMENTS,
    552: ErrorCode.INVALID_ARGUMENTS,
    553: ErrorCode.INVALID_ARGUMENTS,
}
"""Permanent replies of a server (RFC 5321, 4.2.3). Some servers send 510, 511 or 513 for an address that is not valid.
All other permanent replies mean that the server does not want this message."""
GREYLISTED_MS = 300_000
"""The wait for a server that greylists and does not say how long (RFC 6647, 4.1)."""
_WAIT_MAX_S = 86_400
_WAIT = re.compile(
    r"\b(?:in|for|after|wait)\s+(?:at least\s+|about\s+|another\s+)?"
    r"(?:(\d{1,2}):(\d\d):(\d\d)\b|(\d{1,6})\s*(s|m|h)(?:ec|in|r|our|econd|inute)?s?\b)",
    re.IGNORECASE,
)
_GREYLISTS = re.compile(r"gr[ae]y.?list", re.IGNORECASE)
_SECONDS = {"s": 1, "m": 60, "h": 3_600}


@dataclass(frozen=True, slots=True)
class SmtpSender:
    """One server, and how it is spoken to."""

    options: MailOptions
    login: Login | None
    tls: ssl.SSLContext | None
    sent: SentFolder | None

    async def send(self, arguments: dict[str, Json], call: Call[Any]) -> Json:
        """Send one message, unless it is in the folder of sent messages. A restored database might not know of it."""
        recipients = recipients_of(arguments)
        self._check(recipients)
        identity = message_id(self.options.sender, call.idempotency_key)
        message = message_of(arguments, identity, self.options)
        if self.sent is not None and await self.sent.has(identity):
            return receipt(identity, recipients, [])
        async with self._connection() as client:
            accepted, refused = await self._address(client, recipients)
            await self._hand_over(client, message)
        return receipt(identity, accepted, refused)

    async def what_happened(self, call: Call[Any]) -> Json:
        """Return the receipt of an earlier attempt; None where it certainly sent nothing.

        Raises:
            ToolFailure: `in_doubt`, since the server cannot tell.
        """
        identity = message_id(self.options.sender, call.idempotency_key)
        if self.sent is None:
            raise ToolFailure(
                ErrorCode.IN_DOUBT,
                f"whether the message {identity} was sent is not known, and no option `sent` says where to look for it",
            )
        if await self.sent.has(identity):
            return receipt(identity, recipients_of(call.arguments), [])
        if self.sent.options.is_complete:
            return None
        raise ToolFailure(
            ErrorCode.IN_DOUBT,
            f"the message {identity} is not in the folder {self.sent.options.folder}, where the server may file it "
            "later than it sends it; a person has to look",
        )

    @property
    def _where(self) -> str:
        return f"{self.options.host}:{self.options.port}"

    def _check(self, recipients: Sequence[str]) -> None:
        if len(recipients) > self.options.max_recipients:
            raise ToolFailure(
                ErrorCode.INVALID_ARGUMENTS,
                f"{len(recipients)} recipients, and {self.options.max_recipients} are allowed",
                undone=True,
            )
        patterns = [pattern.lower() for pattern in self.options.allow]
        for address in recipients:
            if not any(fnmatchcase(address.lower(), pattern) for pattern in patterns):
                raise ToolFailure(
                    ErrorCode.FORBIDDEN,
                    f"{address} is not in the tool's option `allow`, which names the addresses that may be written to",
                    undone=True,
                )

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[SMTP]:
        client = SMTP(
            hostname=self.options.host,
            port=self.options.port,
            use_tls=self.options.security == "tls",
            start_tls=self.options.security == "starttls",
            tls_context=self.tls,
            timeout=self.options.timeout_ms / 1_000,
        )
        try:
            with _nothing_was_sent(self._where):
                await client.connect()
                if client.protocol is not None:
                    client.protocol.__class__ = _Strict
                if self.login is not None:
                    await client.login(self.login.username, self.login.password)
            yield client
            with suppress(aiosmtplib.SMTPException, OSError):
                await client.quit(timeout=QUIT_WITHIN_S)
        finally:
            client.close()

    async def _address(self, client: SMTP, recipients: Sequence[str]) -> tuple[list[str], list[Json]]:
        """Return who gets it, and who the server would not take, with its reason."""
        refused: list[aiosmtplib.SMTPRecipientRefused] = []
        with _nothing_was_sent(self._where):
            await client.mail(self.options.sender)
            for address in recipients:
                try:
                    await client.rcpt(address)
                except aiosmtplib.SMTPRecipientRefused as error:
                    refused.append(error)
        if len(refused) == len(recipients):
            # If the server may take one recipient later, a later attempt can help.
            first = next((error for error in refused if error.code not in _PERMANENT), refused[0])
            raise _refusal(first.code, first.message, first.recipient)
        names = {error.recipient for error in refused}
        told: list[Json] = [
            {"address": error.recipient, "reason": _reply_text(error.code, error.message)} for error in refused
        ]
        return [address for address in recipients if address not in names], told

    async def _hand_over(self, client: SMTP, message: bytes) -> None:
        """Send the message itself. Only a reply that is a refusal says that it was not sent."""
        try:
            await client.data(message)
        except aiosmtplib.SMTPResponseException as error:
            if refusals.is_refusal_by_smtp(error.code):
                raise _refusal(error.code, error.message, "the message") from error
            raise self._unknown(f"answered {_reply_text(error.code, error.message)!r}") from error
        except Exception as error:
            raise self._unknown(f"broke off ({type(error).__name__})") from error

    def _unknown(self, what: str) -> ToolFailure:
        return ToolFailure(
            ErrorCode.UNAVAILABLE,
            f"{self._where} {what} while it took the message; whether it was sent is not known",
            undone=False,
        )


class _Strict(SMTPProtocol):
    """Takes for a reply only what is one (RFC 5321, 4.2.1): lines of one code, of three digits, and nothing else."""

    def _read_response_from_buffer(self) -> SMTPResponse | None:
        before = bytes(self._buffer)
        response = super()._read_response_from_buffer()
        if response is None:
            return None
        code = b"%d" % response.code
        lines = before[: len(before) - len(self._buffer)].splitlines()
        if not all(line[:3] == code and line[3:4] in {b" ", b"-", b""} for line in lines):
            raise aiosmtplib.SMTPResponseException(_MALFORMED, before.decode("utf-8", "replace"))
        return response


@contextmanager
def _nothing_was_sent(where: str) -> Iterator[None]:
    """Connect and log in. A failure here has done nothing, since no message was handed over."""
    try:
        yield
    except aiosmtplib.SMTPAuthenticationError as error:
        raise ToolFailure(
            ErrorCode.UNAUTHENTICATED, f"{where} does not take the name and password", undone=True
        ) from error
    except aiosmtplib.SMTPResponseException as error:
        raise _refusal(error.code, error.message, "the sender") from error
    except (aiosmtplib.SMTPException, OSError, ValueError) as error:
        raise ToolFailure(
            ErrorCode.UNAVAILABLE, f"{where} cannot be used ({type(error).__name__})", undone=True
        ) from error


def _refusal(code: int, said: str, what: str) -> ToolFailure:
    """Return the server has not taken it, so nothing was sent."""
    other = ErrorCode.FORBIDDEN if code in _PERMANENT else ErrorCode.UNAVAILABLE
    details: Mapping[str, Json] = {} if code == _MALFORMED else {"smtp_code": code}
    return ToolFailure(
        _REFUSALS.get(code, other),
        f"{what} was refused: {_reply_text(code, said)}",
        undone=True,
        retry_after_ms=None if code in _PERMANENT else wait_ms(said),
        **details,
    )


def wait_ms(said: str) -> int | None:
    """Read from the words of a temporary refusal how long to wait. SMTP has no code for it."""
    if stated := _WAIT.search(said):
        hours, minutes, seconds, number, unit = stated.groups()
        if number is None:
            wait_s = int(hours) * 3_600 + int(minutes) * 60 + int(seconds)
        else:
            wait_s = int(number) * _SECONDS[unit.lower()]
        return min(wait_s, _WAIT_MAX_S) * 1_000
    return GREYLISTED_MS if _GREYLISTS.search(said) else None


def _reply_text(code: int, text: str) -> str:
    """Return what a server says, as text that can be written down anywhere."""
    printable = "".join(char if char.isprintable() else " " for char in text[: 4 * _REASON_MAX_CHARS])
    words = " ".join(printable.split())
    return (words if code == _MALFORMED else f"{code} {words}")[:_REASON_MAX_CHARS]

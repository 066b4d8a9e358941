"""Make the bytes of a message from the arguments of a call. Pure, except for the date.

No text of an agent becomes a header as it is. The parsers of the standard library decode encoded words in headers, also
line breaks in them. So text from outside does not pass through them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from email import policy
from email.errors import MessageError
from email.header import Header
from email.headerregistry import Address, BaseHeader, HeaderRegistry
from email.message import EmailMessage
from email.parser import BytesHeaderParser
from email.utils import format_datetime
from typing import Any, ClassVar, Literal

from triptych.kernel.kafka.cloudevents import utc_now
from triptych.schemas.base import Json
from triptych.schemas.result import ErrorCode
from triptych.tools.adapters.mail.options import ENCODED_WORD, MailOptions
from triptych.tools.sdk.failure import ToolFailure

_LINE_MAX_CHARS = 76
_TEXT_CONTROLS = frozenset(map(chr, range(32))) - {"\t", "\n", "\r"} | {"\x7f"}


def message_id(sender: str, idempotency_key: str) -> str:
    """Return the Message-ID of a call, the same for all of its attempts."""
    digest = hashlib.sha256(idempotency_key.encode()).hexdigest()[:32]
    return f"<{digest}.triptych@{sender.rpartition('@')[2]}>"


def message_of(arguments: Mapping[str, Any], identity: str, options: MailOptions) -> bytes:
    """Return the message.

    Raises:
        ToolFailure: `invalid_arguments`, since a message cannot have something in them.
    """
    for name in ("to", "cc", "reply_to"):
        addresses = arguments.get(name, ())
        for address in (addresses,) if isinstance(addresses, str) else addresses:
            _check_address(name, address)
    try:
        encoded = _message(arguments, identity, options).as_bytes()
    except (MessageError, ValueError, LookupError) as error:
        raise ToolFailure(
            ErrorCode.INVALID_ARGUMENTS, f"no message can be made of these arguments: {error}", undone=True
        ) from error
    _check_headers(encoded)
    return encoded


def _message(arguments: Mapping[str, Any], identity: str, options: MailOptions) -> EmailMessage:
    message = EmailMessage(policy=_POLICY)
    message["From"] = Address(options.sender_name, addr_spec=options.sender)
    message["To"] = [Address(addr_spec=address) for address in arguments["to"]]
    if cc := arguments.get("cc"):
        message["Cc"] = [Address(addr_spec=address) for address in cc]
    if reply_to := arguments.get("reply_to"):
        message["Reply-To"] = Address(addr_spec=reply_to)
    if answered := arguments.get("in_reply_to"):
        message["In-Reply-To"] = message["References"] = answered
    message["Subject"] = arguments["subject"]
    message["Message-ID"] = identity
    message["Date"] = format_datetime(utc_now())
    message["Auto-Submitted"] = "auto-generated"  # RFC 3834: no automatic answer to an automatic message
    message.set_content(arguments["text"], cte=_transfer_encoding(arguments["text"]))
    if html := arguments.get("html"):
        message.add_alternative(html, subtype="html", cte=_transfer_encoding(html))
    return message


def _check_address(name: str, address: str) -> None:
    local = address.rpartition("@")[0]
    if ENCODED_WORD in address or local.startswith(".") or local.endswith(".") or ".." in local:
        raise ToolFailure(
            ErrorCode.INVALID_ARGUMENTS, f"{name}: {address} is not an address that mail servers take", undone=True
        )


def _transfer_encoding(text: str) -> str | None:
    """Return how a text travels that would not arrive as it is; None leaves it to the standard library."""
    return None if _TEXT_CONTROLS.isdisjoint(text) else "base64"


_HEADERS = frozenset(
    {
        *("from", "to", "cc", "reply-to", "in-reply-to", "references", "subject", "message-id", "date"),
        *("auto-submitted", "mime-version", "content-type", "content-transfer-encoding"),
    }
)


def _check_headers(encoded: bytes) -> None:
    """Check that a reader finds the headers that were written: each once, and no others."""
    names = [name.lower() for name in BytesHeaderParser(policy=policy.compat32).parsebytes(encoded)]
    if len(names) != len(set(names)) or not _HEADERS.issuperset(names):
        raise ToolFailure(ErrorCode.INVALID_ARGUMENTS, "the arguments would make headers of their own", undone=True)


class _Plain(BaseHeader):
    """A header whose value is text from outside: never parsed, and folded without a change of what it says."""

    max_count: ClassVar[Literal[1]] = 1

    @classmethod
    def parse(cls, value: str, kwds: dict[str, Any]) -> None:
        """Take the value as it is."""
        kwds["parse_tree"], kwds["decoded"] = None, value


class _Text(_Plain):
    """Text for people. What is not plain ASCII, or looks encoded, is encoded as a whole."""

    def fold(self, *, policy: Any) -> str:  # noqa: ARG002 - the lines have the length that RFC 2047 allows
        name, value = str(self.name), str(self)
        is_plain = value.isascii() and value.isprintable() and ENCODED_WORD not in value and value == value.strip()
        if is_plain:
            return f"{name}: {value}\r\n"
        encoded = Header(value, "utf-8", maxlinelen=_LINE_MAX_CHARS, header_name=name).encode(linesep="\r\n")
        return f"{name}: {encoded}\r\n"


class _Identity(_Plain):
    """The id of a message. It is written literally, at any length."""

    def fold(self, *, policy: Any) -> str:  # noqa: ARG002 - it cannot be divided
        return f"{self.name}: {self}\r\n"


def _registry() -> HeaderRegistry:
    registry = HeaderRegistry()
    registry.map_to_type("subject", _Text)
    for name in ("in-reply-to", "references", "message-id"):
        registry.map_to_type(name, _Identity)
    return registry


_POLICY = policy.SMTP.clone(header_factory=_registry(), cte_type="7bit")
"""7 bits: whether the server takes 8 is not known here."""


def recipients_of(arguments: Mapping[str, Any]) -> list[str]:
    """Everybody who gets it, each once."""
    return list(dict.fromkeys((*arguments["to"], *arguments.get("cc", ()))))


def receipt(identity: str, accepted: list[str], refused: list[Json]) -> dict[str, Json]:
    """Return the result of a message that was sent."""
    return {"message_id": identity, "accepted": list(accepted), "refused": refused}

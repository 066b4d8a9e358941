"""The mail adapter: sends a message over SMTP, to whom the configuration allows, under a Message-ID made from the key.

SMTP promises nothing about a message that is sent twice, so a message is of class `once` unless the server is known to
drop a second one with the same Message-ID. Nothing an agent says becomes a header as it is.
"""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP as SMTP_POLICY
from email.utils import format_datetime
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal

import aiosmtplib
from aiosmtplib import SMTP
from pydantic import Field, StringConstraints, model_validator

from triptych.kernel.cloudevents import utc_now
from triptych.schemas.base import Json
from triptych.schemas.contract import Contract, Effect
from triptych.schemas.result import ErrorCode
from triptych.tools.call import Call, Resources
from triptych.tools.failure import ToolFailure
from triptych.tools.operation import Operation
from triptych.tools.source import Options, Source
from triptych.tools.tool import Tool

ADDRESS = r"^[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@[A-Za-z0-9-]{1,63}(\.[A-Za-z0-9-]{1,63})*$"
SUBJECT_MAX_CHARS = 300
TEXT_MAX_CHARS = 200_000
QUIT_WITHIN_S = 2.0
_NO_CONTROL = "^[^\\u0000-\\u001f\\u007f]*$"
_TRANSIENT = range(400, 500)
_REFUSALS = {
    530: ErrorCode.UNAUTHENTICATED,
    534: ErrorCode.UNAUTHENTICATED,
    535: ErrorCode.UNAUTHENTICATED,
    550: ErrorCode.INVALID_ARGUMENTS,
    551: ErrorCode.INVALID_ARGUMENTS,
    552: ErrorCode.INVALID_ARGUMENTS,
    553: ErrorCode.INVALID_ARGUMENTS,
}
"""Of the permanent replies of a server (RFC 5321, 4.2.3). The others say that it does not want this message."""


class MailOptions(Options):
    """What stands under `[tools.NAME.options]`."""

    host: Annotated[str, Field(min_length=1)]
    port: Annotated[int, Field(ge=1, le=65_535)] = 587
    security: Annotated[
        Literal["starttls", "tls", "none"], Field(description="`none` is for a server on the same machine.")
    ] = "starttls"
    ca_file: Annotated[str | None, Field(description="Certificates to trust instead of the system's.")] = None
    username_env: Annotated[str | None, Field(description="The variable that holds the name to log in with.")] = None
    password_env: Annotated[str | None, Field(description="The variable that holds its password.")] = None
    sender: Annotated[str, StringConstraints(pattern=ADDRESS)]
    sender_name: Annotated[str, Field(max_length=100, pattern=_NO_CONTROL)] = ""
    allow: Annotated[
        tuple[str, ...],
        Field(min_length=1, description="Addresses that may be written to: `*@acme.com`; `*` is everybody."),
    ]
    max_recipients: Annotated[int, Field(ge=1, le=100)] = 10
    deduplicates: Annotated[bool, Field(description="The server drops a second message with the same Message-ID.")] = (
        False
    )
    timeout_ms: Annotated[int, Field(ge=1_000, le=600_000)] = 30_000

    @model_validator(mode="after")
    def _login_is_whole_and_private(self) -> MailOptions:
        if (self.username_env is None) != (self.password_env is None):
            raise ValueError("username_env and password_env belong together")
        if self.username_env is not None and self.security == "none":
            raise ValueError("a password is not sent in the open: use starttls or tls")
        return self


@dataclass(frozen=True, slots=True)
class Login:
    """Who sends, to the server."""

    username: str
    password: str


@dataclass(frozen=True, slots=True)
class Post:
    """One server, and how it is spoken to."""

    options: MailOptions
    login: Login | None
    tls: ssl.SSLContext | None

    async def send(self, arguments: dict[str, Json], call: Call[Any]) -> Json:
        """Send one message. What happens before its last byte is sent certainly did nothing."""
        recipients = list(dict.fromkeys((*arguments["to"], *arguments.get("cc", ()))))
        self._check(recipients)
        message_id = self.message_id(call.idempotency_key)
        message = self._message(arguments, message_id).as_bytes(policy=SMTP_POLICY)
        async with self._connection() as client:
            accepted, refused = await self._address(client, recipients)
            try:
                await client.data(message)
            except aiosmtplib.SMTPResponseException as error:
                raise _refusal(error.code, error.message, "the message") from error
            except (aiosmtplib.SMTPException, OSError) as error:
                raise ToolFailure(
                    ErrorCode.UNAVAILABLE,
                    f"{self._where} broke off while it took the message ({type(error).__name__}); "
                    "whether it was sent is not known",
                    undone=False,
                ) from error
        return {"message_id": message_id, "accepted": accepted, "refused": refused}

    def message_id(self, idempotency_key: str) -> str:
        """The same for all attempts of a call."""
        digest = hashlib.sha256(idempotency_key.encode()).hexdigest()[:32]
        return f"<{digest}.triptych@{self.options.sender.rpartition('@')[2]}>"

    @property
    def _where(self) -> str:
        return f"{self.options.host}:{self.options.port}"

    def _check(self, recipients: Sequence[str]) -> None:
        if len(recipients) > self.options.max_recipients:
            raise ToolFailure(
                ErrorCode.INVALID_ARGUMENTS,
                f"{len(recipients)} recipients, and {self.options.max_recipients} are allowed",
            )
        patterns = [pattern.lower() for pattern in self.options.allow]
        for address in recipients:
            if not any(fnmatchcase(address.lower(), pattern) for pattern in patterns):
                raise ToolFailure(
                    ErrorCode.FORBIDDEN,
                    f"{address} may not be written to; the tool's option `allow` names who may",
                )

    def _message(self, arguments: dict[str, Json], message_id: str) -> EmailMessage:
        message = EmailMessage(policy=SMTP_POLICY)
        message["From"] = Address(self.options.sender_name, addr_spec=self.options.sender)
        message["To"] = [Address(addr_spec=address) for address in arguments["to"]]
        if cc := arguments.get("cc"):
            message["Cc"] = [Address(addr_spec=address) for address in cc]
        if reply_to := arguments.get("reply_to"):
            message["Reply-To"] = Address(addr_spec=reply_to)
        if answered := arguments.get("in_reply_to"):
            message["In-Reply-To"] = message["References"] = answered
        message["Subject"] = arguments["subject"]
        message["Message-ID"] = message_id
        message["Date"] = format_datetime(utc_now())
        message["Auto-Submitted"] = "auto-generated"  # RFC 3834: no automatic answer to an automatic message
        message.set_content(arguments["text"])
        if html := arguments.get("html"):
            message.add_alternative(html, subtype="html")
        return message

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
                if self.login is not None:
                    await client.login(self.login.username, self.login.password)
            yield client
            with suppress(aiosmtplib.SMTPException, OSError):
                await client.quit(timeout=QUIT_WITHIN_S)
        finally:
            client.close()

    async def _address(self, client: SMTP, recipients: Sequence[str]) -> tuple[list[str], list[Json]]:
        """Who gets it, and who the server would not take, with its reason."""
        refused: list[aiosmtplib.SMTPRecipientRefused] = []
        with _nothing_was_sent(self._where):
            await client.mail(self.options.sender)
            for address in recipients:
                try:
                    await client.rcpt(address)
                except aiosmtplib.SMTPRecipientRefused as error:
                    refused.append(error)
        if len(refused) == len(recipients):
            raise _refusal(refused[0].code, refused[0].message, refused[0].recipient)
        names = {error.recipient for error in refused}
        told: list[Json] = [
            {"address": error.recipient, "reason": _said(error.code, error.message)} for error in refused
        ]
        return [address for address in recipients if address not in names], told


@contextmanager
def _nothing_was_sent(where: str) -> Iterator[None]:
    """Up to here no message was handed over, so whatever fails has done nothing."""
    try:
        yield
    except aiosmtplib.SMTPAuthenticationError as error:
        raise ToolFailure(
            ErrorCode.UNAUTHENTICATED, f"{where} does not take the name and password", undone=True
        ) from error
    except aiosmtplib.SMTPResponseException as error:
        raise _refusal(error.code, error.message, "the sender") from error
    except (aiosmtplib.SMTPException, OSError) as error:
        raise ToolFailure(
            ErrorCode.UNAVAILABLE, f"{where} cannot be used ({type(error).__name__})", undone=True
        ) from error


def _refusal(code: int, said: str, what: str) -> ToolFailure:
    """The server has said no, so nothing was sent."""
    transient = ErrorCode.UNAVAILABLE if code in _TRANSIENT else ErrorCode.FORBIDDEN
    return ToolFailure(
        _REFUSALS.get(code, transient), f"{what} was refused: {_said(code, said)}", undone=True, smtp_code=code
    )


def _said(code: int, text: str) -> str:
    return f"{code} {' '.join(text.split())}"[:300]


def tool(source: Source) -> Tool:
    """The tool that a table of triptych.toml describes.

    Raises:
        ConfigurationError: an option is wrong.
    """
    options = source.read(MailOptions)

    @asynccontextmanager
    async def lifespan(_resources: Resources) -> AsyncIterator[Post]:
        # Here and not before, so that the contract can be told where the secrets are not.
        yield _post(source, options)

    async def send(arguments: dict[str, Json], call: Call[Post]) -> Json:
        return await call.state.send(arguments, call)

    made = Tool(source.name, lifespan=lifespan, concurrency=4)
    made.add(Operation(_contract(source.name, options), send))
    return made


def _post(source: Source, options: MailOptions) -> Post:
    login = tls = None
    if options.username_env is not None and options.password_env is not None:
        username, password = source.secret(options.username_env), source.secret(options.password_env)
        login = Login(username.get_secret_value(), password.get_secret_value())
    if options.security != "none":
        tls = ssl.create_default_context(cafile=str(source.path(options.ca_file)) if options.ca_file else None)
    return Post(options, login, tls)


def _contract(name: str, options: MailOptions) -> Contract:
    address: Json = {"type": "string", "pattern": ADDRESS, "maxLength": 254}
    line: Json = {"type": "string", "minLength": 1, "maxLength": SUBJECT_MAX_CHARS, "pattern": _NO_CONTROL}
    text: Json = {"type": "string", "minLength": 1, "maxLength": TEXT_MAX_CHARS}
    several: Json = {"type": "array", "items": address, "maxItems": options.max_recipients, "uniqueItems": True}
    allowed = "" if "*" in options.allow else f" Only to {', '.join(options.allow)}."
    return Contract(
        operation=f"{name}.send",
        description=f"Send an e-mail from {options.sender}.{allowed}",
        arguments={
            "type": "object",
            "required": ["to", "subject", "text"],
            "additionalProperties": False,
            "properties": {
                "to": several | {"minItems": 1},
                "cc": several,
                "subject": line,
                "text": text,
                "html": text | {"description": "The same as the text, for programs that show HTML."},
                "reply_to": address,
                "in_reply_to": line
                | {"pattern": "^<[^<>\\s]+>$", "description": "The Message-ID of what is answered."},
            },
        },
        result={
            "type": "object",
            "required": ["message_id", "accepted", "refused"],
            "properties": {
                "message_id": {"type": "string"},
                "accepted": {"type": "array", "items": {"type": "string"}},
                "refused": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "properties": {"address": {"type": "string"}, "reason": {"type": "string"}},
                    },
                },
            },
        },
        effect=Effect.IDEMPOTENT if options.deduplicates else Effect.ONCE,
        timeout_ms=options.timeout_ms,
    )

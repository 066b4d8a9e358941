"""The mail adapter: its contract, and what lives as long as its process."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from triptych.schemas.base import Json
from triptych.schemas.contract import Contract, Effect
from triptych.tools.adapters.mail.options import ADDRESS, NO_CONTROL, MailOptions
from triptych.tools.adapters.mail.sent_folder import Login, SentFolder
from triptych.tools.adapters.mail.smtp import SmtpSender
from triptych.tools.sdk.call import Call, Resources
from triptych.tools.sdk.operation import Operation
from triptych.tools.sdk.source import Source
from triptych.tools.sdk.tool import Tool

SUBJECT_MAX_CHARS = 300
TEXT_MAX_CHARS = 200_000
CONCURRENCY = 4


def tool(source: Source) -> Tool:
    """Return the tool that a table of triptych.toml describes.

    Raises:
        ConfigurationError: an option is wrong.
    """
    options = source.read(MailOptions)

    @asynccontextmanager
    async def lifespan(_resources: Resources) -> AsyncIterator[SmtpSender]:
        # Here and not before, so that the contract can be told where the secrets are not.
        yield _post(source, options)

    async def send(arguments: dict[str, Json], call: Call[SmtpSender]) -> Json:
        return await call.state.send(arguments, call)

    async def what_happened(call: Call[SmtpSender]) -> Json:
        return await call.state.what_happened(call)

    made = Tool(source.name, lifespan=lifespan, concurrency=CONCURRENCY)
    made.add(Operation(_contract(source.name, options), send, reconcile=what_happened))
    return made


def _post(source: Source, options: MailOptions) -> SmtpSender:
    tls = ssl.create_default_context(cafile=str(source.path(options.ca_file)) if options.ca_file else None)
    login = sent = None
    if options.username_env is not None and options.password_env is not None:
        login = _login(source, options.username_env, options.password_env)
    if options.sent is not None:
        sent = SentFolder(options.sent, _login(source, options.sent.username_env, options.sent.password_env), tls)
    return SmtpSender(options, login, None if options.security == "none" else tls, sent)


def _login(source: Source, username_env: str, password_env: str) -> Login:
    username, password = source.secret(username_env), source.secret(password_env)
    return Login(username.get_secret_value(), password.get_secret_value())


def _contract(name: str, options: MailOptions) -> Contract:
    address: Json = {"type": "string", "pattern": ADDRESS, "maxLength": 254}
    line: Json = {"type": "string", "minLength": 1, "maxLength": SUBJECT_MAX_CHARS, "pattern": NO_CONTROL}
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
                | {"pattern": "^<[!-;=?-~]+>$", "description": "The Message-ID of what is answered."},
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

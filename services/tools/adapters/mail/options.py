"""What stands under `options` of a mail tool in triptych.toml. Secrets are named here, never written."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from triptych.tools.sdk.source import Options

ADDRESS = r"^[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@[A-Za-z0-9-]{1,63}(\.[A-Za-z0-9-]{1,63})*$"
NO_CONTROL = "^[^\\u0000-\\u001f\\u007f-\\u009f\\u2028\\u2029]*$"
"""One line, by every definition of a line's end."""
ENCODED_WORD = "=?"
"""How an encoded word begins (RFC 2047). Programs that show mail decode it wherever it stands."""

Security = Annotated[
    Literal["starttls", "tls", "none"], Field(description="`none` is for a server on the same machine.")
]
TimeoutMs = Annotated[int, Field(ge=1_000, le=600_000)]


class SentOptions(BaseModel):
    """Where the server files what was sent, for IMAP."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: Annotated[str, Field(min_length=1)]
    port: Annotated[int, Field(ge=1, le=65_535)] = 993
    security: Security = "tls"
    folder: Annotated[str, Field(min_length=1, max_length=200, pattern=r'^[^"\\\x00-\x1f\x7f]+$')] = "Sent"
    username_env: Annotated[str, Field(description="The variable that holds the name to log in with.")]
    password_env: Annotated[str, Field(description="The variable that holds its password.")]
    is_complete: Annotated[
        bool,
        Field(description="The server files a message before it says that it has it: what is not there was not sent."),
    ] = False
    timeout_ms: TimeoutMs = 10_000


class MailOptions(Options):
    """What stands under `[tools.NAME.options]`."""

    host: Annotated[str, Field(min_length=1)]
    port: Annotated[int, Field(ge=1, le=65_535)] = 587
    security: Security = "starttls"
    ca_file: Annotated[str | None, Field(description="Certificates to trust instead of the system's.")] = None
    username_env: Annotated[str | None, Field(description="The variable that holds the name to log in with.")] = None
    password_env: Annotated[str | None, Field(description="The variable that holds its password.")] = None
    sender: Annotated[str, StringConstraints(pattern=ADDRESS)]
    sender_name: Annotated[str, Field(max_length=100, pattern=NO_CONTROL)] = ""
    allow: Annotated[
        tuple[str, ...],
        Field(min_length=1, description="Addresses that may be written to: `*@acme.com`; `*` is everybody."),
    ]
    max_recipients: Annotated[int, Field(ge=1, le=100)] = 10
    deduplicates: Annotated[bool, Field(description="The server drops a second message with the same Message-ID.")] = (
        False
    )
    sent: Annotated[SentOptions | None, Field(description="Where a message is looked for that may have been sent.")] = (
        None
    )
    timeout_ms: TimeoutMs = 30_000

    @model_validator(mode="after")
    def _login_is_whole_and_private(self) -> MailOptions:
        if (self.username_env is None) != (self.password_env is None):
            raise ValueError("username_env and password_env belong together")
        if self.username_env is not None and self.security == "none":
            raise ValueError("a password is not sent in the open: use starttls or tls")
        return self

    @model_validator(mode="after")
    def _sender_is_text(self) -> MailOptions:
        for name, value in (("sender", self.sender), ("sender_name", self.sender_name)):
            if ENCODED_WORD in value:
                raise ValueError(f"{name} holds {ENCODED_WORD}, which mail programs decode: write it as plain text")
        return self

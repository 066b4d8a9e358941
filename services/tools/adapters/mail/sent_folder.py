"""The folder with what was sent, over IMAP: whether there is a message with a certain Message-ID."""

from __future__ import annotations

import asyncio
import imaplib
import ssl
from dataclasses import dataclass

from triptych.schemas.result import ErrorCode
from triptych.tools.adapters.mail.options import SentOptions
from triptych.tools.sdk.failure import ToolFailure


@dataclass(frozen=True, slots=True)
class Login:
    """Who asks, to the server."""

    username: str
    password: str


@dataclass(frozen=True, slots=True)
class SentFolder:
    """One folder of one server."""

    options: SentOptions
    login: Login
    tls: ssl.SSLContext | None

    async def has(self, message_id: str) -> bool:
        """Return whether a message of this id was sent.

        Raises:
            ToolFailure: `unavailable` or `unauthenticated`, since the folder cannot be asked. Nothing was done.
        """
        where = f"the folder {self.options.folder} at {self.options.host}:{self.options.port}"
        try:
            return await asyncio.to_thread(self._has, message_id)
        except _RefusedError as error:
            raise ToolFailure(ErrorCode.UNAUTHENTICATED, f"{where} does not let us in: {error}", undone=True) from None
        except (OSError, imaplib.IMAP4.error) as error:
            raise ToolFailure(
                ErrorCode.UNAVAILABLE, f"{where} cannot be asked ({type(error).__name__})", undone=True
            ) from error

    def _has(self, message_id: str) -> bool:
        with self._connected() as server:
            try:
                server.login(self.login.username, self.login.password)
            except imaplib.IMAP4.abort:
                raise
            except imaplib.IMAP4.error as error:
                raise _RefusedError("the name and password are not taken") from error
            status, _ = server.select(f'"{self.options.folder}"', readonly=True)
            if status != "OK":
                raise imaplib.IMAP4.error(f"no folder {self.options.folder}")
            status, found = server.uid("SEARCH", "HEADER", "Message-ID", f'"{message_id}"')
            if status != "OK":
                raise imaplib.IMAP4.error("the search was refused")
            return any(one and one.split() for one in found)

    def _connected(self) -> imaplib.IMAP4:
        host, port, timeout_s = self.options.host, self.options.port, self.options.timeout_ms / 1_000
        if self.options.security == "tls":
            return imaplib.IMAP4_SSL(host, port, ssl_context=self.tls, timeout=timeout_s)
        server = imaplib.IMAP4(host, port, timeout=timeout_s)
        if self.options.security == "starttls":
            server.starttls(self.tls)
        return server


class _RefusedError(Exception):
    """The server does not know us."""

"""A mail server that answers byte for byte what a test says, and a folder of sent messages behind IMAP."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field


@dataclass
class ScriptedServer:
    """Takes every message; `after_data` is what it says then, None: nothing, and it hangs up."""

    after_data: bytes | None = b"250 queued\r\n"
    after_rcpt: bytes = b"250 ok\r\n"
    recipients: dict[bytes, bytes] = field(default_factory=dict)
    """What it says of some of them instead, by a part of the address."""
    port: int = 0
    messages: list[bytes] = field(default_factory=list)
    commands: list[bytes] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 scripted\r\n")
        while line := await reader.readline():
            command = line.strip().upper()
            self.commands.append(line)
            if command.startswith(b"EHLO"):
                writer.write(b"250 scripted\r\n")
            elif command.startswith(b"RCPT"):
                writer.write(next((said for who, said in self.recipients.items() if who in line), self.after_rcpt))
            elif command == b"DATA":
                writer.write(b"354 go on\r\n")
                self.messages.append(await reader.readuntil(b"\r\n.\r\n"))
                if self.after_data is None:
                    break
                writer.write(self.after_data)
            elif command == b"QUIT":
                writer.write(b"221 bye\r\n")
                break
            else:
                writer.write(b"250 ok\r\n")
        writer.close()


@dataclass
class SentMail:
    """The least of IMAP4rev1 (RFC 3501) that a search needs."""

    port: int = 0
    ids: set[str] = field(default_factory=set)
    is_away: bool = False
    searches: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.is_away:
            writer.close()
            return
        writer.write(b"* OK ready\r\n")
        while line := await reader.readline():
            tag, _, rest = line.strip().decode().partition(" ")
            command = rest.upper()
            if command.startswith("CAPABILITY"):
                writer.write(b"* CAPABILITY IMAP4rev1\r\n")
            elif command.startswith("LOGIN"):
                if "s3cret-word" not in rest:
                    writer.write(f"{tag} NO wrong\r\n".encode())
                    continue
            elif command.startswith(("EXAMINE", "SELECT")):
                if '"Sent"' not in rest:
                    writer.write(f"{tag} NO no such folder\r\n".encode())
                    continue
                writer.write(b"* 1 EXISTS\r\n")
            elif command.startswith("UID SEARCH"):
                self.searches += 1
                wanted = re.search(r"<[^>]+>", rest)
                found = "7" if wanted and wanted[0] in self.ids else ""
                writer.write(f"* SEARCH {found}".rstrip().encode() + b"\r\n")
            elif command.startswith("LOGOUT"):
                writer.write(f"* BYE\r\n{tag} OK\r\n".encode())
                break
            writer.write(f"{tag} OK done\r\n".encode())
        writer.close()


@asynccontextmanager
async def serving(double: ScriptedServer | SentMail) -> AsyncIterator[None]:
    server = await asyncio.start_server(double.serve, "127.0.0.1", 0)
    double.port = server.sockets[0].getsockname()[1]
    try:
        yield
    finally:
        server.close()

"""A TCP proxy in front of a server, or of the processes of a tool, which can reset, delay and swallow what passes."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Self

HOST = "127.0.0.1"
_CHUNK_BYTES = 65_536


class Proxy:
    """Listens on one port and connects each client to another. Async context manager.

    `target_port` is asked for each client; an OSError means that no server is there.
    """

    def __init__(self, name: str, port: int, target_port: Callable[[], int]) -> None:
        self.name, self.port = name, port
        self.delay_s = 0.0
        self._target_port = target_port
        self._flows = asyncio.Event()
        self._flows.set()
        self._connections: dict[asyncio.Task[None], tuple[asyncio.StreamWriter, ...]] = {}
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, HOST, self.port, backlog=512)
        return self

    async def __aexit__(self, *_exc: object) -> None:
        if self._server is not None:
            self._server.close()
        self.stall(on=False)
        self.cut(1.0, random.Random(0))
        if self._connections:
            await asyncio.wait(self._connections, timeout=2)

    def stall(self, *, on: bool) -> None:
        """Let nothing through, in either direction, without a word; or let it flow again."""
        if on:
            self._flows.clear()
        else:
            self._flows.set()

    def cut(self, share: float, dice: random.Random) -> int:
        """Reset a share of the connections and give how many they were."""
        connections = list(self._connections.values())
        chosen = dice.sample(connections, min(len(connections), max(1, round(share * len(connections)))))
        for writers in chosen:
            for writer in writers:
                writer.transport.abort()
        return len(chosen)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - the server runs this as a task
        self._connections[task] = (writer,)
        try:
            await self._flows.wait()
            to_reader, to_writer = await asyncio.open_connection(HOST, self._target_port())
            self._connections[task] = (writer, to_writer)
            pumps = (
                asyncio.create_task(self._pump(reader, to_writer)),
                asyncio.create_task(self._pump(to_reader, writer)),
            )
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            for pump in pumps:
                pump.cancel()
            await asyncio.wait(pumps)
        except (OSError, asyncio.CancelledError):
            pass  # the server is away, which the client hears as a reset; or all is over
        finally:
            for each in self._connections.pop(task):
                each.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while chunk := await reader.read(_CHUNK_BYTES):
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                await self._flows.wait()
                writer.write(chunk)
                await writer.drain()
        except OSError:
            return

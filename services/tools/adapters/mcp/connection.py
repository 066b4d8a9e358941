"""One MCP server, kept connected: started or reached, watched, and started again with backoff when it is gone.

It never makes a call on its own. While the server is away, callers get NotConnectedError.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress

from mcp import Client, MCPError, types
from mcp.client.subscriptions import SubscriptionLost
from mcp.types.version import MODERN_PROTOCOL_VERSIONS

from triptych.kernel.process.log import Logger
from triptych.tools.adapters.mcp.listing import CLIENT, CONNECT_WITHIN_S, Listing, cause_of, list_tools
from triptych.tools.adapters.mcp.stdio import ServerDiagnostics
from triptych.tools.adapters.mcp.tasks import Tasks
from triptych.tools.adapters.mcp.transport import Transport, watched

FIRST_BACKOFF_S, LONGEST_BACKOFF_S = 0.5, 30.0
STABLE_AFTER_S = 30.0
CLOSE_WITHIN_S = 8.0
RELISTEN_AFTER_S = 5.0
LIST_EVERY_S, LIST_IN_A_ROW_MAX = 1.0, 5
"""A server that says all the time that its tools have changed is asked for them this often, after so many times."""
START_TAKES_S = 1.0
"""After the next try has begun: a call that comes back sooner finds no connection."""

Listed = Callable[[Listing], None]


class NotConnectedError(Exception):
    """There is no server at the moment."""

    def __init__(self, retry_after_ms: int, why: str) -> None:
        self.retry_after_ms, self.why = retry_after_ms, why
        super().__init__(why)


class McpConnection:
    """Keeps one server connected while it is open."""

    def __init__(self, transport: Transport, listed: Listed, log: Logger) -> None:
        """`listed` is told the server's tools at each connection and at each change."""
        self._transport, self._listed, self._log = transport, listed, log
        self._said = ServerDiagnostics(log)
        self._client: Client | None = None
        self._why = "it has not been started yet"
        self._next_try_at = self._listed_at = 0.0
        self._tried = asyncio.Event()
        self._closing = asyncio.Event()
        self._wake = asyncio.Event()
        self._is_lost = False
        self._in_a_row = 0

    @asynccontextmanager
    async def open(self) -> AsyncIterator[McpConnection]:
        """Keep it connected during the body, which begins after the first attempt, whether or not that succeeded."""
        connected = asyncio.create_task(self._hold(), name="mcp connection")
        try:
            await self._tried.wait()
            yield self
        finally:
            self._closing.set()
            self._wake.set()
            await asyncio.wait({connected}, timeout=CLOSE_WITHIN_S)
            connected.cancel()
            with suppress(asyncio.CancelledError):
                await connected

    @property
    def client(self) -> Client:
        """Return the connected client.

        Raises:
            NotConnectedError: the server is gone; says when it is tried again.
        """
        if self._client is None:
            left_s = self._next_try_at + START_TAKES_S - time.monotonic()
            raise NotConnectedError(int(max(left_s, START_TAKES_S) * 1_000), self._why)
        return self._client

    def lost(self) -> None:
        """Note that a call found the connection dead."""
        self._is_lost = True
        self._wake.set()

    def stale(self) -> None:
        """Note that the server's tools have changed since they were listed."""
        self._wake.set()

    async def _hold(self) -> None:
        backoff_s = FIRST_BACKOFF_S
        while not self._closing.is_set():
            began = time.monotonic()
            self._said.last = ""
            try:
                await self._connected()
                self._why = "its connection ended"
            except (Exception, BaseExceptionGroup) as error:  # noqa: BLE001 - it can fail in any way, and is then tried again
                self._why = cause_of(error)
            finally:
                self._client = None
            if self._said.last:
                self._why += f" ({self._said.last})"
            if time.monotonic() - began > STABLE_AFTER_S:
                backoff_s = FIRST_BACKOFF_S
            self._next_try_at = time.monotonic() + backoff_s
            self._tried.set()
            if self._closing.is_set():
                return
            self._log.warning("no MCP server; it is tried again", why=self._why, in_s=backoff_s)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), backoff_s)
            backoff_s = min(LONGEST_BACKOFF_S, backoff_s * 2)

    async def _connected(self) -> None:
        """Hold one connection until it is lost or closed."""
        self._is_lost = False
        async with AsyncExitStack() as stack:
            async with asyncio.timeout(CONNECT_WITHIN_S):
                client = await stack.enter_async_context(self._new_client())
            listens = asyncio.Event()
            listening = asyncio.create_task(self._listen(client, listens), name="mcp listen")
            try:
                await self._list_again(client, listens)
                self._client = client
                self._tried.set()
                info = client.server_info
                self._log.info("MCP server connected", server=info and info.name, protocol=client.protocol_version)
                while True:
                    await self._wake.wait()
                    self._wake.clear()
                    if self._is_lost or self._closing.is_set():
                        return
                    if rests_s := self._rests_s():
                        with suppress(TimeoutError):
                            await asyncio.wait_for(self._closing.wait(), rests_s)
                    if self._is_lost or self._closing.is_set():
                        return
                    await self._list_again(client, listens)
            finally:
                self._client = None
                listening.cancel()

    def _rests_s(self) -> float:
        """Return how long to wait before the tools are listed again; a few times in a row, not at all."""
        since_s = time.monotonic() - self._listed_at
        self._in_a_row = self._in_a_row + 1 if since_s < LIST_EVERY_S else 0
        return LIST_EVERY_S - since_s if self._in_a_row > LIST_IN_A_ROW_MAX else 0.0

    async def _list_again(self, client: Client, listens: asyncio.Event) -> None:
        """List once it is certain that no change after it is missed."""
        async with asyncio.timeout(CONNECT_WITHIN_S):
            await listens.wait()
            self._listed_at = time.monotonic()
            self._listed(await list_tools(client))

    async def _listen(self, client: Client, listens: asyncio.Event) -> None:
        """Hear of changes where the protocol has a stream for them; older servers just send a notification."""
        tools = client.server_capabilities.tools
        has_stream = client.protocol_version in MODERN_PROTOCOL_VERSIONS
        while has_stream and tools is not None and tools.list_changed:
            try:
                async with client.listen(tools_list_changed=True) as changes:
                    listens.set()
                    async for _ in changes:
                        self.stale()
                break
            except SubscriptionLost:
                await asyncio.sleep(RELISTEN_AFTER_S)
                self.stale()
            except (RuntimeError, MCPError, TimeoutError) as error:
                self._log.warning("the MCP server does not tell of changes, though it said so", why=cause_of(error))
                break
        listens.set()

    def _new_client(self) -> Client:
        # Without callbacks for them, what a server asks of a model or a person is refused, and it is told so before.
        return Client(
            watched(self._transport(self._said), self.lost),
            message_handler=self._on_message,
            client_info=CLIENT,
            extensions=[Tasks()],
            cache=None,
        )

    async def _on_message(self, message: object) -> None:
        if isinstance(message, types.ToolListChangedNotification):
            self.stale()

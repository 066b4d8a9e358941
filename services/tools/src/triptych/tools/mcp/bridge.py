"""An MCP server as a Tool: built from the pins before the server runs, held to them while it does.

At each listing the server's tools are compared with the pins. What changed compatibly is taken over and
announced; what broke is quarantined, with the difference, until somebody accepts it. A tool that is
new on the server is not offered: nobody has allowed it.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import structlog
from mcp import MCPError, types
from pydantic import ValidationError

from triptych.kernel.errors import ConfigurationError
from triptych.kernel.log import Logger
from triptych.schemas import codec
from triptych.schemas.base import Json
from triptych.schemas.contract import Effect
from triptych.schemas.result import ErrorCode
from triptych.tools.call import Call, Resources
from triptych.tools.drift import differences
from triptych.tools.failure import ToolFailure
from triptych.tools.mcp.answers import data_of, failure_of_error, failure_of_result, failure_of_shape
from triptych.tools.mcp.connection import Connection, NotConnectedError
from triptych.tools.mcp.contracts import Offer, offers
from triptych.tools.mcp.listing import ask
from triptych.tools.mcp.options import McpOptions
from triptych.tools.mcp.pins import PinnedTool, Pins
from triptych.tools.mcp.transport import transport_of
from triptych.tools.operation import Operation
from triptych.tools.origin import Origin
from triptych.tools.source import Source
from triptych.tools.tool import Tool

IDEMPOTENCY_KEY = "triptych.dev/idempotency-key"
"""The key travels in `_meta` of every call; a server that knows it can drop repeats."""

PROGRESS_EVERY_S = 1.0


def tool(source: Source) -> Tool:
    """The tool that `[tools.NAME]` describes.

    Raises:
        ConfigurationError: an option is wrong, the pins are missing, or nothing in them can be offered.
    """
    options = source.read(McpOptions)
    file = source.path(options.pins)
    made = _made(source, options, file, Pins.load(file))

    async def fetch() -> bytes:
        return (await ask(source, options)).text().encode()

    def build(raw: bytes) -> Tool:
        return _made(source, options, file, codec.read(Pins, raw, limits=codec.DOCUMENT))

    made.origin = Origin(file, fetch, build, is_watched=True)
    return made


def _made(source: Source, options: McpOptions, file: Path, pins: Pins) -> Tool:
    offered, left_out = offers(source.name, pins.tools, options)
    if not offered:
        why = "; ".join(f"{each.name}: {each.why}" for each in left_out)
        raise ConfigurationError(f"{file}: no tool of the MCP server can be offered ({why})")
    unknown = set(options.operations) - {offer.contract.operation.partition(".")[2] for offer in offered}
    if unknown:
        raise ConfigurationError(
            f"tools.{source.name}.options.operations: the server has no {', '.join(sorted(unknown))}"
        )
    return _Bridge(source, options, offered).tool


class _Bridge:
    """What the operations of one server share."""

    def __init__(self, source: Source, options: McpOptions, pinned: Sequence[Offer]) -> None:
        self._source, self._options = source, options
        self._pinned = {offer.contract.operation: offer for offer in pinned}
        self._log: Logger = structlog.get_logger().bind(tool=source.name)
        self._listed: Mapping[str, Offer] = self._pinned
        self.tool = Tool(source.name, lifespan=self._lifespan, concurrency=options.concurrency)
        for offer in pinned:
            self.tool.add(self._operation(offer))

    @asynccontextmanager
    async def _lifespan(self, _resources: Resources) -> AsyncIterator[Connection]:
        connection = Connection(transport_of(self._source, self._options), self._compare, self._log)
        async with connection.open():
            yield connection

    def _operation(self, offer: Offer) -> Operation:
        async def perform(arguments: dict[str, Json], call: Call[Connection]) -> Json:
            return await self._perform(offer, arguments, call)

        return Operation(offer.contract, perform, may_be_empty=offer.contract.effect is Effect.READ)

    async def _perform(self, offer: Offer, arguments: dict[str, Json], call: Call[Connection]) -> Json:
        try:
            client = call.state.client
        except NotConnectedError as error:
            raise ToolFailure(
                ErrorCode.UNAVAILABLE,
                f"the MCP server of {self._source.name} is not there: {error.why}",
                retry_after_ms=error.retry_after_ms,
                undone=True,
            ) from None
        if offer.key_argument is not None:
            arguments = {**arguments, offer.key_argument: call.idempotency_key}
        try:
            result = await client.call_tool(
                offer.tool.name,
                arguments,
                progress_callback=_Progress(self._log, offer, call),
                meta=_meta(call),
            )
        except MCPError as error:
            listed = offer.contract.operation in self._listed
            raise failure_of_error(error, offer, is_listed=listed) from None
        except (RuntimeError, ValidationError) as error:
            raise failure_of_shape(error, offer) from None
        if result.is_error:
            raise failure_of_result(result, offer)
        data = data_of(result, offer)
        return {"text": "", "attachments": []} if data is None and offer.contract.effect is not Effect.READ else data

    def _compare(self, tools: Sequence[PinnedTool]) -> None:
        """Hold what the server offers now against the pins."""
        now, _ = offers(self._source.name, tools, self._options)
        self._listed = {offer.contract.operation: offer for offer in now}
        for name, pinned in self._pinned.items():
            offer = self._listed.get(name)
            if offer is None:
                self._refuse(pinned, ["the server does not offer it any more"])
            elif broken := differences(pinned.contract, offer.contract):
                self._refuse(pinned, broken)
            else:
                self._offer(offer)
        if new := sorted(self._listed.keys() - self._pinned.keys()):
            self._log.info("the MCP server offers more than was added; add it again to allow it", operations=new)

    def _offer(self, offer: Offer) -> None:
        name = offer.contract.operation
        self.tool.quarantined.pop(name, None)
        if self.tool.operations[name].contract != offer.contract:
            self._log.info("a compatible change of a contract was taken over", operation=name)
            self.tool.replace(self._operation(offer))

    def _refuse(self, pinned: Offer, broken: Sequence[str]) -> None:
        self._log.error("the MCP server broke a contract", operation=pinned.contract.operation, differences=broken)
        self.tool.quarantined[pinned.contract.operation] = "; ".join(broken)


def _meta(call: Call[Any]) -> types.RequestParamsMeta:
    return cast("types.RequestParamsMeta", {IDEMPOTENCY_KEY: call.idempotency_key})


class _Progress:
    """Tells the log how far a call is, at most once a second. It extends no deadline."""

    def __init__(self, log: Logger, offer: Offer, call: Call[Any]) -> None:
        self._log = log.bind(operation=offer.contract.operation, run_id=str(call.run_id), step=call.step)
        self._told_at = 0.0

    async def __call__(self, progress: float, total: float | None, message: str | None) -> None:
        now = time.monotonic()
        if now - self._told_at >= PROGRESS_EVERY_S:
            self._told_at = now
            self._log.info("progress", progress=progress, total=total, message=message and message[:200])

"""An MCP server as a Tool: built from the pins before the server runs, held to them while it does.

At each listing the server's tools are compared with the pins. What changed compatibly is taken over and
announced; what broke is quarantined, with the difference, until a person accepts it. Other words (a title, a
description, a hint) are told, never shown to a model, and quarantine an operation that writes. A tool that is
new on the server is not offered before a person allows it.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import structlog
from mcp import MCPError, types
from pydantic import ValidationError

from triptych.kernel.errors import ConfigurationError
from triptych.kernel.process.log import Logger
from triptych.kernel.process.tracing import RUN_ID_HEADER, TENANT_HEADER, TRACEPARENT, upstream_headers
from triptych.schemas import codec
from triptych.schemas.base import Json
from triptych.schemas.result import ErrorCode
from triptych.tools.adapters.mcp.answers import (
    data_of,
    failure_of_error,
    failure_of_result,
    failure_of_shape,
    failure_of_task,
)
from triptych.tools.adapters.mcp.connection import McpConnection, NotConnectedError
from triptych.tools.adapters.mcp.contracts import McpOperation, mcp_operations
from triptych.tools.adapters.mcp.listing import Listing, ask
from triptych.tools.adapters.mcp.options import McpOptions
from triptych.tools.adapters.mcp.pins import Pins, SkippedTool
from triptych.tools.adapters.mcp.tasks import TaskFailedError
from triptych.tools.adapters.mcp.transport import transport_of
from triptych.tools.sdk.call import Call, Resources
from triptych.tools.sdk.contract_diff import breaking_changes, quoted, texts_in_schemas, with_texts_of
from triptych.tools.sdk.contract_origin import ContractOrigin
from triptych.tools.sdk.failure import ToolFailure
from triptych.tools.sdk.operation import Operation
from triptych.tools.sdk.source import Source
from triptych.tools.sdk.tool import Tool

IDEMPOTENCY_KEY = "triptych.dev/idempotency-key"
"""The key travels in `_meta` of every call; a server that knows it can drop repeats."""
RUN_ID, TENANT = "triptych.dev/run-id", "triptych.dev/tenant"
"""So do the run, its tenant and, as the protocol calls it, `traceparent`."""

PROGRESS_EVERY_S = 1.0


def tool(source: Source) -> Tool:
    """Return the tool that `[tools.NAME]` describes.

    Raises:
        ConfigurationError: an option is wrong, the pins are missing, or nothing in them can be offered.
    """
    options = source.read(McpOptions)
    file = source.path(options.pins)
    server = _PinnedServer(source, options, _offered(source, options, file, Pins.load(file)))
    made = server.tool

    async def fetch() -> bytes:
        return (await ask(source, options)).text().encode()

    def build(raw: bytes) -> Tool:
        return _PinnedServer(
            source, options, _offered(source, options, file, codec.read(Pins, raw, limits=codec.DOCUMENT))
        ).tool

    def reload(raw: bytes) -> None:
        server.accept(_offered(source, options, file, codec.read(Pins, raw, limits=codec.DOCUMENT)))

    made.origin = ContractOrigin(file, fetch, build, is_watched=True, reload=reload)
    return made


def _offered(source: Source, options: McpOptions, file: Path, pins: Pins) -> list[McpOperation]:
    offered, left_out = mcp_operations(source.name, pins.tools, options)
    if not offered:
        why = "; ".join(f"{each.name}: {each.why}" for each in left_out)
        raise ConfigurationError(f"{file}: no tool of the MCP server can be offered ({why})")
    unknown = set(options.operations) - {offer.contract.operation.partition(".")[2] for offer in offered}
    if unknown:
        raise ConfigurationError(
            f"tools.{source.name}.options.operations: the server has no {', '.join(sorted(unknown))}"
        )
    return offered


class _PinnedServer:
    """What the operations of one server share."""

    def __init__(self, source: Source, options: McpOptions, pinned: Sequence[McpOperation]) -> None:
        self._source, self._options = source, options
        self._pinned = {offer.contract.operation: offer for offer in pinned}
        self._log: Logger = structlog.get_logger().bind(tool=source.name)
        self._listed: Mapping[str, McpOperation] = self._pinned
        self._left_out: tuple[SkippedTool, ...] = ()
        self.tool = Tool(source.name, lifespan=self._lifespan, concurrency=options.concurrency)
        for offer in pinned:
            self.tool.add(self._operation(offer))

    @asynccontextmanager
    async def _lifespan(self, _resources: Resources) -> AsyncIterator[McpConnection]:
        connection = McpConnection(transport_of(self._source, self._options), self._compare, self._log)
        async with connection.open():
            yield connection

    def _operation(self, offer: McpOperation) -> Operation:
        async def perform(arguments: dict[str, Json], call: Call[McpConnection]) -> Json:
            return await self._perform(offer, arguments, call)

        is_read = not offer.contract.effect.writes
        return Operation(offer.contract, perform, may_be_empty=is_read, facts={} if is_read else words_of(offer))

    async def _perform(self, offer: McpOperation, arguments: dict[str, Json], call: Call[McpConnection]) -> Json:
        try:
            client = call.state.client
        except NotConnectedError as error:
            raise ToolFailure(
                ErrorCode.UNAVAILABLE,
                f"the MCP server of {self._source.name} is not there: {error.why}",
                retry_after_ms=error.retry_after_ms,
                undone=True,
                postponed="breaker",
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
        except TaskFailedError as error:
            raise failure_of_task(error, offer) from None
        except (RuntimeError, ValidationError) as error:
            raise failure_of_shape(error, offer) from None
        if result.is_error:
            raise failure_of_result(result, offer)
        data = data_of(result, offer)
        return {"text": "", "attachments": []} if data is None and offer.contract.effect.writes else data

    def accept(self, accepted: Sequence[McpOperation]) -> None:
        """Take over what somebody has accepted: it is what the server is held to from now on."""
        before, self._pinned = self._pinned, {offer.contract.operation: offer for offer in accepted}
        for name, offer in self._pinned.items():
            if name in self.tool.operations and before.get(name) != offer:
                self.tool.operations[name] = self._operation(offer)
                self.tool.changed.set()
                self._log.info("an accepted contract was taken over", operation=name)
        self._hold()

    def _compare(self, listing: Listing) -> None:
        """Hold what the server offers now against the pins."""
        now, _ = mcp_operations(self._source.name, listing.tools, self._options)
        self._listed = {offer.contract.operation: offer for offer in now}
        if listing.left_out and listing.left_out != self._left_out:
            told = {each.name: each.why for each in listing.left_out}
            self._log.warning("the MCP server lists tools that cannot be offered", left_out=told)
        self._left_out = listing.left_out
        self._hold()
        if new := sorted(self._listed.keys() - self._pinned.keys()):
            self._log.info("the MCP server offers more than was added; add it again to allow it", operations=new)

    def _hold(self) -> None:
        for name in self.tool.operations:
            pinned, offer = self._pinned.get(name), self._listed.get(name)
            if pinned is None:
                self._refuse(name, ["it is not accepted any more"])
            elif offer is None:
                self._refuse(name, ["the server does not offer it any more"])
            else:
                self._apply(name, pinned, offer)
        self.tool.compared.set()

    def _apply(self, name: str, pinned: McpOperation, offer: McpOperation) -> None:
        broken = breaking_changes(pinned.contract, offer.contract)
        words = rewordings_of(pinned, offer)
        if broken or (words and pinned.contract.effect.writes):
            self._refuse(name, [*broken, *words])
            return
        self.tool.quarantined.pop(name, None)
        self.tool.reworded.pop(name, None)
        if words:
            self.tool.reworded[name] = "; ".join(words)
            self._log.warning("the MCP server describes an operation otherwise", operation=name, differences=words)
        # The words that were accepted stay: a model reads no others.
        kept = with_texts_of(pinned.contract, offer.contract)
        if self.tool.operations[name].contract != kept:
            self._log.info("a compatible change of a contract was taken over", operation=name)
            self.tool.replace(self._operation(replace(offer, contract=kept)))

    def _refuse(self, name: str, broken: Sequence[str]) -> None:
        told = "; ".join(broken)
        if self.tool.quarantined.get(name) != told:
            self._log.error("the MCP server broke a contract", operation=name, differences=broken)
        self.tool.quarantined[name] = told


def words_of(offer: McpOperation) -> dict[str, str]:
    """Return what a server says of a tool to models, and of its effect."""
    tool = offer.tool
    hints = tool.annotations.model_dump(exclude_none=True) if tool.annotations else {}
    in_schemas = texts_in_schemas(offer.contract)
    every: Json = [tool.title, tool.description, dict(sorted(in_schemas.items()))]
    return {
        "title": quoted(tool.title or ""),
        "description": quoted(tool.description or ""),
        "hints": ", ".join(f"{name} {value}" for name, value in sorted(hints.items())) or "none",
        **{place: quoted(text) for place, text in in_schemas.items()},
        "words": hashlib.sha256(codec.encode(every)).hexdigest()[:12],
    }


def rewordings_of(old: McpOperation, new: McpOperation) -> list[str]:
    """Return what a server says differently since the tool was accepted."""
    before, now = words_of(old), words_of(new)
    return [
        f"{name}: it was {before.get(name, 'nothing')} and is {now.get(name, 'nothing')}"
        for name in dict.fromkeys((*before, *now))
        if before.get(name) != now.get(name)
    ]


def _meta(call: Call[Any]) -> types.RequestParamsMeta:
    told = upstream_headers()
    names = {RUN_ID: RUN_ID_HEADER, TENANT: TENANT_HEADER, TRACEPARENT: TRACEPARENT}
    origin = {key: told[name] for key, name in names.items() if name in told}
    return cast("types.RequestParamsMeta", {IDEMPOTENCY_KEY: call.idempotency_key, **origin})


class _Progress:
    """Tells the log how far a call is, at most once a second. It extends no deadline."""

    def __init__(self, log: Logger, offer: McpOperation, call: Call[Any]) -> None:
        self._log = log.bind(operation=offer.contract.operation, run_id=str(call.run_id), step=call.step)
        self._told_at = 0.0

    async def __call__(self, progress: float, total: float | None, message: str | None) -> None:
        now = time.monotonic()
        if now - self._told_at >= PROGRESS_EVERY_S:
            self._told_at = now
            self._log.info("progress", progress=progress, total=total, message=message and message[:200])

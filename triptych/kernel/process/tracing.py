"""Traces that go through: from the client's record over every message of a run to what upstreams are sent.

Only identifiers are passed on (W3C Trace Context); nothing is sampled or exported here.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple
from uuid import UUID

TRACEPARENT, CE_TRACEPARENT = "traceparent", "ce_traceparent"
"""The header of W3C Trace Context, and what SDKs of CloudEvents call it."""
RUN_ID_HEADER, TENANT_HEADER = "triptych-run-id", "triptych-tenant"

_TRACEPARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-([0-9a-f]{2})")


class TraceContext(NamedTuple):
    """The trace that a run is a part of."""

    trace_id: str
    """32 hexadecimal digits."""
    flags: str = "01"

    @classmethod
    def of_run(cls, run_id: str) -> TraceContext:
        """Return the trace of a run that no client has begun."""
        return cls(run_id.replace("-", ""))

    @classmethod
    def of_headers(cls, headers: Iterable[tuple[str, bytes | None]]) -> tuple[str, TraceContext] | None:
        """Return the `traceparent` of a record and the trace that it names, or None when it names none."""
        known = dict(headers)
        for name in (TRACEPARENT, CE_TRACEPARENT):
            stated = known.get(name)
            if stated is not None and (trace := cls.of_header(stated)) is not None:
                return stated.decode(), trace
        return None

    @classmethod
    def of_header(cls, stated: bytes | None) -> TraceContext | None:
        """Return the trace that a `traceparent` names, or None when it names none."""
        found = _TRACEPARENT.fullmatch(stated) if stated is not None else None
        return cls(found[1].decode(), found[2].decode()) if found else None

    def parent(self, event_id: str) -> str:
        """Return the `traceparent` of a message: its span follows from its id, so that a repeat has the same."""
        span = hashlib.blake2b(event_id.encode(), digest_size=8).hexdigest()
        return f"00-{self.trace_id}-{span}-{self.flags}"


class _Origin(NamedTuple):
    run_id: UUID
    tenant: str
    traceparent: str | None


_origin: ContextVar[_Origin | None] = ContextVar("origin", default=None)


@contextmanager
def on_behalf_of(run_id: UUID, tenant: str, traceparent: str | None) -> Iterator[None]:
    """Make calls inside this context on behalf of a run."""
    token = _origin.set(_Origin(run_id, tenant, traceparent))
    try:
        yield
    finally:
        _origin.reset(token)


def upstream_headers() -> Mapping[str, str]:
    """Return the headers for an upstream: trace, id and tenant of the run of this call. Empty outside of a call."""
    origin = _origin.get()
    if origin is None:
        return {}
    named = {RUN_ID_HEADER: str(origin.run_id), TENANT_HEADER: origin.tenant}
    return named if origin.traceparent is None else {TRACEPARENT: origin.traceparent, **named}

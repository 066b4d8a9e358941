"""CloudEvents 1.0 over Kafka: binary mode out; binary, structured or bare JSON in.

Source: CloudEvents Kafka protocol binding 1.0.2. Only what Triptych uses: no batching mode.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from aiokafka import ConsumerRecord

from triptych.kernel import failpoints
from triptych.kernel.errors import UndecodableRecord
from triptych.kernel.kafka.record_batches import check_readable
from triptych.schemas import codec
from triptych.schemas.codec import InvalidJson, NotJson

Headers = list[tuple[str, bytes]]

_SPECVERSION = b"1.0"
_STRUCTURED = b"application/cloudevents+json"
DATAREF = "ce_dataref"
_ENVELOPE_LIMITS = codec.JsonLimits(max_depth=codec.MAX_DEPTH + 10)
_NUL = re.compile(rb"(?<!\\)((?:\\\\)*)\\u0000")


def binary_headers(
    *,
    event_id: str,
    event_type: str,
    source: str,
    tenant: str,
    traceparent: str | None = None,
    dataref: str | None = None,
) -> Headers:
    """Headers of a binary-mode event. `event_id` is deterministic, so a repeat is recognisable."""
    headers: Headers = [
        ("ce_specversion", _SPECVERSION),
        ("ce_id", event_id.encode()),
        *_usual_headers(event_type, source, tenant),
    ]
    if traceparent:
        headers.append(("traceparent", traceparent.encode()))
    if dataref:
        headers.append((DATAREF, dataref.encode()))
    return headers


@lru_cache(maxsize=1_024)
def _usual_headers(event_type: str, source: str, tenant: str) -> tuple[tuple[str, bytes], ...]:
    """Return the headers that most messages of a service have in common."""
    return (
        ("ce_type", event_type.encode()),
        ("ce_source", source.encode()),
        ("ce_tenant", tenant.encode()),
        ("content-type", b"application/json"),
    )


def header(headers: Iterable[tuple[str, bytes | None]], name: str) -> bytes | None:
    """Return the last value of a header, or None. A header without a value is None as well."""
    return dict(headers).get(name)


def event_id(headers: Sequence[tuple[str, bytes | None]]) -> str | None:
    """Return the CloudEvents id of a record, or None when it has none."""
    raw = header(headers, "ce_id")
    return raw.decode(errors="replace") if raw else None


def check_version(headers: Mapping[str, bytes | None]) -> None:
    """Refuse other versions of CloudEvents. A record that names no version is taken as it is.

    Raises:
        UndecodableRecord: the record is of another version of CloudEvents than ours.
    """
    version = headers.get("ce_specversion")
    if version is not None and version != _SPECVERSION:
        stated = version[:20].decode(errors="replace")
        raise UndecodableRecord("unknown_specversion", f"ce_specversion is {stated!r}; publish CloudEvents 1.0")


def body(headers: Mapping[str, bytes | None], value: bytes | None) -> bytes:
    """Return the JSON body of a record, in either content mode.

    Raises:
        UndecodableRecord: the record is empty, or claims to be a structured event and is not one.
    """
    if not value:
        raise UndecodableRecord("empty_record", "the record has no value; publish a JSON object")
    if not _content_type(headers).lower().startswith(_STRUCTURED):
        return value
    try:
        envelope = codec.decode(value, limits=_ENVELOPE_LIMITS)
        if "data_base64" in envelope:
            return base64.b64decode(envelope["data_base64"], validate=True)
        return codec.encode(envelope["data"])
    except NotJson:
        raise _no_event() from None
    except InvalidJson:
        return value  # for who reads it: the place of what is wrong, and whose it is, are told there
    except (ValueError, KeyError, TypeError) as error:
        raise _no_event() from error


def _content_type(headers: Mapping[str, bytes | None]) -> bytes:
    """Return the stated content type. The case of its name does not matter: clients over HTTP write `Content-Type`."""
    stated = headers.get("content-type")
    if stated is None:
        names = (name for name in headers if name.lower() in {"content-type", "content_type"})
        stated = next((headers[name] for name in names), None)
    return stated or b""


def _no_event() -> UndecodableRecord:
    return UndecodableRecord(
        "not_a_cloudevent",
        "the content type says structured CloudEvent, but the value has no JSON in `data` or `data_base64`",
    )


def record_body(record: ConsumerRecord[Any, Any]) -> bytes:
    """Return the JSON body of a record that refers to no stored one.

    Raises:
        UndecodableRecord: as `body`; or the record cannot be read at all.
    """
    check_readable(record)
    return body(dict(record.headers), record.value)


def without_nul(body: bytes) -> bytes:
    """Postgres stores no NUL in text, so one that comes in is replaced as Unicode says (U+FFFD)."""
    return _NUL.sub(rb"\1\\ufffd", body) if b"\\u0000" in body else body


def utc_now() -> datetime:
    """Return the wall clock, in UTC. It is passed into pure code, and never read there."""
    return datetime.now(UTC) + failpoints.clock_error

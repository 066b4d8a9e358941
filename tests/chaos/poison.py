"""Records that no service can make sense of, for every topic: drawn from a seed, so that a failure comes back.

Much of it is made of records that the services themselves have sent: replayed, mangled, or put on a
partition where they do not belong.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from aiokafka import ConsumerRecord

LIMIT_BYTES = 8 * 1_048_576
"""What the topics take as one batch."""
OVERHEAD_BYTES = 200
"""Room for the frame around a record and its headers."""
WEEK_MS = 7 * 24 * 3_600_000
UNKNOWN_RUN = "01900000-0000-7000-8000-000000000000"
"""A run that does not exist."""
FORWARDED = "triptych_forwarded"

Headers = list[tuple[str, bytes | None]]


class Fate(Enum):
    """What must happen to a record on a topic that a service reads."""

    DEAD = "a dead letter with its bytes"
    DROPPED = "dropped, for it answers nothing that is open"
    EITHER = "one or the other"


@dataclass(frozen=True)
class Poison:
    """A record to publish, and what must happen to it."""

    kind: str
    topic: str
    fate: Fate
    value: bytes | None
    key: bytes | None = b"poison"
    headers: Sequence[tuple[str, bytes | None]] = ()
    partition: int = 0
    age_ms: int = 0
    """How long ago it claims to have been published."""
    compression: str | None = None


class Brewer:
    """Makes poison for one topic at a time."""

    def __init__(self, seed: int, genuine: Mapping[str, Sequence[ConsumerRecord[Any, Any]]], partitions: int) -> None:
        """`genuine` has, by topic, records of runs that are over."""
        self._random = random.Random(seed)  # noqa: S311 - not for secrets
        self._genuine, self._partitions = genuine, partitions

    def brew(self, topic: str) -> list[Poison]:
        """Poison for this topic, in random order, on all its partitions."""
        poison = [*self._noise(topic), *self._headers(topic), *self._random.sample(list(self._huge(topic)), 2)]
        if records := self._genuine.get(topic):
            chosen = self._random.sample(records, min(3, len(records)))
            poison += [one for record in chosen for one in self._made_of(topic, record)]
        self._random.shuffle(poison)
        return poison

    def _anywhere(self, poison: Poison) -> Poison:
        return replace(poison, partition=self._random.randrange(self._partitions))

    def _noise(self, topic: str) -> Iterator[Poison]:
        """Make values that are not messages."""
        bodies: dict[str, bytes | None] = {
            "tombstone": None,
            "nothing": b"",
            "not an object": self._random.choice([b"[]", b"1", b'"x"', b"null", b"true", b"[[{}]]"]),
            "an empty object": b"{}",
            "a run id of a wrong type": b'{"request_id": 1, "run_id": 5, "tenant": []}',
            "deep arrays": b"[" * 100_000,
            "deep objects": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
            "a deep field": b'{"run_id": ' + b"[" * 400 + b"]" * 400 + b"}",
            "a number without end": b'{"run_id": ' + b"9" * 10_000 + b"}",
            "NaN": b'{"run_id": NaN, "tenant": -Infinity, "request_id": 1e999}',
            "a lone surrogate": b'{"run_id": "\\ud800", "tenant": "\\udfff", "request_id": "\\ud83d"}',
            "not UTF-8": b'{"run_id": "\xff\xfe\xc3\x28"}',
            "NUL": b'{"run_id": "\\u0000", "\\u0000": "\\u0000"}',
            "a raw NUL": b'{"run_id": "\x00"}',
            "a field a megabyte long": b'{"' + b"n" * 1_000_000 + b'": 1}',
            "an unknown version": b'{"version": 99, "schema_version": "99.0", "payload": {}}',
        }
        for kind, body in bodies.items():
            yield self._anywhere(Poison(kind, topic, Fate.DEAD, body, key=self._random.choice([None, b"", b"\xff"])))
        for length in (1, 10, 100, 1_000, 10_000):
            yield self._anywhere(Poison("random bytes", topic, Fate.DEAD, b"\x80" + self._random.randbytes(length)))

    def _headers(self, topic: str) -> Iterator[Poison]:
        """Make headers that mislead their reader."""
        reference = f"claim:{UNKNOWN_RUN}/".encode()
        structured = (("content-type", b"application/cloudevents+json"),)
        cases: dict[str, Headers] = {
            "headers without values": [
                (name, None)
                for name in ("ce_id", "ce_type", "ce_tenant", "ce_dataref", "traceparent", "content-type", FORWARDED)
            ],
            "every header twice": [("ce_id", b"1"), ("ce_id", b"2"), ("ce_tenant", b"a"), ("ce_tenant", b"\xff\xff")],
            "a tenant with NUL": [("ce_tenant", b"a\x00b")],
            "a tenant a megabyte long": [("ce_tenant", b"t" * 1_000_000)],
            "a header name with NUL": [("x\x00y", b"1")],
            "an empty header name": [("", b"")],
            "ten thousand headers": [(f"x-{n}", b"1") for n in range(10_000)],
            "an unknown specversion": [("ce_specversion", b"9.9")],
            "an unknown type": [("ce_specversion", b"1.0"), ("ce_type", b"triptych.nothing.v99")],
            "a trace that is none": [("traceparent", b"\x00\xff")],
            "a reference to nothing": [("ce_dataref", reference + b"0" * 64)],
            "a reference with NUL": [("ce_dataref", reference + b"\x00")],
            "a reference that is none": [("ce_dataref", b"\xff\x00claim")],
            "a reference to a file": [("ce_dataref", b"file:///etc/passwd")],
        }
        for kind, headers in cases.items():
            yield self._anywhere(Poison(kind, topic, Fate.DEAD, b'{"poison": true}', headers=headers))
        envelopes = (b"[]", b"1", b'"data"', b"{}", b'{"data_base64": "%"}', b'{"data": 1}', b"{", b"[" * 100_000)
        for envelope in envelopes:
            kind = "a structured event that is none"
            yield self._anywhere(Poison(kind, topic, Fate.DEAD, envelope, headers=structured))

    def _huge(self, topic: str) -> Iterator[Poison]:
        """Make records as large as the broker takes, in each part of a record."""
        size = LIMIT_BYTES - OVERHEAD_BYTES
        yield self._anywhere(Poison("a huge value", topic, Fate.DEAD, b"\x80" * size))
        yield self._anywhere(Poison("a huge string", topic, Fate.DEAD, b'{"run_id": "' + b"x" * (size - 14) + b'"}'))
        yield self._anywhere(Poison("a huge key", topic, Fate.DEAD, b"\x80", key=b"k" * size))
        yield self._anywhere(Poison("a huge header", topic, Fate.DEAD, b"\x80", headers=[("ce_tenant", b"t" * size)]))
        yield self._anywhere(Poison("swells", topic, Fate.DEAD, b"\x80" * (4 * LIMIT_BYTES), compression="gzip"))

    def _made_of(self, topic: str, record: ConsumerRecord[Any, Any]) -> Iterator[Poison]:
        """Make variants of a record of a run that is over."""
        value, headers = record.value, list(record.headers)
        other = (record.partition + 1) % self._partitions
        genuine = Poison("replayed", topic, Fate.DROPPED, value, record.key, headers, record.partition)
        yield genuine
        yield replace(genuine, kind="replayed from a week ago", age_ms=WEEK_MS)
        yield replace(genuine, kind="replayed on another partition", partition=other, age_ms=WEEK_MS)
        version = [(name, b"2.0" if name == "ce_specversion" else content) for name, content in headers]
        if version != headers:
            yield replace(genuine, kind="of another specversion", fate=Fate.DEAD, headers=version)
        for codec in ("gzip", "lz4", "snappy", "zstd"):
            yield replace(genuine, kind=f"replayed, packed with {codec}", compression=codec)
        yield replace(genuine, kind="cut off", fate=Fate.DEAD, value=value[: len(value) // 2])
        flipped = bytearray(value)
        flipped[0] ^= 0xFF
        yield replace(genuine, kind="a flipped byte", fate=Fate.DEAD, value=bytes(flipped))
        fields = json.loads(value)
        if "run_id" in fields:
            yield replace(genuine, kind="without its run", fate=Fate.DEAD, value=_without(fields, "run_id"))
            newer = _with(fields, newer={"schema": 99})
            yield replace(genuine, kind="a field of a newer version", fate=Fate.EITHER, value=newer)
            # A worker does not ask whether a run exists: it does what it is asked, once. The executor knows.
            if not topic.partition(".")[2].startswith(("calls.", "plan-requests", "reviews", "withdrawals")):
                yield replace(
                    genuine, kind="of an unknown run", fate=Fate.DEAD, value=_with(fields, run_id=UNKNOWN_RUN)
                )
                yield replace(
                    genuine,
                    kind="said to be forwarded to the wrong partition",
                    fate=Fate.DEAD,
                    partition=other,
                    headers=[*headers, (FORWARDED, b"1")],
                )
                framed = len(_with(fields)) + sum(len(k) + len(v or b"") + 10 for k, v in headers)
                padding = LIMIT_BYTES - OVERHEAD_BYTES - framed
                yield replace(
                    genuine,
                    kind="huge, on another partition",
                    fate=Fate.EITHER,
                    partition=other,
                    value=_with(fields, newer="x" * padding),
                )
        elif {"tool", "command_id"} <= fields.keys():
            # Who writes a command down must outlive what no row can hold.
            yield replace(genuine, kind="a command with NUL", value=_command(fields, note="\0", principal="x\0y"))
            yield replace(genuine, kind="a command of no time", value=_command(fields, at="0001-01-01T00:00:00+14:00"))
            yield replace(
                genuine, kind="a command for an unknown operation", value=_command(fields, operation="none.nothing")
            )
            yield replace(genuine, kind="a command for an unknown tool", value=_command(fields, tool="none"))
        elif "playbook" in fields:
            yield replace(genuine, kind="a task with a typing error", fate=Fate.DEAD, value=_task(fields, inptu={}))
            yield replace(genuine, kind="a task of no playbook", fate=Fate.DEAD, value=_task(fields, playbook="none"))
            yield replace(genuine, kind="a task without input", fate=Fate.DEAD, value=_task(fields, input={}))
            nameless = {**fields, "task_id": None, "input": {**fields["input"], "ticket_id": "T-poison"}}
            yield replace(
                genuine,
                kind="a task forwarded from nowhere",
                value=_with(nameless),
                headers=[*headers, (FORWARDED, b"a\x00b")],
            )
            deep: dict[str, Any] = {}
            for _ in range(150):
                deep = {"a": deep}
            yield replace(genuine, kind="a task too deep", fate=Fate.DEAD, value=_task(fields, input=deep))


def _with(fields: Mapping[str, Any], **changes: Any) -> bytes:
    return json.dumps({**fields, **changes}).encode()


def _without(fields: Mapping[str, Any], name: str) -> bytes:
    return json.dumps({key: value for key, value in fields.items() if key != name}).encode()


def _command(fields: Mapping[str, Any], **changes: Any) -> bytes:
    return _with(fields, **{"command_id": f"poison-{sorted(changes)}", "breaker": "auto"} | changes)


def _task(fields: Mapping[str, Any], **changes: Any) -> bytes:
    return _with(fields, task_id=f"poison-{fields['task_id']}", **changes)

"""What was polled and not yet taken: it is taken in portions of bounded size, fair between partitions.

A record that is under suspicion is taken alone. Those behind it on its partition wait for it; the other partitions
go on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

from triptych.kernel.kafka.bus import Record, TopicPartition

PORTION_MAX_BYTES = 4_194_304
"""A batch holds records of so many bytes at most, unless it is a single one."""

Records: TypeAlias = "dict[TopicPartition, list[Record[Any, Any]]]"


class Portion(NamedTuple):
    """What is decided and written together."""

    records: Records
    is_suspect: bool = False
    """It is one record that may be what ended a process, or what the database refuses."""


class Backlog:
    """The records of one process, in order within each partition."""

    def __init__(self, max_records: int, max_bytes: int = PORTION_MAX_BYTES) -> None:
        self._max_records, self._max_bytes = max_records, max_bytes
        self._waiting: dict[TopicPartition, deque[Record[Any, Any]]] = {}
        self._suspect_next = True

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def clear(self) -> None:
        """Forget everything: it is polled again from where the next owner begins."""
        self._waiting.clear()

    def put(self, polled: Records) -> None:
        """Let polled records wait."""
        for source, records in polled.items():
            if records:
                self._waiting.setdefault(source, deque()).extend(records)

    def take(self, is_suspect: Callable[[Record[Any, Any]], bool]) -> Portion:
        """Return the next portion; a suspect and a portion of others take turns."""
        suspects = [source for source, records in self._waiting.items() if is_suspect(records[0])]
        if suspects and (self._suspect_next or len(suspects) == len(self._waiting)):
            self._suspect_next = False
            return Portion({suspects[0]: [self._pop(suspects[0])]}, is_suspect=True)
        self._suspect_next = True
        return Portion(self._others(is_suspect) if suspects or not self._is_small() else self._all())

    def _is_small(self) -> bool:
        """Return whether all of it fits in a portion, as it nearly always does."""
        queues = self._waiting.values()
        return (
            sum(map(len, queues)) <= self._max_records
            and sum(size_bytes(record) for records in queues for record in records) <= self._max_bytes
        )

    def _all(self) -> Records:
        taken = {source: list(records) for source, records in self._waiting.items()}
        self._waiting.clear()
        return taken

    def _others(self, is_suspect: Callable[[Record[Any, Any]], bool]) -> Records:
        """Return one record of each partition in turn, as far as the portion holds them."""
        taken: Records = {}
        left_records, left_bytes = self._max_records, self._max_bytes
        sources = [source for source, records in self._waiting.items() if not is_suspect(records[0])]
        while sources and left_records:
            for source in tuple(sources):
                record = self._waiting[source][0]
                left_bytes -= size_bytes(record)
                if (left_bytes < 0 and taken) or not left_records:
                    return taken
                taken.setdefault(source, []).append(self._pop(source))
                left_records -= 1
                if source not in self._waiting or is_suspect(self._waiting[source][0]):
                    sources.remove(source)
        return taken

    def _pop(self, source: TopicPartition) -> Record[Any, Any]:
        records = self._waiting[source]
        record = records.popleft()
        # A partition that has been served goes to the end of the line.
        del self._waiting[source]
        if records:
            self._waiting[source] = records
        return record


def size_bytes(record: Record[Any, Any]) -> int:
    """Return the size of a record, key and headers included."""
    headers = sum(len(name) + len(content or b"") for name, content in record.headers)
    return len(record.key or b"") + len(record.value or b"") + headers

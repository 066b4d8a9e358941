"""A fetch session: a consumer names only the partitions that it reads on from another place than before (KIP-227).

aiokafka names every partition in every fetch, and the broker answers for every one. Both sides pay for that in each
batch, however many partitions had a record. A broker that keeps a session remembers what was asked, and answers for
partitions with news. A session is never trusted after a doubt: the next fetch names everything again.
"""

from __future__ import annotations

import copy
from collections.abc import Awaitable, Sequence
from typing import Any, TypeAlias

from aiokafka.errors import FetchSessionIdNotFound
from aiokafka.protocol.fetch import FetchRequest

Wanted: TypeAlias = "Sequence[tuple[str, Sequence[tuple[int, int, int]]]]"
"""Topics, with partitions, the offsets to read from, and how many bytes to read."""

NO_SESSION = 0
FULL = 0
"""The epoch of a fetch that names everything. The broker ends the session that it names and begins another."""
FIRST_VERSION = 7
"""Of the fetch request. Older ones know no sessions."""
_LAST_EPOCH = 2**31 - 1


class FetchSession:
    """What one broker remembers of the fetches of one consumer."""

    def __init__(self) -> None:
        self.id, self.epoch = NO_SESSION, FULL
        self._remembered: dict[tuple[str, int], tuple[int, int]] = {}
        """From where the broker reads each partition, and how much."""

    def of(self, fetch: FetchRequest) -> SessionFetch:
        """Return this fetch, which names everything, as one of this session."""
        return SessionFetch(self, fetch)

    def restart(self) -> None:
        """Name everything in the next fetch: it is not certain what the broker remembers."""
        self.epoch = FULL

    async def exchange(self, sent: Awaitable[Any]) -> Any:
        """Wait for the answer to a fetch of this session. If none comes, nothing is certain."""
        try:
            response = await sent
        except BaseException:
            self.restart()
            raise
        self.answered(response)
        return response

    def ask(self, wanted: Wanted) -> tuple[list[tuple[str, list[tuple[int, int, int]]]], list[tuple[str, list[int]]]]:
        """Return what the next fetch has to name: what is read from elsewhere now, and what is not read any more."""
        remembered = {} if self.epoch == FULL else self._remembered
        self._remembered = {
            (topic, partition): (offset, max_bytes)
            for topic, partitions in wanted
            for partition, offset, max_bytes in partitions
        }
        changed: dict[str, list[tuple[int, int, int]]] = {}
        for (topic, partition), place in self._remembered.items():
            if remembered.get((topic, partition)) != place:
                changed.setdefault(topic, []).append((partition, *place))
        forgotten: dict[str, list[int]] = {}
        for topic, partition in remembered.keys() - self._remembered.keys():
            forgotten.setdefault(topic, []).append(partition)
        return list(changed.items()), list(forgotten.items())

    def answered(self, response: Any) -> None:
        """Take over what the broker says of the session. It may end one at any time."""
        if response.API_VERSION < FIRST_VERSION:
            return
        if response.error_code:
            self.id = NO_SESSION if response.error_code == FetchSessionIdNotFound.errno else self.id
            self.restart()
        elif response.session_id == NO_SESSION:
            self.id, self.epoch = NO_SESSION, FULL
        else:
            self.id, self.epoch = response.session_id, self.epoch % _LAST_EPOCH + 1
        # The reader dies of a partition that it has not asked for.
        response.topics = [
            (topic, [each for each in partitions if (topic, each[0]) in self._remembered])
            for topic, partitions in response.topics
        ]


class SessionFetch(FetchRequest):  # type: ignore[misc]  # aiokafka is untyped
    """A fetch that sends only the news. Its `topics` are still everything that is asked for."""

    def __init__(self, session: FetchSession, fetch: FetchRequest) -> None:
        self.__dict__.update(vars(fetch))
        self.session = session

    def build(self, request_struct_class: Any) -> Any:
        """Return what goes over the wire in this version of the protocol."""
        if request_struct_class.API_VERSION < FIRST_VERSION:
            return super().build(request_struct_class)
        session_id, epoch = self.session.id, self.session.epoch
        news = copy.copy(self)
        news.__dict__["_topics"], forgotten = self.session.ask(self.topics)
        request: Any = FetchRequest.build(news, request_struct_class)
        request.session_id, request.session_epoch, request.forgotten_topics_data = session_id, epoch, forgotten
        return request

"""The client: what goes in and what comes out, over Kafka and nothing else.

It is what any Kafka client in any language can do, made comfortable. It never touches the database.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from aiokafka.errors import KafkaError, MessageSizeTooLargeError, UnknownTopicOrPartitionError

from triptych.client.address import Address
from triptych.client.errors import (
    KafkaUnreachableError,
    NoOutcomeError,
    NotAcceptedError,
    TooLargeError,
    TopicMissingError,
)
from triptych.client.feed import CONNECT_TIMEOUT_MS, Feed
from triptych.kernel.kafka.clients import Producer
from triptych.kernel.kafka.cloudevents import Headers, binary_headers, utc_now
from triptych.schemas import Control, ControlAction, Json, Outcome, Task, codec
from triptych.schemas import topics as t
from triptych.schemas.task import BreakerMode, ToolControl

MAX_RECORDS = 10_000
"""Of so many task ids a client remembers where their tasks lie."""
SEND_TIMEOUT_S = 30.0
MAX_MESSAGE_BYTES = 8 * 1_048_576
SOURCE = "/triptych/client"

_EVENT_TYPES = {topic.noun: topic.event_type for topic in t.CATALOG}


@dataclass(frozen=True, slots=True)
class Receipt:
    """Where a record landed. A dead letter names the same three."""

    topic: str
    partition: int
    offset: int


class Client:
    """Submits tasks and waits for outcomes. Async context manager; safe to share within one event loop."""

    def __init__(self, kafka: str, topic_prefix: str = "triptych") -> None:
        self._address = Address(kafka, topic_prefix)
        self._producer: Producer | None = None
        self._records: dict[tuple[str, str], set[str]] = {}
        """Where the tasks lie that this client has submitted, by tenant and id."""

    @classmethod
    def from_stack(cls, data_dir: Path = Path(".triptych")) -> Self:
        """Make a client of the stack that `triptych up` started in `data_dir`.

        Raises:
            NoStackError: nothing was started there.
        """
        address = Address.from_stack(data_dir)
        return cls(address.kafka, address.topic_prefix)

    async def __aenter__(self) -> Self:
        producer = Producer(
            bootstrap_servers=self._address.kafka,
            acks="all",
            enable_idempotence=True,
            linger_ms=0,
            max_request_size=MAX_MESSAGE_BYTES,
            request_timeout_ms=CONNECT_TIMEOUT_MS,
        )
        try:
            await producer.start()
            metadata = await producer.client.fetch_all_metadata()
        except KafkaError as error:
            await producer.stop()
            raise KafkaUnreachableError(self._address.kafka, error) from error
        tasks = self._address.topic(t.TASKS)
        if tasks not in metadata.topics():
            await producer.stop()
            raise TopicMissingError(tasks, self._address.kafka)
        self._producer = producer
        return self

    async def __aexit__(self, *_exc: object) -> None:
        if self._producer is not None:
            await self._producer.stop()

    # Tasks in

    async def submit(
        self,
        playbook: str,
        input: dict[str, Json],  # noqa: A002 - the word that the wire and the playbooks use
        *,
        tenant: str = "default",
        principal: str = "anonymous",
        task_id: str | None = None,
        traceparent: str | None = None,
    ) -> str:
        """Submit one task and give its id; the same id twice in a tenant is one run.

        With a `traceparent` (W3C Trace Context) the run goes on with that trace.

        Raises:
            pydantic.ValidationError: a field does not have its form.
            codec.InvalidJson: the input holds what JSON cannot say, or too much of it; the place is told.
            NotAcceptedError: Kafka did not acknowledge it. Submitting again with the same id is safe.
            TooLargeError: Kafka takes no message of this size.
        """
        task = Task(playbook=playbook, input=input, tenant=tenant, principal=principal, task_id=task_id)
        return (await self.submit_many([task], traceparent=traceparent))[0]

    async def submit_many(self, tasks: Iterable[Task], *, traceparent: str | None = None) -> list[str]:
        """Submit tasks together, on one trace, and give their ids, in order. A task without an id gets a random one."""
        named = [task.model_copy(update={"task_id": task.task_id or str(uuid.uuid4())}) for task in tasks]
        await asyncio.gather(*(self._submit(task, traceparent) for task in named))
        return [str(task.task_id) for task in named]

    async def _submit(self, task: Task, traceparent: str | None) -> None:
        headers = binary_headers(
            event_id=f"task:{task.tenant}:{task.task_id}",
            event_type=_EVENT_TYPES[t.TASKS],
            source=SOURCE,
            tenant=task.tenant,
            traceparent=traceparent,
        )
        written = task.to_bytes()
        codec.check_text(written, limits=codec.TASK)
        receipt = await self._send(t.TASKS, written, key=str(task.task_id).encode(), headers=headers)
        record = f"{receipt.topic}:{receipt.partition}:{receipt.offset}"
        self._records.setdefault((task.tenant, str(task.task_id)), set()).add(record)
        if len(self._records) > MAX_RECORDS:
            del self._records[next(iter(self._records))]

    async def submit_raw(self, values: Iterable[bytes]) -> list[Receipt]:
        """Publish bytes to the topic of tasks as they are, without key or headers, whether or not they are tasks."""
        return await asyncio.gather(*(self._send(t.TASKS, value) for value in values))

    # Outcomes out

    def feed(self, *, dead_letters: bool = False, from_start: bool = False, to_end: bool = False) -> Feed:
        """Outcomes, and dead letters if wanted, from the moment the feed is opened (or all that Kafka still has).

        Open it before you submit, and no outcome is missed.
        """
        nouns = (t.OUTCOMES, t.DEAD_LETTERS) if dead_letters else (t.OUTCOMES,)
        return Feed(self._address, nouns, from_start=from_start, to_end=to_end)

    async def follow(self, *, tenant: str | None = None, from_start: bool = False) -> AsyncIterator[Outcome]:
        """Outcomes as they come, for ever; of one tenant if it is named."""
        async with self.feed(from_start=from_start) as feed:
            async for message in feed:
                if isinstance(message, Outcome) and tenant in (None, message.tenant):
                    yield message

    async def wait(
        self, task_id: str, *, tenant: str = "default", timeout_s: float = 300.0, final: bool = True
    ) -> Outcome:
        """Return the outcome of a task, however long ago any client submitted it.

        It reads all outcomes that Kafka still has; to wait for many tasks, use one `feed`. With `final=False` an
        escalation counts as an outcome too. A task of this client whose id belongs to another task is `rejected` with
        the reason `conflict`.

        Raises:
            NoOutcomeError: `timeout_s` is over. The run goes on.
        """
        try:
            async with asyncio.timeout(timeout_s), self.feed(from_start=True) as feed:
                async for message in feed:
                    if not isinstance(message, Outcome) or (message.tenant, message.task_id) != (tenant, task_id):
                        continue
                    if message.record is not None:
                        if message.record in self._records.get((tenant, task_id), ()):
                            return message
                        continue  # somebody else has taken the id for another task
                    if message.final or not final:
                        return message
        except TimeoutError:
            pass
        raise NoOutcomeError(task_id, tenant, timeout_s)

    # Commands

    async def control(
        self,
        run_id: uuid.UUID,
        partition: int,
        action: ControlAction,
        *,
        principal: str,
        note: str = "",
        step: str | None = None,
        data: Json = None,
        extend: dict[str, float] | None = None,
        undo: bool = False,
    ) -> str:
        """Send a command to a run, on the run's own partition, and return the command's id.

        The command is sent, not done: its result is in the run's journal.
        """
        command = Control(
            command_id=str(uuid.uuid4()),
            run_id=run_id,
            action=action,
            principal=principal,
            note=note,
            step=step,
            data=data,
            extend=extend or {},
            undo=undo,
        )
        headers = binary_headers(
            event_id=f"control:{command.command_id}",
            event_type=_EVENT_TYPES[t.CONTROL],
            source=SOURCE,
            tenant="default",
        )
        await self._send(t.CONTROL, command.to_bytes(), key=str(run_id).encode(), headers=headers, partition=partition)
        return command.command_id

    async def control_tool(
        self, tool: str, operation: str | None, breaker: BreakerMode | None, *, principal: str, note: str = ""
    ) -> str:
        """Tell all processes of a tool to hold a breaker, or to probe their upstream; gives the command's id."""
        command = ToolControl(
            command_id=str(uuid.uuid4()),
            tool=tool,
            operation=operation,
            breaker=breaker,
            principal=principal,
            note=note,
            at=utc_now(),
        )
        headers = binary_headers(
            event_id=f"tool-control:{command.command_id}",
            event_type=_EVENT_TYPES[t.TOOL_CONTROLS],
            source=SOURCE,
            tenant="default",
        )
        # Compaction keeps the newest of each key: how a breaker is held must outlive a probe.
        key = f"{operation or tool}{'' if breaker else ':probe'}"
        await self._send(t.TOOL_CONTROLS, command.to_bytes(), key=key.encode(), headers=headers, partition=0)
        return command.command_id

    async def _send(
        self,
        noun: str,
        value: bytes,
        *,
        key: bytes | None = None,
        headers: Headers | None = None,
        partition: int | None = None,
    ) -> Receipt:
        if self._producer is None:
            raise RuntimeError("the client is not open; use it as `async with Client(...) as client`")
        topic = self._address.topic(noun)
        try:
            async with asyncio.timeout(SEND_TIMEOUT_S):
                sent = await self._producer.send_and_wait(
                    topic, value, key=key, headers=headers or [], partition=partition
                )
        except UnknownTopicOrPartitionError as error:
            raise TopicMissingError(topic, self._address.kafka) from error
        except MessageSizeTooLargeError as error:
            raise TooLargeError(topic, len(value), MAX_MESSAGE_BYTES) from error
        except (KafkaError, TimeoutError) as error:
            raise NotAcceptedError(topic, error) from error
        return Receipt(sent.topic, sent.partition, sent.offset)

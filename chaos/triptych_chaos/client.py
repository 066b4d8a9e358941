"""The load: a plain Kafka client that publishes tasks and collects outcomes, as any client in any language would.

It does only what the guarantees tell clients to do. It knows an outcome by its `ce_id`. When no outcome comes, it
publishes the task again under the same id.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import random
import time
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

import aiokafka
from aiokafka.errors import KafkaError

from triptych_chaos.history import History
from triptych_chaos.services import PREFIX
from triptych_chaos.workload import BODY, CALLS, SUBJECT

T = TypeVar("T")

AGAIN_AFTER_S = 40.0
"""A client waits so long for an outcome before it publishes the task again."""
TENANTS = 5
DUPLICATED = 0.05
"""The share of tasks that is published twice at the same time."""
ASKED_AGAIN = 0.02
"""So many are published again when their outcome is there."""
TROUBLED = {0.03: "-drop-", 0.06: "-flaky-"}
"""Up to which share of the tickets the helpdesk has what trouble of its own."""
JUDGED = 0.5
"""So many runs ask a model for a draft and another for its judgement."""
REPEATED = 0.1
"""So many ask what others have asked before, so that the cache of answers has something to answer; no other does."""
PLANNED = 0.15
"""So many have a model plan them; all others have a fixed plan."""
DELIVERIES = 0.3
"""So many runs wait for a webhook that says that their delivery was made."""

_SEND_TIMEOUT_S = 20.0
_DEAF_AFTER_S = 25.0
"""Without any outcome for so long the consumer is replaced by one that reads from the beginning."""
_ABANDONED: set[asyncio.Future[Any]] = set()
_ACCOUNT = "Quuxly"
"""The knowledge base has nothing about it: who has planned to look it up has to plan again."""


@dataclass(slots=True)
class Observed:
    """What the client knows of one task. Numbers are lines of the history."""

    tenant: str
    task: bytes
    ask_again: bool
    has_delivery: bool = False
    published: list[int] = field(default_factory=list)
    acked: list[int] = field(default_factory=list)
    finals: dict[tuple[str, str], list[int]] = field(default_factory=dict)
    """By `ce_id` and hash of the body, each time it was delivered."""
    status: str = ""
    run_id: str = ""
    first_published_s: float = 0.0
    last_published_s: float = 0.0
    ended_after_s: float | None = None


class Client:
    """Publishes and collects until it is stopped."""

    def __init__(self, kafka: str, history: History, dice: random.Random) -> None:
        self.tasks: dict[str, Observed] = {}
        self.strangers: list[int] = []
        """Lines of final outcomes of tasks that this client did not publish."""
        self.deliveries = 0
        self.published_again = 0
        self._kafka, self._history, self._dice = kafka, history, dice
        self._producer: aiokafka.AIOKafkaProducer | None = None
        self._connecting = asyncio.Lock()
        self._sending: set[asyncio.Task[None]] = set()
        self._start_over = asyncio.Event()

    @property
    def pending(self) -> list[str]:
        return [task_id for task_id, seen in self.tasks.items() if not seen.finals]

    async def close(self) -> None:
        for sending in self._sending:
            sending.cancel()
        if self._producer is not None:
            await _quietly_stop(self._producer)

    def kafka_is_another(self) -> None:
        """Read from the beginning: the cluster is a new one, and offsets of the old one mean nothing."""
        self._start_over.set()

    # --- tasks ------------------------------------------------------------------------------------

    async def publish_constantly(self, rate: float) -> None:
        """Publish `rate` new tasks a second until cancelled."""
        due = time.monotonic()
        while True:
            self.publish_new()
            due += 1 / rate
            await asyncio.sleep(max(0.0, due - time.monotonic()))

    def publish_new(self) -> None:
        number, dice = len(self.tasks), self._dice
        trouble = dice.random()
        mark = next((mark for share, mark in TROUBLED.items() if trouble < share), "-plain-")
        task_id, tenant = f"task{mark}{number}", f"tenant-{dice.randrange(TENANTS)}"
        is_planned = dice.random() < PLANNED
        has_delivery = dice.random() < DELIVERIES and not is_planned
        question = BODY if dice.random() < REPEATED else f"{BODY} ({task_id})"
        calls = {"subject": SUBJECT, "body": question, "judged": dice.random() < JUDGED, "delivery": has_delivery}
        review = {"account": _ACCOUNT, "question": question}
        task = {
            "task_id": task_id,
            "playbook": "review" if is_planned else CALLS,
            "tenant": tenant,
            "principal": "user:nemesis",
            "input": {"ticket_id": f"T-{task_id}", **(review if is_planned else calls)},
        }
        twice, again = dice.random() < DUPLICATED, dice.random() < ASKED_AGAIN
        self.tasks[task_id] = Observed(
            tenant, json.dumps(task).encode(), again, has_delivery, first_published_s=time.monotonic()
        )
        for _ in range(1 + twice):
            self._publish(task_id)

    async def publish_the_unanswered_again(self) -> None:
        """Publish tasks again that have had no outcome for too long, until cancelled."""
        while True:
            await asyncio.sleep(2.0)
            late = time.monotonic() - AGAIN_AFTER_S
            for task_id in self.pending:
                if self.tasks[task_id].last_published_s < late:
                    self.published_again += 1
                    self._publish(task_id)

    def _publish(self, task_id: str) -> None:
        seen = self.tasks[task_id]
        seen.last_published_s = time.monotonic()
        seen.published.append(self._history.write("published", task=task_id, time=len(seen.published) + 1))
        sending = asyncio.create_task(self._send(task_id, seen))
        self._sending.add(sending)
        sending.add_done_callback(self._sending.discard)

    async def _send(self, task_id: str, seen: Observed) -> None:
        producer = None
        try:
            producer = await self._connected()
            sent = await within(_SEND_TIMEOUT_S, producer.send_and_wait(f"{PREFIX}.tasks", seen.task))
        except (KafkaError, TimeoutError, OSError) as error:
            self._history.write("publish in doubt", task=task_id, error=repr(error))
            if producer is not None and producer is self._producer:
                self._producer = None
                await _quietly_stop(producer)
        else:
            seen.acked.append(self._history.write("acked", task=task_id, partition=sent.partition, offset=sent.offset))

    async def _connected(self) -> aiokafka.AIOKafkaProducer:
        async with self._connecting:
            if self._producer is None:
                producer = aiokafka.AIOKafkaProducer(
                    bootstrap_servers=self._kafka, acks="all", request_timeout_ms=15_000, metadata_max_age_ms=5_000
                )
                try:
                    await within(_SEND_TIMEOUT_S, producer.start())
                except BaseException:
                    await _quietly_stop(producer)
                    raise
                self._producer = producer
            return self._producer

    # --- outcomes ---------------------------------------------------------------------------------

    async def collect(self) -> None:
        """Read outcomes for ever, over as many consumers as it takes."""
        lost_for = ""
        while True:
            self._start_over.clear()
            consumer = aiokafka.AIOKafkaConsumer(
                f"{PREFIX}.outcomes",
                bootstrap_servers=self._kafka,
                group_id=None,
                auto_offset_reset="earliest",
                isolation_level="read_committed",
                request_timeout_ms=15_000,
                metadata_max_age_ms=5_000,
            )
            try:
                await within(_SEND_TIMEOUT_S, consumer.start())
                await self._read(consumer)
            except (KafkaError, TimeoutError, OSError) as error:
                if repr(error) != lost_for:
                    lost_for = repr(error)
                    self._history.write("consumer lost", error=lost_for)
                await asyncio.sleep(1.0)
            finally:
                await _quietly_stop(consumer)

    async def _read(self, consumer: aiokafka.AIOKafkaConsumer) -> None:
        heard_at = time.monotonic()
        while not self._start_over.is_set() and time.monotonic() - heard_at < _DEAF_AFTER_S:
            polled = await within(_SEND_TIMEOUT_S, consumer.getmany(timeout_ms=500))
            for records in polled.values():
                heard_at = time.monotonic()
                for record in records:
                    self._take(dict(record.headers)["ce_id"].decode(), record.value, (record.partition, record.offset))

    def _take(self, ce_id: str, body: bytes, place: tuple[int, int]) -> None:
        outcome = json.loads(body)
        task_id, is_final = outcome["task_id"], outcome["final"]
        digest = hashlib.sha256(body).hexdigest()[:16]
        self.deliveries += 1
        line = self._history.write(
            "outcome",
            task=task_id,
            run=outcome["run_id"],
            ce_id=ce_id,
            body=digest,
            at_offset=place,
            status=outcome["status"],
            final=is_final,
            reason=outcome["reason"]["code"],
        )
        if not is_final:
            return
        seen = self.tasks.get(task_id)
        if seen is None or seen.tenant != outcome["tenant"]:
            self.strangers.append(line)
            return
        is_first = not seen.finals
        seen.finals.setdefault((ce_id, digest), []).append(line)
        seen.status, seen.run_id = outcome["status"], outcome["run_id"]
        if is_first:
            seen.ended_after_s = time.monotonic() - seen.first_published_s
            if seen.ask_again:
                self._publish(task_id)


async def within(seconds: float, waited_for: Coroutine[Any, Any, T]) -> T:
    """Return the result, or raise TimeoutError. A call of aiokafka that does not end when cancelled is left alone.

    A call that aiokafka cancels itself, as when it loses its broker, raises OSError here: a CancelledError would end
    the waiting task silently.
    """
    task = asyncio.ensure_future(waited_for)
    try:
        done, _ = await asyncio.wait({task}, timeout=seconds)
    except asyncio.CancelledError:
        task.cancel()
        raise
    if not done:
        task.cancel()
        _ABANDONED.add(task)
        task.add_done_callback(_forget)
        raise TimeoutError
    if task.cancelled():
        raise ConnectionAbortedError("the Kafka client has cancelled what it was asked for")
    return task.result()


def _forget(task: asyncio.Future[Any]) -> None:
    """Read the exception, so that asyncio does not log it as never retrieved."""
    _ABANDONED.discard(task)
    if not task.cancelled():
        task.exception()


async def _quietly_stop(client: aiokafka.AIOKafkaProducer | aiokafka.AIOKafkaConsumer) -> None:
    """Stop a client within a few seconds; its broker may be gone."""
    with contextlib.suppress(KafkaError, TimeoutError, OSError):
        await within(5.0, client.stop())

"""The decider loop: a batch of records in, one statement to Postgres, messages out.

The owner of a partition is the only writer of its runs. A session ends when it is fenced. It also ends when a server is
gone and the outcome of a statement is not known. The next session begins from what is stored: a new claim, the stored
offsets, the outbox first.
"""

from __future__ import annotations

from typing import Generic

import asyncpg

from triptych.kernel.concurrency.cancellation import foreign_cancellation
from triptych.kernel.decider.batch import DeciderContext
from triptych.kernel.decider.contract import DeciderStore, Domain, StateT
from triptych.kernel.decider.session import LOOP, Session
from triptych.kernel.errors import BatchRefused, Fenced, TopicsDifferError, TopicsReplacedError
from triptych.kernel.kafka.bus import Kafka
from triptych.kernel.postgres.outbox import Envelope
from triptych.kernel.process.outage import KAFKA_GONE, POSTGRES_GONE, Outage
from triptych.kernel.process.service import Service
from triptych.kernel.process.settings import ServiceSettings

LOOP_SILENCE_S = 60.0


class DeciderLoop(Generic[StateT]):
    """Runs a domain over its topics until the service stops."""

    def __init__(
        self,
        service: Service,
        settings: ServiceSettings,
        domain: Domain[StateT],
        store: DeciderStore[StateT],
        pool: asyncpg.Pool,
        *,
        kafka: Kafka | None = None,
    ) -> None:
        envelope, outage = Envelope(settings, service.name), Outage(service.log, "kafka or postgres")
        self._context = DeciderContext(
            service, settings, domain, store, pool, envelope, outage, kafka or Kafka(settings)
        )
        self._session: Session[StateT] | None = None
        service.health.expect(LOOP, LOOP_SILENCE_S)
        service.health.depend("postgres", lambda: pool.execute("select 1"))
        service.health.depend("kafka", self._probe_kafka)
        service.health.depend("topics", self._probe_topics)

    async def run(self) -> None:
        """Run one session after another until the service stops."""
        service, outage = self._context.service, self._context.outage
        async with self._context.kafka.publisher() as publisher:
            while not service.stopping.is_set():
                try:
                    self._session = Session(self._context, publisher)
                    with foreign_cancellation():
                        await self._session.run()
                except Fenced as error:
                    service.health.count("fenced")
                    service.log.warning("fenced; rejoining", partitions=error.partitions)
                    await outage.wait(error, unless=service.stopping)
                except TopicsReplacedError as error:
                    service.log.warning(
                        "topics were created again; reading them from their beginning", topics=error.topics
                    )
                except BatchRefused as error:
                    service.log.warning("a batch was refused; taking its records one by one", error=str(error))
                except (*POSTGRES_GONE, *KAFKA_GONE) as error:
                    service.health.beat(LOOP)
                    await outage.wait(error, unless=service.stopping)

    async def _probe_topics(self) -> None:
        if self._session is not None and self._session.problem is not None:
            raise TopicsDifferError(self._session.problem)

    async def _probe_kafka(self) -> None:
        if self._session is None:
            raise ConnectionError("no session with Kafka yet")
        await self._session.look()

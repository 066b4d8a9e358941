"""The process of one tool: load it, announce its contracts, and work until stopped."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import os
from contextlib import suppress
from functools import partial

from pydantic_settings import BaseSettings

from triptych.kernel.concurrency.cancellation import foreign_cancellation
from triptych.kernel.errors import ConfigurationError, MessagesRefused
from triptych.kernel.kafka import cloudevents
from triptych.kernel.kafka.bus import REQUEST_MAX_BYTES, Kafka, Outgoing, fits
from triptych.kernel.kafka.topic_metadata import ClusterTopics
from triptych.kernel.postgres import database
from triptych.kernel.process.outage import KAFKA_GONE, Outage
from triptych.kernel.process.service import Service
from triptych.kernel.process.settings import ServiceSettings
from triptych.kernel.worker import WorkerConfig, run_worker
from triptych.schemas import topics
from triptych.tools.guard.protection import Protection
from triptych.tools.runtime.alerts import Alerts
from triptych.tools.runtime.attempt import ToolWorker
from triptych.tools.runtime.callbacks import CallbackSettings, PostgresCallbacks
from triptych.tools.runtime.drift import DriftWatch
from triptych.tools.runtime.effect_ledger import PostgresEffectLedger
from triptych.tools.runtime.last_answers import LastAnswers
from triptych.tools.runtime.operator_control import OperatorControl
from triptych.tools.runtime.probes import Probe
from triptych.tools.sdk.adapter_extras import require_adapter
from triptych.tools.sdk.call import Resources
from triptych.tools.sdk.redaction import Redactor, secrets_in
from triptych.tools.sdk.source import NAME, Source
from triptych.tools.sdk.tool import Tool

CONTRACTS_TYPE = "triptych.contracts"
RESULT_TYPE = "triptych.result"
POOL_MAX = 6
LOOK_EVERY_S = 30.0
"""So often a tool looks whether Kafka, or the topic of contracts, is another one than it has told its contracts."""


def load_tool(reference: str, source: Source | None = None) -> Tool:
    """Return the tool at `module:attribute`, or the one that a factory there builds from its source.

    The source is read from the environment when it is None and a factory wants one.

    Raises:
        MissingExtraError: the adapter needs an extra of the package that is not installed.
        ConfigurationError: there is no such module or attribute, or nothing there that is or makes a Tool.
    """
    module_name, _, attribute = reference.partition(":")
    if not module_name or not attribute:
        raise ConfigurationError(
            f"{reference!r} names no tool: write MODULE:ATTRIBUTE, e.g. triptych.tools.adapters.kb:tool"
        )
    require_adapter(reference, source.name if source is not None else os.environ.get(NAME, reference))
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except ImportError as error:
        raise ConfigurationError(f"{reference}: {error}; is its directory on the Python path?") from error
    except AttributeError as error:
        raise ConfigurationError(f"{reference}: module {module_name} has no {attribute}") from error
    if inspect.isfunction(found):
        source = source or Source.from_environment()
        found = found(source)
        if isinstance(found, Tool):
            found.secrets = source.secrets
    if not isinstance(found, Tool):
        raise ConfigurationError(
            f"{reference} is a {type(found).__name__}, not a triptych.tools.Tool or a function that makes one"
        )
    if not found.operations:
        raise ConfigurationError(f"{reference} offers no operation: decorate a function with @{attribute}.operation")
    return found


async def serve(
    service: Service,
    settings: ServiceSettings,
    tool: Tool,
    own_settings: BaseSettings | None,
    callback_settings: CallbackSettings | None = None,
) -> None:
    """Run a tool until `service.stopping` is set."""
    config = WorkerConfig(
        request_noun=topics.calls(tool.name),
        answer_noun=topics.RESULTS,
        answer_type=RESULT_TYPE,
        group=f"tool-{tool.name}",
        concurrency=tool.concurrency,
    )
    pool = await database.connect(settings.postgres.get_secret_value(), f"tool {tool.name}", max_connections=POOL_MAX)
    async with pool, tool.lifespan(Resources(own_settings, pool)) as state:
        kafka = Kafka(settings)
        told = await _announce(service, kafka, tool)
        announcing = asyncio.create_task(_announce_again(service, kafka, tool, told), name="announce")
        writes = {name for name, operation in tool.operations.items() if operation.contract.effect.writes}
        ledger = PostgresEffectLedger(pool, writes)
        redactor = Redactor(secrets_in(own_settings), learnt=tool.secrets)
        protection = Protection.of(tool, pool)
        alerts = Alerts(service.log)
        callbacks = None
        if callback_settings is not None:
            redactor = Redactor((*secrets_in(own_settings), callback_settings.secret), learnt=tool.secrets)
            callbacks = PostgresCallbacks(
                pool, callback_settings, settings, operations=tool.operations, ledger=ledger, redactor=redactor
            )
        answers = LastAnswers(pool, service.log)
        await answers.prune()
        worker = ToolWorker(
            tool,
            state,
            ledger,
            service.log,
            redactor=redactor,
            protection=protection,
            alerts=alerts,
            callbacks=callbacks,
            answers=answers,
        )
        beside = partial(callbacks.listen, service) if callbacks else None
        guard = tool.guard.overridden()
        probe = Probe(tool, guard.probe, alerts, worker.probe)
        if guard.probe.operation is not None:
            # A named probe also decides readiness; a probe that was chosen here only raises alerts.
            service.health.depend("probe", probe.is_well)
        probing = asyncio.create_task(probe.run(), name="probe")
        watch = DriftWatch(tool, guard.refresh_every_s, alerts, service.log)
        watching = asyncio.create_task(watch.run(), name="drift")

        async def examine() -> str:
            await watch.compare_now()
            return await probe.probe_now()

        try:
            async with OperatorControl(service, settings, tool.name, pool, protection, alerts, examine):
                await run_worker(service, settings, worker, config, pool=pool, commit_hook=ledger, beside=beside)
        finally:
            announcing.cancel()
            probing.cancel()
            watching.cancel()


async def _announce_again(service: Service, kafka: Kafka, tool: Tool, told: ClusterTopics | None) -> None:
    """Announce changed contracts immediately, and all contracts again to a new cluster or topic.

    A service that starts later reads the contracts from the topic.
    """
    outage = Outage(service.log, "kafka")
    while not service.stopping.is_set():
        with suppress(TimeoutError):
            await asyncio.wait_for(tool.changed.wait(), LOOK_EVERY_S)
        if tool.changed.is_set():
            told = None
        try:
            with foreign_cancellation():
                cluster = await kafka.describe([kafka.settings.topic(topics.CONTRACTS)])
        except KAFKA_GONE as error:
            await outage.wait(error, unless=service.stopping)
            continue
        outage.over()
        if cluster != told:
            told = await _announce(service, kafka, tool)


async def _announce(service: Service, kafka: Kafka, tool: Tool) -> ClusterTopics | None:
    """Publish the contracts, however long Kafka is gone; gives the cluster, or None when the service stops before."""
    message = Outgoing(
        topic=kafka.settings.topic(topics.CONTRACTS),
        partition=0,
        key=tool.name.encode(),
        headers=cloudevents.binary_headers(
            event_id=f"{tool.name}:{','.join(contract.hash for contract in tool.contracts.contracts)}",
            event_type=CONTRACTS_TYPE,
            source=f"/triptych/{service.name}",
            tenant="default",
        ),
        value=tool.contracts.to_bytes(),
    )
    if not fits(message.key, message.value, message.headers):
        raise ConfigurationError(
            f"the {len(tool.operations)} contracts of tool {tool.name} have {len(message.value)} bytes together, and "
            f"{REQUEST_MAX_BYTES} fit into a message: offer fewer operations, or make two tools of them"
        )
    outage = Outage(service.log, "kafka")
    tool.changed.clear()
    while not service.stopping.is_set():
        try:
            with foreign_cancellation():
                cluster = await kafka.describe([kafka.settings.topic(topics.CONTRACTS)])
                async with kafka.publisher() as publisher:
                    await publisher.publish([message])
        except MessagesRefused as error:
            raise ConfigurationError(
                f"Kafka refuses the contracts of tool {tool.name}, {len(message.value)} bytes ({error.cause!r}): set "
                f"`max.message.bytes` of the topic {message.topic} to {REQUEST_MAX_BYTES}"
            ) from error
        except KAFKA_GONE as error:
            await outage.wait(error, unless=service.stopping)
        else:
            outage.over()
            return cluster
    return None

"""A process knows whether it is ready, and its log says why it is not when that lasts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, MutableMapping
from typing import Any

import pytest
import structlog
from structlog.testing import LogCapture

from triptych.kernel.process.health import Health


class Broker:
    """Something to depend on."""

    is_there = False

    async def probe(self) -> None:
        if not self.is_there:
            raise ConnectionError("nobody listens")


@pytest.fixture
def broker() -> Broker:
    return Broker()


@pytest.fixture
def health(broker: Broker) -> Health:
    health = Health("executor", "executor-1")
    health.depend("kafka", broker.probe)
    return health


async def test_before_the_start_and_without_a_dependency_it_is_not_ready(health: Health, broker: Broker) -> None:
    assert "start" in await health.unready()
    health.started()
    assert await health.unready() == {"kafka": "ConnectionError: nobody listens"}
    broker.is_there = True
    assert await health.unready() == {}


@pytest.fixture
async def log(health: Health) -> AsyncIterator[list[MutableMapping[str, Any]]]:
    """What it says after its start, in a world where half a minute is an instant."""
    health.started()
    said = LogCapture()
    # A logger of its own: what other tests have configured does not filter it.
    logger = structlog.wrap_logger(None, processors=[said], wrapper_class=structlog.make_filtering_bound_logger(0))
    telling = asyncio.create_task(health.log_changes(logger, after_s=0.0, every_s=0.0))
    yield said.entries
    telling.cancel()
    await asyncio.wait({telling})


async def test_what_keeps_it_from_working_is_logged_once_and_so_is_the_end_of_it(
    broker: Broker, log: list[MutableMapping[str, Any]], eventually
) -> None:
    await eventually(lambda: log)
    for _ in range(20):
        await asyncio.sleep(0)
    assert [(each["event"], each["kafka"]) for each in log] == [("not ready", "ConnectionError: nobody listens")]
    broker.is_there = True
    await eventually(lambda: len(log) > 1)
    assert log[-1]["event"] == "ready again"


async def test_a_loop_that_is_stuck_keeps_it_from_being_ready(health: Health, broker: Broker) -> None:
    broker.is_there = True
    health.started()
    health.expect("intake", -1.0)
    assert list(await health.unready()) == ["intake"]

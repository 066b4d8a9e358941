"""What a record says to the executor, without Kafka."""

from __future__ import annotations

from aiokafka import ConsumerRecord
from machine_story import playbook

from triptych.executor.deployments import Deployment
from triptych.executor.intake import Executor
from triptych.kernel.decider import FORWARDED, Addressed, Arrival
from triptych.schemas import topics

TASK = b'{"playbook": "test", "input": {}}'


def read(offset: int, timestamp: int, headers: tuple[tuple[str, bytes], ...] = ()) -> Addressed:
    executor = Executor({"test": Deployment.of(playbook())})
    record = ConsumerRecord("triptych.tasks", 0, offset, timestamp, 0, None, TASK, None, -1, len(TASK), headers)
    return executor.read(Arrival(topics.TASKS, record, TASK))


def test_a_task_without_an_id_that_is_read_again_is_the_same_run() -> None:
    assert read(7, 1_000) == read(7, 1_000)
    assert read(7, 1_000).task != read(8, 1_000).task


def test_a_task_without_an_id_is_no_repeat_of_one_that_lay_there_before_kafka_lost_everything() -> None:
    assert read(7, 1_000).task != read(7, 2_000).task


def test_a_task_without_an_id_keeps_the_one_of_its_first_place_when_it_is_forwarded() -> None:
    first = read(7, 1_000)
    assert first.task is not None
    assert read(3, 2_000, ((FORWARDED, first.task.task_id.encode()),)).task == first.task

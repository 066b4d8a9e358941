"""librdkafka as its users call it: `send KAFKA TOPIC` and `read KAFKA TOPIC ID...`, JSON lines in and out."""

from __future__ import annotations

import base64
import json
import sys
import uuid
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer


def send(kafka: str, topic: str) -> None:
    for line in sys.stdin:
        record = json.loads(line)
        settings: dict[str, Any] = {"bootstrap.servers": kafka, "compression.type": record.get("compression", "none")}
        transaction = record.get("transaction")
        if transaction:
            settings["transactional.id"] = f"stranger-{uuid.uuid4()}"
        producer = Producer(settings)
        if transaction:
            producer.init_transactions(30)
            producer.begin_transaction()
        optional = {name: record[name] for name in ("partition", "timestamp") if record.get(name) is not None}
        headers = [(name, _bytes(value)) for name, value in record.get("headers", [])]
        producer.produce(
            topic,
            _bytes(record["value"]),
            key=_bytes(record.get("key")),
            headers=headers,
            on_delivery=_check,
            **optional,
        )
        producer.flush(30)
        if transaction == "abort":
            producer.abort_transaction(30)
        elif transaction == "commit":
            producer.commit_transaction(30)


def read(kafka: str, topic: str, wanted: set[str]) -> None:
    consumer = Consumer(
        {"bootstrap.servers": kafka, "group.id": f"stranger-{uuid.uuid4()}", "auto.offset.reset": "earliest"}
    )
    consumer.subscribe([topic])
    while wanted:
        message = consumer.poll(1)
        if message is None or message.error():
            continue
        outcome = json.loads(message.value())
        if outcome["final"] and outcome["task_id"] in wanted:
            wanted.discard(outcome["task_id"])
            sys.stdout.write(json.dumps(outcome) + "\n")
    consumer.close()


def _check(error: KafkaError | None, _message: Message) -> None:
    if error is not None:
        raise KafkaException(error)


def _bytes(value: str | None) -> bytes | None:
    return None if value is None else base64.b64decode(value)


if __name__ == "__main__":
    verb, kafka, topic, *ids = sys.argv[1:]
    if verb == "send":
        send(kafka, topic)
    else:
        read(kafka, topic, set(ids))

"""kafka-python as its users call it: `send KAFKA TOPIC` and `read KAFKA TOPIC ID...`, JSON lines in and out."""

from __future__ import annotations

import base64
import json
import sys

from kafka import KafkaConsumer, KafkaProducer


def send(kafka: str, topic: str) -> None:
    for line in sys.stdin:
        record = json.loads(line)
        compression = record.get("compression", "none")
        producer = KafkaProducer(
            bootstrap_servers=kafka, compression_type=None if compression == "none" else compression
        )
        producer.send(
            topic,
            _bytes(record["value"]),
            key=_bytes(record.get("key")),
            headers=[(name, _bytes(value)) for name, value in record.get("headers", [])],
            partition=record.get("partition"),
            timestamp_ms=record.get("timestamp"),
        ).get(30)
        producer.close()


def read(kafka: str, topic: str, wanted: set[str]) -> None:
    consumer = KafkaConsumer(topic, bootstrap_servers=kafka, auto_offset_reset="earliest", group_id=None)
    for message in consumer:
        outcome = json.loads(message.value)
        if outcome["final"] and outcome["task_id"] in wanted:
            wanted.discard(outcome["task_id"])
            sys.stdout.write(json.dumps(outcome) + "\n")
        if not wanted:
            break
    consumer.close()


def _bytes(value: str | None) -> bytes | None:
    return None if value is None else base64.b64decode(value)


if __name__ == "__main__":
    verb, kafka, topic, *ids = sys.argv[1:]
    if verb == "send":
        send(kafka, topic)
    else:
        read(kafka, topic, set(ids))

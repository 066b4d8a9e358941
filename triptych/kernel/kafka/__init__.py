"""Kafka: clients, record batches, topics, CloudEvents and dead letters."""

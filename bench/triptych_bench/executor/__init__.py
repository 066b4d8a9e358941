"""What a step costs the executor, part by part, without Kafka."""

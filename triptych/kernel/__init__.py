"""What every service stands on: bus, database, outbox, decider loop, worker loop, timers. Knows no service."""

"""Postgres: the pool, migrations, the outbox, claim checks and tables in partitions by age."""

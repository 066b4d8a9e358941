"""The one Alembic environment: runs one set of migrations in one schema, on the connection it is given.

`triptych.kernel.postgres.migrate` calls it; it reads no file and no environment variable.
"""

from __future__ import annotations

from alembic import context
from psycopg import sql

connection = context.config.attributes["connection"]
schema = context.config.attributes["schema"]

with connection.connection.cursor() as cursor:
    cursor.execute(sql.SQL("SET search_path = {}").format(sql.Identifier(schema)))
connection.connection.commit()

context.configure(
    connection=connection,
    version_table=context.config.attributes["version_table"],
    version_table_schema=schema,
    transaction_per_migration=True,
)
with context.begin_transaction():
    context.run_migrations()
connection.commit()

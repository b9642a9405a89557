"""Alembic's entry: runs the revisions on the connection that `clorefleet.store.migrate` passes in."""

from alembic import context
from sqlmodel import SQLModel

import clorefleet.store.tables  # noqa: F401  (registers the tables)

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=SQLModel.metadata,
    render_as_batch=connection.dialect.name == "sqlite",
    transaction_per_migration=False,
)
with context.begin_transaction():
    context.run_migrations()

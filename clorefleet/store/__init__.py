"""Our durable state: SQLModel tables, the queries on them, and Alembic migrations.

SQLite in WAL mode with full sync by default, any SQLAlchemy URL otherwise. Rules: no transaction is
open while the network is; every write happens in `Store.write`, which takes the write lock first
and checks the fencing token where a daemon writes.
"""

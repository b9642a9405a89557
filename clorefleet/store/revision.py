"""Which revision a store is of, and which this program speaks, without the machinery that upgrades.

Every command that opens a store asks both; importing alembic for the answer took a fifth of its time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from clorefleet.config.places import migrations_dir
from clorefleet.domain.errors import StoreError

if TYPE_CHECKING:
    from sqlalchemy import Engine

_IS_THERE = {
    "sqlite": "SELECT name FROM sqlite_master WHERE type = 'table' AND name = 'alembic_version'",
    "postgresql": "SELECT to_regclass('alembic_version')::text",
}


def current_revision(engine: Engine) -> str | None:
    """That of the store; None where it has no tables of ours yet."""
    with engine.connect() as connection:
        if connection.exec_driver_sql(_IS_THERE[connection.dialect.name]).scalar() is None:
            return None
        found: str | None = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
        return found


def newest_revision() -> str:
    """By the names of the revisions' files, without reading any.

    Raises:
        StoreError: there are none.
    """
    names = [file.name.partition("_")[0] for file in (migrations_dir() / "versions").glob("[0-9]*_*.py")]
    if not names:
        raise StoreError(
            f"There are no migrations in {migrations_dir()}.", remedy="Install clorefleet again."
        )
    return max(names)

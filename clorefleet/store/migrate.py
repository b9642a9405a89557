"""Bring a store up to the schema that this program speaks.

A database of a newer program is refused, never guessed at. SQLite files are copied beside
themselves before an upgrade.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Engine

from clorefleet.config.places import migrations_dir
from clorefleet.domain.errors import StoreError

_UPGRADE_LOCK_ID = 0x636C6F7265
"""Advisory lock on PostgreSQL: two daemons that start together migrate one after the other."""


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(migrations_dir()))
    return config


def current_revision(engine: Engine) -> str | None:
    with engine.connect() as connection:
        return MigrationContext.configure(connection).get_current_revision()


def head_revision() -> str:
    head = ScriptDirectory.from_config(_config()).get_current_head()
    if head is None:
        raise StoreError(
            f"There are no migrations in {migrations_dir()}.", remedy="Install clorefleet again."
        )
    return head


def upgrade(engine: Engine, *, sqlite_file: Path | None = None) -> bool:
    """Run what is missing; true when something was.

    Raises:
        StoreError: when the database is newer than this program.
    """
    found, wanted = current_revision(engine), head_revision()
    if found == wanted:
        return False
    config = _config()
    if found is not None:
        _refuse_newer(config, found)
        if sqlite_file is not None and sqlite_file.exists():
            shutil.copy2(sqlite_file, sqlite_file.with_suffix(f".before-{wanted}.bak"))
    with engine.begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_UPGRADE_LOCK_ID})")
        attributes: dict[str, Any] = config.attributes
        attributes["connection"] = connection
        command.upgrade(config, "head")
    return True


def _refuse_newer(config: Config, found: str) -> None:
    try:
        ScriptDirectory.from_config(config).get_revision(found)
    except CommandError as error:
        raise StoreError(
            f"The store is at revision {found}, which this clorefleet does not know.",
            remedy="Use the newer clorefleet that made it, or another profile (--profile NAME).",
            money="Nothing was changed. `clorefleet stop --all` works without the store.",
        ) from error

"""Bring a store up to the schema that this program speaks.

A database of a newer program is refused, never guessed at. An upgrade is one transaction, on SQLite and
PostgreSQL alike: killed in the middle, the store is as it was. Before it, an SQLite store that holds anything
is copied beside itself. A PostgreSQL server is somebody's with backups of their own: nothing is copied
there by itself; `clorefleet db backup` calls `pg_dump`.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Engine
from sqlalchemy.engine import URL, make_url

from clorefleet.config.places import migrations_dir
from clorefleet.domain.errors import StoreError
from clorefleet.domain.text import clean_line
from clorefleet.store.database import shown_address
from clorefleet.store.revision import current_revision, newest_revision

DUMP_TIMEOUT_S = 3600
_UPGRADE_LOCK_ID = 0x636C6F7265
"""Advisory lock on PostgreSQL: two daemons that start together migrate one after the other."""


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(migrations_dir()))
    return config


def upgrade(engine: Engine, *, sqlite_file: Path | None = None) -> bool:
    """Run what is missing; true when something was.

    Raises:
        StoreError: when the database is newer than this program.
    """
    found, wanted = current_revision(engine), newest_revision()
    if found == wanted:
        return False
    config = _config()
    if found is not None:
        _refuse_newer(config, found)
    with engine.connect().execution_options(clorefleet_writes=True) as connection, connection.begin():
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_UPGRADE_LOCK_ID})")
        # Another command may have upgraded it before the lock was had: a copy of that is none of before.
        if current_revision(engine) == wanted:
            return False
        if found is not None and sqlite_file is not None:
            _keep_copy(sqlite_file, sqlite_file.with_suffix(f".before-{wanted}.bak"))
        attributes: dict[str, Any] = config.attributes
        attributes["connection"] = connection
        command.upgrade(config, "head")
    return True


def _keep_copy(file: Path, to: Path) -> None:
    """A copy that is whole or not there; one that is there stays until then."""
    part = to.with_suffix(".part")
    copy_sqlite(file, part)
    part.replace(to)


def copy_sqlite(file: Path, to: Path) -> None:
    """A consistent copy, also of a store in use: what is still in the write-ahead log comes along."""
    to.touch(mode=0o600)
    with closing(sqlite3.connect(file)) as source, closing(sqlite3.connect(to)) as target:
        source.backup(target)


def dump_postgres(url: str, to: Path) -> None:
    """By `pg_dump`, which must be at least as new as the server.

    Raises:
        StoreError: there is no pg_dump, it fails, or it would show a secret of the address to others.
    """
    parsed = make_url(url)
    if "sslpassword" in parsed.query:
        raise StoreError(
            "The store's address holds sslpassword, which pg_dump takes only where every user can read it.",
            remedy="Use a key without a passphrase, or back the server up where it runs.",
            money="The store was not changed.",
        )
    program = shutil.which("pg_dump")
    if program is None:
        raise StoreError(
            "There is no pg_dump on this machine.",
            remedy="Install PostgreSQL's client programs, or back the server up where it runs.",
        )
    # The password goes by environment: arguments are for all to see.
    in_query = parsed.query.get("password")  # which wins over the usual place, as for the driver
    password = parsed.password if in_query is None else "".join(in_query)
    env = dict(os.environ) | ({"PGPASSWORD": password} if password else {})
    # Made anew: `set` keeps a password, and stars in its place would be taken for one.
    bare = URL.create(
        "postgresql", parsed.username, None, parsed.host, parsed.port, parsed.database, parsed.query
    )
    to.touch(mode=0o600)
    run = subprocess.run(
        [program, "--format=custom", f"--file={to}", "--dbname", shown_address(bare)],
        env=env,
        capture_output=True,
        text=True,
        check=False,
        timeout=DUMP_TIMEOUT_S,
    )
    if run.returncode:
        to.unlink(missing_ok=True)
        raise StoreError(
            f"pg_dump failed: {clean_line(run.stderr)}",
            remedy="Use a pg_dump at least as new as the server, or back the server up where it runs.",
            money="The store was not changed.",
        )


def _refuse_newer(config: Config, found: str) -> None:
    try:
        ScriptDirectory.from_config(config).get_revision(found)
    except CommandError as error:
        raise StoreError(
            f"The store is at revision {found}, which this clorefleet does not know.",
            remedy="Use the newer clorefleet that made it, or another profile (--profile NAME).",
            money="Nothing was changed. `clorefleet stop --all` works without the store.",
        ) from error

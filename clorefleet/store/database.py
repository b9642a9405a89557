"""Opening the store, and the two kinds of transaction on it.

`Store.read` sees one consistent state and takes no lock. `Store.write` takes the write lock at its
first statement (`BEGIN IMMEDIATE` on SQLite, an advisory lock on PostgreSQL), checks the fencing token
where one is given, and commits when the block ends: either all of it is durable or none. SQLite runs in
WAL mode with `synchronous=FULL`, PostgreSQL with `synchronous_commit=on`, because an intent that is not on
disk does not protect anybody's money. A process that is paused inside a transaction on PostgreSQL loses it
after `IDLE_TIMEOUT_MS`, so that it cannot keep the one that takes over waiting.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic_core import from_json
from sqlalchemy import create_engine, event
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError, DatabaseError, IntegrityError, ProgrammingError

from clorefleet.config.places import make_private_dir
from clorefleet.config.settings import PASSWORD_KEYS
from clorefleet.domain.errors import LostLeadership, StoreBusy, StoreError
from clorefleet.domain.text import clean_line
from clorefleet.store.address import sqlite_file
from clorefleet.store.codec import json_text
from clorefleet.store.queries import Transaction
from clorefleet.store.revision import current_revision, newest_revision

BUSY_TIMEOUT_MS = 10_000
"""How long a writer waits for another's transaction; each of ours is milliseconds long."""
IDLE_TIMEOUT_MS = 20_000
CONNECT_TIMEOUT_S = 10
_WRITE_LOCK_ID = 0x636C6F7266
"""Advisory lock on PostgreSQL: one writer at a time, as on SQLite."""


@dataclass(frozen=True, slots=True)
class FencingToken:
    """Proof of leadership, handed out by `Leadership.acquire`; a higher token makes lower ones void."""

    number: int
    holder: str


class Store:
    """A migrated database."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @property
    def is_sqlite(self) -> bool:
        return self._engine.dialect.name == "sqlite"

    @property
    def file(self) -> Path | None:
        """The file of an SQLite store; None for a server."""
        name = self._engine.url.database
        return Path(name) if self.is_sqlite and name else None

    def read(self) -> AbstractContextManager[Transaction]:
        return self._reading()

    @contextmanager
    def _reading(self) -> Iterator[Transaction]:
        with _translated(), self._engine.connect() as connection:
            if not self.is_sqlite:
                connection.execution_options(isolation_level="REPEATABLE READ")
            yield Transaction(connection, writes=False)

    def write(self, token: FencingToken | None = None) -> AbstractContextManager[Transaction]:
        """One durable change.

        Args:
            token: the daemon's fencing token. Without one only the user's wishes may be written
                (desired state, notes); everything that spends or follows the market carries it.

        Raises:
            LostLeadership: another process holds the leadership; nothing was written.
            StoreBusy: the lock was not had in time; nothing was written.
        """
        return self._writing(token)

    @contextmanager
    def _writing(self, token: FencingToken | None) -> Iterator[Transaction]:
        with _translated(), self._engine.connect() as connection:
            connection.execution_options(clorefleet_writes=True)
            with connection.begin():
                if not self.is_sqlite:
                    connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_WRITE_LOCK_ID})")
                transaction = Transaction(connection, writes=True)
                if token is not None:
                    check_fencing(transaction, token)
                yield transaction
                transaction.flush()

    def dispose(self) -> None:
        self._engine.dispose()


def check_fencing(transaction: Transaction, token: FencingToken) -> None:
    """
    Raises:
        LostLeadership: `token` is not the present leader's.
    """
    leader = transaction.leadership()
    if leader is None or (leader.token, leader.holder) != (token.number, token.holder):
        raise LostLeadership(
            "Another clorefleet daemon has taken over this store.",
            remedy="This one stops; `clorefleet daemon status` shows who leads.",
            money="Nothing was rented or cancelled by this step.",
        )


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (IntegrityError, ProgrammingError):
        raise  # a fault in our own statements
    except DatabaseError as error:
        text = str(error.orig).lower()
        if "locked" in text or "busy" in text or "lock timeout" in text:
            raise StoreBusy(
                "The store is locked by another process for longer than I wait.",
                remedy="Try again; `clorefleet doctor` names the process that holds it.",
                money="Nothing was written. Orders go on as they were.",
            ) from error
        raise StoreError(
            f"The store cannot be used: {clean_line(error.orig)}",
            remedy="Free disk space or mend the database; "
            "`clorefleet stop --all` ends all spending without it.",
            money="Orders that exist go on billing until they are cancelled.",
        ) from error


def open_store(url: str, *, migrate: bool = True) -> Store:
    """Open and, on first use or after an upgrade of the program, migrate the store at `url`.

    Raises:
        StoreError: the address is none, its driver is missing, the database cannot be used, or is newer.
    """
    engine, sqlite_file = connect_engine(url)
    if migrate:
        with _translated():
            if current_revision(engine) != newest_revision():
                from clorefleet.store.migrate import upgrade

                upgrade(engine, sqlite_file=sqlite_file)
    return Store(engine)


def shown_address(url: URL) -> str:
    """For people, documents and process lists: without a password, wherever it stands."""
    return url.difference_update_query(PASSWORD_KEYS).render_as_string(hide_password=True)


def connect_engine(url: str) -> tuple[Engine, Path | None]:
    """The engine for `url`, and the file of an SQLite store."""
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise StoreError(
            "store_url is not the address of a database.",  # it may hold a password: not repeated
            remedy='Write store_url = "postgresql://user:password@host/name" in config.toml, or nothing.',
        ) from error
    if parsed.get_backend_name() == "sqlite":
        file = sqlite_file(url)
        # Read as all others read it: what SQLAlchemy takes for quoted differs with its releases.
        return _sqlite_engine(parsed if file is None else parsed.set(database=str(file)))
    if parsed.get_backend_name() != "postgresql":
        raise StoreError(
            f"I know no store of kind “{clean_line(parsed.get_backend_name(), max_chars=20)}”.",
            remedy="Use SQLite (leave store_url out) or postgresql://...",
        )
    settings = {
        "lock_timeout": BUSY_TIMEOUT_MS,
        "statement_timeout": 6 * BUSY_TIMEOUT_MS,
        "idle_in_transaction_session_timeout": IDLE_TIMEOUT_MS,
        "synchronous_commit": "on",
    }
    try:
        engine = create_engine(
            parsed.set(drivername="postgresql+psycopg"),
            connect_args={
                "options": " ".join(f"-c {name}={value}" for name, value in settings.items()),
                "connect_timeout": CONNECT_TIMEOUT_S,
            },
            pool_pre_ping=True,
            hide_parameters=True,
            json_serializer=json_text,
            json_deserializer=from_json,
        )
    except ModuleNotFoundError as error:
        raise StoreError(
            "The store is on PostgreSQL, and its driver is not installed.",
            remedy='Type: pip install "clorefleet[postgres]"',
        ) from error
    return engine, None


def _sqlite_engine(parsed: URL) -> tuple[Engine, Path]:
    if not parsed.database or parsed.database == ":memory:":
        raise StoreError("The store must be a file or a server; memory forgets who is billed.")
    file = Path(parsed.database)
    make_private_dir(file.parent)
    if not file.exists():
        file.touch(mode=0o600)
    connect_args = {"timeout": BUSY_TIMEOUT_MS / 1000, "check_same_thread": False}
    engine = create_engine(
        parsed,
        connect_args=connect_args,
        hide_parameters=True,
        json_serializer=json_text,
        json_deserializer=from_json,
    )
    _prepare_sqlite(engine)
    return engine, file


def _prepare_sqlite(engine: Engine) -> None:
    def on_connect(connection: Any, _record: object) -> None:
        # The driver must not open transactions of its own: ours begin with the lock they need.
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()

    def on_begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("clorefleet_writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    listen: Callable[..., Any] = event.listen
    listen(engine, "connect", on_connect)
    listen(engine, "begin", on_begin)

"""Opening the store, and the two kinds of transaction on it.

`Store.read` sees one consistent state and takes no lock. `Store.write` takes the write lock at its
first statement (`BEGIN IMMEDIATE` on SQLite), checks the fencing token where one is given, and
commits when the block ends: either all of it is durable or none. SQLite runs in WAL mode with
`synchronous=FULL`, because an intent that is not on disk does not protect anybody's money.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, event
from sqlalchemy.engine import Connection, Engine, make_url
from sqlalchemy.exc import OperationalError
from sqlmodel import Session

from clorefleet.config.places import make_private_dir
from clorefleet.domain.errors import LostLeadership, StoreBusy, StoreError
from clorefleet.store.migrate import upgrade
from clorefleet.store.queries import Transaction

BUSY_TIMEOUT_MS = 10_000
"""How long a writer waits for another's transaction; each of ours is milliseconds long."""


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

    @contextmanager
    def read(self) -> Iterator[Transaction]:
        with _translated(), Session(self._engine, expire_on_commit=False) as session:
            yield Transaction(session)

    @contextmanager
    def write(self, token: FencingToken | None = None) -> Iterator[Transaction]:
        """One durable change.

        Args:
            token: the daemon's fencing token. Without one only the user's wishes may be written
                (desired state, notes); everything that spends or follows the market carries it.

        Raises:
            LostLeadership: another process holds the leadership; nothing was written.
            StoreBusy: the lock was not had in time; nothing was written.
        """
        with _translated(), Session(self._engine, expire_on_commit=False) as session:
            session.connection(execution_options={"clorefleet_writes": True})
            transaction = Transaction(session)
            if token is not None:
                check_fencing(transaction, token)
            yield transaction
            session.commit()

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
    except OperationalError as error:
        text = str(error.orig).lower()
        if "locked" in text or "busy" in text or "lock timeout" in text:
            raise StoreBusy(
                "The store is locked by another process for longer than I wait.",
                remedy="Try again; `clorefleet doctor` names the process that holds it.",
                money="Nothing was written. Orders go on as they were.",
            ) from error
        raise StoreError(
            f"The store cannot be used: {error.orig}",
            remedy="Free disk space or mend the database; "
            "`clorefleet stop --all` ends all spending without it.",
            money="Orders that exist go on billing until they are cancelled.",
        ) from error


def open_store(url: str, *, migrate: bool = True) -> Store:
    """Open and, on first use or after an upgrade of the program, migrate the store at `url`."""
    parsed = make_url(url)
    sqlite_file: Path | None = None
    connect_args: dict[str, Any] = {}
    if parsed.get_backend_name() == "sqlite":
        if not parsed.database or parsed.database == ":memory:":
            raise StoreError("The store must be a file or a server; memory forgets who is billed.")
        sqlite_file = Path(parsed.database)
        make_private_dir(sqlite_file.parent)
        if not sqlite_file.exists():
            sqlite_file.touch(mode=0o600)
        connect_args = {"timeout": BUSY_TIMEOUT_MS / 1000, "check_same_thread": False}
    engine = create_engine(parsed, connect_args=connect_args, pool_pre_ping=sqlite_file is None)
    if sqlite_file is not None:
        _prepare_sqlite(engine)
    if migrate:
        with _translated():
            upgrade(engine, sqlite_file=sqlite_file)
    return Store(engine)


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

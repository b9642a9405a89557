"""Where a simulated fleet's store lives: its rows, its backups, and the ways in which both get lost."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Protocol

from clorefleet.domain.errors import StoreBusy, StoreError
from clorefleet.simulation.faults import Switches
from clorefleet.simulation.memory_store import MemoryStore, Tables
from clorefleet.store.database import FencingToken, Store, open_store
from clorefleet.store.queries import Transaction


class House(Protocol):
    def open(self) -> Store: ...

    def back_up(self) -> None: ...

    def restore(self) -> None:
        """As the last backup had it."""
        ...

    def delete(self) -> None:
        """As on first use."""
        ...


class MemoryHouse:
    def __init__(self) -> None:
        self._tables = Tables()
        self._backup = Tables()

    def open(self) -> Store:
        return MemoryStore(self._tables)

    def back_up(self) -> None:
        self._backup = self._tables.copy()

    def restore(self) -> None:
        self._tables = self._backup.copy()

    def delete(self) -> None:
        self._tables = Tables()


class _Ground:
    """A folder with an opened store in it, for one life after the other: making the store's statements anew
    for each would take a good part of it."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="clorefleet-simulation-", dir=_fast_folder())
        self.file = Path(self._folder.name) / "fleet.db"
        self.backup = Path(self._folder.name) / "backup.db"
        self.store = open_store(f"sqlite:///{self.file}", migrate=False)


_free: list[_Ground] = []


class SqliteHouse:
    """The real store on a file. On memory-backed storage where there is some: no disk is at test."""

    def __init__(self) -> None:
        self._ground = _free.pop() if _free else _Ground()
        self.delete()
        self.back_up()

    def open(self) -> Store:
        return self._ground.store

    def back_up(self) -> None:
        with sqlite3.connect(self._ground.file) as source, sqlite3.connect(self._ground.backup) as target:
            source.backup(target)
        source.close()
        target.close()

    def restore(self) -> None:
        self._replace_with(self._ground.backup)

    def delete(self) -> None:
        self._replace_with(_empty_database())

    def _replace_with(self, source: Path) -> None:
        self._ground.store.dispose()
        file = self._ground.file
        for suffix in ("", "-wal", "-shm"):
            file.with_name(file.name + suffix).unlink(missing_ok=True)
        shutil.copy(source, file)

    def close(self) -> None:
        self._ground.store.dispose()
        _free.append(self._ground)


def _fast_folder() -> str | None:
    shared = Path("/dev/shm")  # noqa: S108 - a private temporary folder is made inside
    return str(shared) if shared.is_dir() else None


@cache
def _empty_database() -> Path:
    """A migrated store without rows, made once per process: migrating takes longer than a life."""
    folder = tempfile.TemporaryDirectory(prefix="clorefleet-simulation-")
    _kept.append(folder)
    file = Path(folder.name) / "empty.db"
    open_store(f"sqlite:///{file}").dispose()
    with sqlite3.connect(file) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    return file


_kept: list[tempfile.TemporaryDirectory[str]] = []


class Occupant(Protocol):
    """The process that uses the store."""

    def at(self, boundary: str) -> None: ...

    def now_s(self) -> float: ...


class _Writing:
    """A write transaction, and what may strike once it is durable."""

    __slots__ = ("_inner", "_written")

    def __init__(self, inner: AbstractContextManager[Transaction], written: Callable[[], None]) -> None:
        self._inner, self._written = inner, written

    def __enter__(self) -> Transaction:
        return self._inner.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._inner.__exit__(kind, error, where)
        if kind is None:
            self._written()


class ProcessStore(Store):
    """One process's way to the store: where it can be killed or suspended, and where the disk fails."""

    def __init__(self, inner: Store, occupant: Occupant, switches: Switches) -> None:
        self._inner = inner
        self._occupant = occupant
        self._switches = switches
        self.is_torn = False
        self.has_failed = False
        """The last write did not succeed, for whatever reason."""

    @property
    def is_sqlite(self) -> bool:
        return True

    def read(self) -> AbstractContextManager[Transaction]:
        self._refuse_if_torn()
        return self._inner.read()

    def write(self, token: FencingToken | None = None) -> AbstractContextManager[Transaction]:
        self._occupant.at("before a write")
        self.has_failed = True
        self._refuse_if_torn()
        now_s = self._occupant.now_s()
        if self._switches.holds("E1", now_s):
            self._switches.note("E1")
            raise StoreBusy("database is locked")
        if self._switches.holds("E3", now_s):
            self._switches.note("E3")
            raise StoreError("attempt to write a readonly database")
        if self._switches.strikes("E2"):
            raise StoreError("database or disk is full")
        return _Writing(self._inner.write(token), self._written)

    def _written(self) -> None:
        if self._switches.strikes("E7"):
            raise StoreError("disk I/O error")
        self.has_failed = False
        self._occupant.at("after a write")

    def _refuse_if_torn(self) -> None:
        if self.is_torn:
            self._switches.note("E4")
            raise StoreError("database disk image is malformed")

    def dispose(self) -> None:
        """The house closes what it opened."""

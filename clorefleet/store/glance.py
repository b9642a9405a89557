"""A quick look at an SQLite store, for `status` and the shell's completion: what is there, read-only.

The whole store's machinery takes half a second to import. What only looks goes by here: the standard
library's sqlite3 and msgspec, which reads our frozen dataclasses as pydantic wrote them. A store that is not
of this program's revision, is a server, or holds what cannot be read so is left to `store.database`, which
migrates and explains; `tests/store/test_glance.py` holds both to the same values.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec

from clorefleet.config.places import migrations_dir
from clorefleet.domain.deployment import Deployment
from clorefleet.domain.guard import FleetGuard, WalletReading
from clorefleet.domain.identity import DeploymentId
from clorefleet.domain.lease import Lease, LeaseState
from clorefleet.domain.ledger import LedgerSegment
from clorefleet.domain.money import Currency, Money, Rate
from clorefleet.domain.wanted import Wanted

T = TypeVar("T")
_SQLITE = "sqlite:///"
BUSY_S = 2.0
_OPEN = (LeaseState.INTENT.value, LeaseState.ORDERED.value, LeaseState.ENDING.value)


class Look(Protocol):
    """What may be asked: of a `Glance`, or of a `store.queries.Transaction`."""

    def deployments(self) -> tuple[Deployment, ...]: ...
    def open_leases(self) -> tuple[Lease, ...]: ...
    def segments(self) -> tuple[LedgerSegment, ...]: ...
    def wanted(self) -> Mapping[DeploymentId, Wanted]: ...
    def guard(self) -> FleetGuard: ...
    def wallet_readings(self) -> tuple[WalletReading, ...]: ...


class NotForAGlance(Exception):
    """The store must be opened by `store.database`."""


class Glance:
    """The questions of `store.queries.Transaction` that a look needs, in one consistent state."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def deployments(self) -> tuple[Deployment, ...]:
        found = []
        for row in self._rows("SELECT * FROM deployment ORDER BY created_at"):
            policy = json.loads(row.pop("policy") or "{}") or {}
            del row["model"]
            row["requirement"] = json.loads(row["requirement"])
            row["has_given_up"] = bool(row["has_given_up"])
            for name in ("created_at", "attempts_since"):
                row[name] = _instant(row[name])
            found.append(_value(Deployment, row | policy))
        return tuple(found)

    def open_leases(self) -> tuple[Lease, ...]:
        marks = ",".join("?" * len(_OPEN))
        query = f"SELECT document, plan FROM lease WHERE state IN ({marks}) ORDER BY created_at"  # noqa: S608
        rows = self._rows(query, _OPEN)
        return tuple(
            _value(Lease, json.loads(row["document"]) | {"plan": json.loads(row["plan"])}) for row in rows
        )

    def segments(self) -> tuple[LedgerSegment, ...]:
        return tuple(
            LedgerSegment(
                lease_id=row["lease_id"],
                deployment_id=row["deployment_id"],
                order_id=row["order_id"],
                price=Rate.per_day(Decimal(row["price_per_day"]), Currency(row["currency"])),
                is_spot=bool(row["is_spot"]),
                fee_percent=Decimal(row["fee_percent"]),
                creation_fee=Decimal(row["creation_fee"]),
                usd_per_unit=Decimal(row["usd_per_unit"]),
                rate_source=row["rate_source"],
                started_at=_known(row["started_at"]),
                ended_at=_instant(row["ended_at"]),
                market_spend=None if row["market_spend"] is None else Decimal(row["market_spend"]),
                settled_at=_instant(row["settled_at"]),
                order_started_at=_instant(row["order_started_at"]),
            )
            for row in self._rows("SELECT * FROM ledger_segment ORDER BY started_at, segment_id")
        )

    def wanted(self) -> dict[DeploymentId, Wanted]:
        rows = self._rows("SELECT * FROM wanted")
        return {
            DeploymentId(row["deployment_id"]): Wanted(row["replicas"], row["reason"], _instant(row["until"]))
            for row in rows
        }

    def guard(self) -> FleetGuard:
        rows = self._rows("SELECT document FROM fleet_guard")
        return _value(FleetGuard, json.loads(rows[0]["document"])) if rows else FleetGuard()

    def wallet_readings(self) -> tuple[WalletReading, ...]:
        return tuple(
            WalletReading(
                balance=Money(Decimal(row["balance"]), Currency(row["currency"])),
                read_at=_known(row["read_at"]),
                ledger=Decimal(row["ledger"]),
                burn_per_day=Decimal(row["burn_per_day"]),
                day_balance=Decimal(row["day_balance"]),
                day_read_at=_known(row["day_read_at"]),
                day_ledger=Decimal(row["day_ledger"]),
            )
            for row in self._rows("SELECT * FROM wallet_reading ORDER BY currency")
        )

    def _rows(self, query: str, values: tuple[object, ...] = ()) -> list[dict[str, Any]]:
        return [dict(row) for row in self._connection.execute(query, values)]


@contextmanager
def glance(store_url: str) -> Iterator[Glance]:
    """
    Raises:
        NotForAGlance: also from inside the block, where something there cannot be read.
    """
    try:
        with closing(_open(store_url)) as connection:
            connection.row_factory = sqlite3.Row
            connection.execute("BEGIN")
            found = connection.execute("SELECT version_num FROM alembic_version").fetchone()
            if found is None or found[0] != _newest_revision():
                raise NotForAGlance("another revision")
            yield Glance(connection)
    except (sqlite3.Error, msgspec.ValidationError, ValueError, TypeError, KeyError) as error:
        raise NotForAGlance(str(error)) from error


def look(store_url: str, ask: Callable[[Look], T]) -> T:
    """Ask in one read of the store: at a glance where that works, else by opening and migrating it.

    Raises:
        StoreError: it cannot be read either way.
    """
    try:
        with glance(store_url) as found:
            return ask(found)
    except NotForAGlance:
        from clorefleet.store.database import open_store

        with open_store(store_url).read() as tx:
            return ask(tx)


def deployment_names(store_url: str) -> tuple[str, ...]:
    """For the shell's completion; none where the store cannot be read at once."""
    return _column(store_url, "SELECT deployment_id FROM deployment")


def server_names(store_url: str) -> tuple[str, ...]:
    """Numbers of the servers of which anything is remembered; as `deployment_names`."""
    return _column(
        store_url,
        "SELECT server_id FROM lease UNION SELECT server_id FROM host_fault UNION"
        " SELECT server_id FROM host_verdict",
    )


def foreign_order_names(store_url: str) -> tuple[str, ...]:
    """Numbers of orders that nothing here explains, as last seen; as `deployment_names`."""
    return _column(store_url, "SELECT order_id FROM foreign_order")


def _column(store_url: str, query: str) -> tuple[str, ...]:
    try:
        with closing(_open(store_url)) as connection:
            return tuple(str(row[0]) for row in connection.execute(query))
    except (sqlite3.Error, NotForAGlance):
        return ()


def _open(store_url: str) -> sqlite3.Connection:
    file = Path(store_url.removeprefix(_SQLITE))
    if not store_url.startswith(_SQLITE) or not file.is_file():
        raise NotForAGlance("no SQLite file")
    # No transaction of the module's own: it would begin one only before a write.
    return sqlite3.connect(
        f"{file.absolute().as_uri()}?mode=ro", uri=True, timeout=BUSY_S, isolation_level=None
    )


def _newest_revision() -> str:
    """By the names of the revisions' files, without reading any."""
    return max(file.name.partition("_")[0] for file in (migrations_dir() / "versions").glob("[0-9]*_*.py"))


def _value(kind: type[T], document: dict[str, Any]) -> T:
    return msgspec.convert(document, kind, strict=False)


def _instant(text: str | None) -> datetime | None:
    return None if text is None else _known(text)


def _known(text: str) -> datetime:
    """SQLite keeps UTC without saying so."""
    found = datetime.fromisoformat(text)
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found

"""A quick look at an SQLite store, for `status`, `cost` and the shell's completion: what is there, read-only.

The whole store's machinery takes half a second to import. What only looks goes by here: the standard
library's sqlite3 and msgspec, which reads our frozen dataclasses as pydantic wrote them. A store that is not
of this program's revision, is a server, or holds what cannot be read so is left to `store.database`, which
migrates and explains; `tests/store/test_glance.py` holds both to the same values.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import msgspec

from clorefleet.domain.deployment import Deployment
from clorefleet.domain.guard import FleetGuard, WalletReading
from clorefleet.domain.identity import DeploymentId, LeaseId, OrderId, ServerId
from clorefleet.domain.lease import PHASE_ORDER, Lease, LeaseState, Phase
from clorefleet.domain.ledger import LedgerSegment
from clorefleet.domain.money import Currency, Money, Rate
from clorefleet.domain.wanted import Wanted
from clorefleet.store.address import sqlite_file
from clorefleet.store.revision import newest_revision

if TYPE_CHECKING:
    from clorefleet.domain.books import PhaseEntry
    from clorefleet.domain.host import HostFault
    from clorefleet.domain.money import ExchangeRate
    from clorefleet.domain.order import StrangeOrder
    from clorefleet.domain.usage import UsageHour

T = TypeVar("T")
_decode = msgspec.json.decode
BUSY_S = 2.0
_OPEN = (LeaseState.INTENT.value, LeaseState.ORDERED.value, LeaseState.ENDING.value)
_OPEN_LEASES = "SELECT document, plan FROM lease WHERE state IN (?, ?, ?) ORDER BY created_at"
_LEASES = """
    SELECT document, plan FROM lease
    WHERE ?1 IS NULL OR created_at >= ?1 OR ended_at >= ?1 ORDER BY created_at
"""
_SEGMENTS = """
    SELECT * FROM ledger_segment
    WHERE (?2 IS NULL OR deployment_id = ?2)
      AND (?1 IS NULL OR order_id IN
           (SELECT order_id FROM ledger_segment WHERE ended_at IS NULL OR ended_at >= ?1))
    ORDER BY started_at, segment_id
"""
_UNSETTLED = """
    SELECT * FROM ledger_segment
    WHERE settled_at IS NULL OR market_spend IS NULL
       OR lease_id IN (SELECT lease_id FROM lease WHERE state IN (?, ?, ?))
    ORDER BY started_at, segment_id
"""
_SETTLED = """
    SELECT deployment_id, market_spend, usd_per_unit FROM ledger_segment
    WHERE settled_at IS NOT NULL AND market_spend IS NOT NULL
      AND lease_id NOT IN (SELECT lease_id FROM lease WHERE state IN (?, ?, ?))
"""
_PHASES = """
    SELECT lease_id, phase, entered_at FROM phase_entry
    WHERE ?1 IS NULL OR lease_id IN
          (SELECT lease_id FROM ledger_segment WHERE ended_at IS NULL OR ended_at >= ?1)
"""
_USAGE = "SELECT * FROM usage WHERE ?1 IS NULL OR hour >= ?1 ORDER BY hour, lease_id"
_STRANGE = (
    "SELECT foreign_order.*, orders_read_at FROM foreign_order, tick WHERE server_id != 0 ORDER BY order_id"
)
_FAULTS = "SELECT * FROM host_fault WHERE ?1 IS NULL OR at >= ?1 ORDER BY at"


class Look(Protocol):
    """What may be asked: of a `Glance`, or of a `store.queries.Transaction`."""

    def deployments(self) -> tuple[Deployment, ...]: ...
    def deployment(self, deployment_id: DeploymentId) -> Deployment | None: ...
    def open_leases(self) -> tuple[Lease, ...]: ...
    def leases(self, *, since: datetime | None = None) -> tuple[Lease, ...]: ...
    def segments(
        self, deployment_id: DeploymentId | None = None, *, since: datetime | None = None
    ) -> tuple[LedgerSegment, ...]: ...
    def unsettled_segments(self) -> tuple[LedgerSegment, ...]: ...
    def settled_usd(self) -> Mapping[DeploymentId, Decimal]: ...
    def phases(self, *, since: datetime | None = None) -> tuple[PhaseEntry, ...]: ...
    def usage(self, *, since: datetime | None = None) -> tuple[UsageHour, ...]: ...
    def host_faults(self, *, since: datetime | None = None) -> tuple[HostFault, ...]: ...
    def coin_rates(self) -> tuple[ExchangeRate, ...]: ...
    def wanted(self) -> Mapping[DeploymentId, Wanted]: ...
    def guard(self) -> FleetGuard: ...
    def wallet_readings(self) -> tuple[WalletReading, ...]: ...
    def strange_orders(self) -> tuple[StrangeOrder, ...]: ...


class NotForAGlance(Exception):
    """The store must be opened by `store.database`."""


class Glance:
    """The questions of `store.queries.Transaction` that a look needs, in one consistent state."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def deployments(self) -> tuple[Deployment, ...]:
        return tuple(map(_deployment, self._rows("SELECT * FROM deployment ORDER BY created_at")))

    def deployment(self, deployment_id: DeploymentId) -> Deployment | None:
        rows = self._rows("SELECT * FROM deployment WHERE deployment_id = ?", (deployment_id,))
        return _deployment(rows[0]) if rows else None

    def open_leases(self) -> tuple[Lease, ...]:
        return tuple(map(_lease, self._rows(_OPEN_LEASES, _OPEN)))

    def leases(self, *, since: datetime | None = None) -> tuple[Lease, ...]:
        return tuple(map(_lease, self._rows(_LEASES, (_text(since),))))

    def segments(
        self, deployment_id: DeploymentId | None = None, *, since: datetime | None = None
    ) -> tuple[LedgerSegment, ...]:
        return tuple(map(_segment, self._rows(_SEGMENTS, (_text(since), deployment_id))))

    def unsettled_segments(self) -> tuple[LedgerSegment, ...]:
        return tuple(map(_segment, self._rows(_UNSETTLED, _OPEN)))

    def settled_usd(self) -> dict[DeploymentId, Decimal]:
        found: dict[DeploymentId, Decimal] = {}
        for name, spend, usd_per_unit in self._connection.execute(_SETTLED, _OPEN):
            found[name] = found.get(name, Decimal(0)) + Decimal(spend) * Decimal(usd_per_unit)
        return found

    def phases(self, *, since: datetime | None = None) -> tuple[PhaseEntry, ...]:
        from clorefleet.domain.books import PhaseEntry

        rows = self._connection.execute(_PHASES, (_text(since),))
        entries = (PhaseEntry(LeaseId(each[0]), Phase(each[1]), _known(each[2])) for each in rows)
        return tuple(
            sorted(entries, key=lambda each: (each.at, PHASE_ORDER.index(each.phase), each.lease_id))
        )

    def usage(self, *, since: datetime | None = None) -> tuple[UsageHour, ...]:
        from clorefleet.domain.usage import UsageHour

        found = []
        for row in self._rows(_USAGE, (_text(since),)):
            row["hour"], row["last_at"] = _known(row["hour"]), _known(row["last_at"])
            row["waits"] = tuple(_decode(row["waits"]))
            found.append(UsageHour(**row))
        return tuple(found)

    def host_faults(self, *, since: datetime | None = None) -> tuple[HostFault, ...]:
        from clorefleet.domain.host import HostFault

        return tuple(
            HostFault(ServerId(row["server_id"]), _known(row["at"]), row["reason"], Decimal(row["cost_usd"]))
            for row in self._rows(_FAULTS, (_text(since),))
        )

    def coin_rates(self) -> tuple[ExchangeRate, ...]:
        from clorefleet.domain.money import ExchangeRate

        return tuple(
            ExchangeRate(
                Currency(row["currency"]), Decimal(row["usd_per_unit"]), _known(row["as_of"]), row["source"]
            )
            for row in self._rows("SELECT * FROM coin_rate ORDER BY currency")
        )

    def wanted(self) -> dict[DeploymentId, Wanted]:
        rows = self._rows("SELECT * FROM wanted")
        return {
            DeploymentId(row["deployment_id"]): Wanted(row["replicas"], row["reason"], _instant(row["until"]))
            for row in rows
        }

    def guard(self) -> FleetGuard:
        rows = self._rows("SELECT document FROM fleet_guard")
        return _value(FleetGuard, _decode(rows[0]["document"])) if rows else FleetGuard()

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

    def strange_orders(self) -> tuple[StrangeOrder, ...]:
        from clorefleet.domain.order import StrangeOrder

        rows = self._rows(_STRANGE)
        return tuple(
            StrangeOrder(
                OrderId(row["order_id"]),
                ServerId(row["server_id"]),
                None if row["usd_per_day"] is None else Decimal(row["usd_per_day"]),
                _known(row["first_seen_at"]),
            )
            for row in rows
            if row["orders_read_at"] and _known(row["last_seen_at"]) >= _known(row["orders_read_at"])
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
            if found is None or found[0] != newest_revision():
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
    file = sqlite_file(store_url)
    if file is None or not file.is_file():
        raise NotForAGlance("no SQLite file")
    # No transaction of the module's own: it would begin one only before a write.
    return sqlite3.connect(
        f"{file.absolute().as_uri()}?mode=ro", uri=True, timeout=BUSY_S, isolation_level=None
    )


def _deployment(row: dict[str, Any]) -> Deployment:
    policy = _decode(row.pop("policy") or "{}") or {}
    del row["model"]
    row["requirement"] = _decode(row["requirement"])
    row["has_given_up"] = bool(row["has_given_up"])
    for name in ("created_at", "attempts_since"):
        row[name] = _instant(row[name])
    return _value(Deployment, row | policy)


def _lease(row: dict[str, Any]) -> Lease:
    return _value(Lease, _decode(row["document"]) | {"plan": _decode(row["plan"])})


def _segment(row: dict[str, Any]) -> LedgerSegment:
    return LedgerSegment(
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


def _value(kind: type[T], document: dict[str, Any]) -> T:
    return msgspec.convert(document, kind, strict=False)


def _instant(text: str | None) -> datetime | None:
    return None if text is None else _known(text)


def _text(instant: datetime | None) -> str | None:
    """As SQLite keeps an instant, so that texts compare as times do."""
    return None if instant is None else f"{instant.astimezone(UTC):%Y-%m-%d %H:%M:%S.%f}"


def _known(text: str) -> datetime:
    """SQLite keeps UTC without saying so."""
    found = datetime.fromisoformat(text)
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found

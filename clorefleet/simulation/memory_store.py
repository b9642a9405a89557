"""The store's twin in memory: what `clorefleet.store` promises, a hundred times as fast, and forgetful.

Only the simulation uses it. The tests of the store run on both, so that a difference is a failing test;
a part of all simulated lives runs on the real SQLite store besides. Values are frozen, so that keeping
them is keeping what was written.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, TypeVar

from clorefleet.domain.alert import UNFINISHED, Delivery, DeliveryState, Lookout
from clorefleet.domain.books import PhaseEntry
from clorefleet.domain.deployment import Deployment
from clorefleet.domain.event import Event
from clorefleet.domain.fleet_file import AppliedFile
from clorefleet.domain.guard import FleetGuard, WalletReading
from clorefleet.domain.host import CudaFound, HostFault, HostRecord, HostVerdict, left_out, newest_cuda
from clorefleet.domain.identity import DeploymentId, LeaseId, OrderId, ServerId
from clorefleet.domain.intent import Intent
from clorefleet.domain.lease import PHASE_ORDER, Lease
from clorefleet.domain.ledger import LedgerSegment, OpenBill, Segments, SettledTotal, settled_totals
from clorefleet.domain.load import LoadSample
from clorefleet.domain.money import Currency, ExchangeRate
from clorefleet.domain.node import Discrepancy, NodeFacts
from clorefleet.domain.order import Order, StrangeOrder
from clorefleet.domain.planning import Planning
from clorefleet.domain.price import PriceSnapshot
from clorefleet.domain.usage import UsageHour
from clorefleet.domain.wanted import Wanted
from clorefleet.store.database import FencingToken, Store, check_fencing
from clorefleet.store.queries import EVENTS_MAX, LastTick, Leadership, Transaction

K = TypeVar("K")
V = TypeVar("V")
A = TypeVar("A")


class Table(dict[K, V]):
    """Rows by key, in the order of their insertion; and answers that hold until a row changes."""

    __slots__ = ("_answers",)

    def __init__(self, rows: Mapping[K, V] | None = None) -> None:
        super().__init__({} if rows is None else rows)
        self._answers: dict[Hashable, Any] = {}

    def change(self, key: K, value: V) -> None:
        self._answers.clear()
        self[key] = value

    def drop(self, key: K) -> None:
        self._answers.clear()
        self.pop(key, None)

    def answer(self, question: Hashable, find: Callable[[], A]) -> A:
        if question not in self._answers:
            self._answers[question] = find()
        found: A = self._answers[question]
        return found


@dataclass
class Tables:
    deployments: Table[DeploymentId, Deployment] = field(default_factory=Table)
    leases: Table[LeaseId, Lease] = field(default_factory=Table)
    phases: Table[PhaseEntry, None] = field(default_factory=Table)
    intents: Table[str, Intent] = field(default_factory=Table)
    fencing: Table[str, int] = field(default_factory=Table)
    """The token that each intent was last written with."""
    segments: Table[OrderId, Segments] = field(default_factory=Table)
    facts: Table[LeaseId, tuple[NodeFacts, tuple[Discrepancy, ...], ServerId, datetime]] = field(
        default_factory=Table
    )
    jobs: Table[str, tuple[LeaseId, str, str, datetime]] = field(default_factory=Table)
    faults: Table[int, HostFault] = field(default_factory=Table)
    verdicts: Table[int, HostVerdict] = field(default_factory=Table)
    foreign: Table[OrderId, tuple[datetime, ServerId, Decimal | None, datetime]] = field(
        default_factory=Table
    )
    """When it was seen last, its server, USD a day, when it was seen first."""
    consents: Table[OrderId, datetime] = field(default_factory=Table)
    rates: Table[Currency, ExchangeRate] = field(default_factory=Table)
    wallets: Table[Currency, WalletReading] = field(default_factory=Table)
    usage_hours: Table[tuple[LeaseId, datetime], UsageHour] = field(default_factory=Table)
    load: Table[tuple[DeploymentId, datetime], LoadSample] = field(default_factory=Table)
    prices: Table[tuple[str, bool, datetime], PriceSnapshot] = field(default_factory=Table)
    events: Table[int, Event] = field(default_factory=Table)
    deliveries: Table[tuple[str, str], Delivery] = field(default_factory=Table)
    wanted: Table[DeploymentId, Wanted] = field(default_factory=Table)
    plannings: Table[DeploymentId, Planning] = field(default_factory=Table)
    start_ups: Table[LeaseId, tuple[DeploymentId, datetime, timedelta]] = field(default_factory=Table)
    single: Table[str, Any] = field(default_factory=Table)
    """The tables of one row: `tick`, `leadership` and `guard`."""

    def copy(self) -> Tables:
        return Tables(**{name: Table(getattr(self, name)) for name in self.__dataclass_fields__})


class MemoryTransaction(Transaction):
    """Overrides every question and change; a failed transaction is undone row by row."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._undo: list[tuple[Table[Any, Any], Any, Any]] = []

    def roll_back(self) -> None:
        for table, key, before in reversed(self._undo):
            if before is _ABSENT:
                table.drop(key)
            else:
                table.change(key, before)

    def flush(self) -> None:
        """Nothing waits to be written."""

    def _drop(self, table: Table[K, Any], key: K) -> None:
        self._undo.append((table, key, table[key]))
        table.drop(key)

    def _set(self, table: Table[K, V], key: K, value: V) -> None:
        self._undo.append((table, key, table.get(key, _ABSENT)))
        table.change(key, value)

    # -- deployments

    def deployments(self) -> tuple[Deployment, ...]:
        table = self._tables.deployments
        return table.answer("all", lambda: tuple(sorted(table.values(), key=lambda each: each.created_at)))

    def deployment(self, deployment_id: DeploymentId) -> Deployment | None:
        return self._tables.deployments.get(deployment_id)

    def put_deployment(self, deployment: Deployment) -> None:
        self._set(self._tables.deployments, deployment.deployment_id, deployment)

    def wanted(self) -> dict[DeploymentId, Wanted]:
        return dict(self._tables.wanted)

    def put_wanted(self, deployment_id: DeploymentId, wanted: Wanted, *, now: datetime) -> None:
        self._set(self._tables.wanted, deployment_id, wanted)

    def plannings(self) -> dict[DeploymentId, Planning]:
        return dict(sorted(self._tables.plannings.items()))

    def put_planning(self, deployment_id: DeploymentId, planning: Planning) -> None:
        self._set(self._tables.plannings, deployment_id, planning)

    def applied_file(self) -> AppliedFile | None:
        found: AppliedFile | None = self._tables.single.get("applied_file")
        return found

    def put_applied_file(self, applied: AppliedFile) -> None:
        self._set(self._tables.single, "applied_file", applied)

    def lookout(self) -> Lookout | None:
        found: Lookout | None = self._tables.single.get("lookout")
        return found

    def put_lookout(self, lookout: Lookout) -> None:
        self._set(self._tables.single, "lookout", lookout)

    def add_delivery(self, delivery: Delivery) -> bool:
        if (delivery.alert.key, delivery.channel) in self._tables.deliveries:
            return False
        self.put_delivery(delivery)
        return True

    def put_delivery(self, delivery: Delivery) -> None:
        self._set(self._tables.deliveries, (delivery.alert.key, delivery.channel), delivery)

    def deliveries(self, *states: DeliveryState, limit: int = 200) -> tuple[Delivery, ...]:
        found = [each for each in self._tables.deliveries.values() if each.state in states]
        return tuple(sorted(found, key=lambda each: (each.next_at, each.alert.key))[:limit])

    def drop_deliveries(self, *, before: datetime) -> None:
        for key, each in list(self._tables.deliveries.items()):
            if each.alert.at < before and each.state not in UNFINISHED:
                self._drop(self._tables.deliveries, key)

    def start_ups(self, deployment_id: DeploymentId, *, limit: int) -> tuple[timedelta, ...]:
        mine = [(at, took) for name, at, took in self._tables.start_ups.values() if name == deployment_id]
        return tuple(took for _, took in sorted(mine, reverse=True)[:limit])

    def put_start_up(self, lease: Lease, took: timedelta, *, now: datetime) -> None:
        self._set(self._tables.start_ups, lease.lease_id, (lease.deployment_id, now, took))

    # -- leases

    def open_leases(self) -> tuple[Lease, ...]:
        table = self._tables.leases
        return table.answer("open", lambda: tuple(lease for lease in self._by_age() if lease.is_open))

    def _by_age(self) -> tuple[Lease, ...]:
        table = self._tables.leases
        return table.answer("all", lambda: tuple(sorted(table.values(), key=lambda each: each.created_at)))

    def leases(
        self, deployment_id: DeploymentId | None = None, *, since: datetime | None = None
    ) -> tuple[Lease, ...]:
        if deployment_id is None and since is None:
            return self._by_age()
        return tuple(
            lease
            for lease in self._by_age()
            if (deployment_id is None or lease.deployment_id == deployment_id)
            and (
                since is None
                or lease.created_at >= since
                or (lease.ended_at is not None and lease.ended_at >= since)
            )
        )

    def lease(self, lease_id: LeaseId) -> Lease | None:
        return self._tables.leases.get(lease_id)

    def put_lease(self, lease: Lease) -> None:
        self._set(self._tables.leases, lease.lease_id, lease)
        entry = PhaseEntry(lease.lease_id, lease.phase, lease.phase_since)
        if entry not in self._tables.phases:
            self._set(self._tables.phases, entry, None)

    def note_leases(self, leases: Iterable[Lease]) -> None:
        for lease in leases:
            if lease.lease_id in self._tables.leases:
                self.put_lease(lease)

    def phases(self, *, since: datetime | None = None) -> tuple[PhaseEntry, ...]:
        lately = {each.lease_id for each in self.segments(since=since)}
        entries = (each for each in self._tables.phases if since is None or each.lease_id in lately)
        return tuple(
            sorted(entries, key=lambda each: (each.at, PHASE_ORDER.index(each.phase), each.lease_id))
        )

    # -- intents

    def doubtful_intents(self) -> tuple[Intent, ...]:
        table = self._tables.intents
        return table.answer("doubtful", lambda: tuple(each for each in table.values() if each.is_in_doubt))

    def intents_of(self, lease_id: LeaseId) -> tuple[Intent, ...]:
        mine = [intent for intent in self._tables.intents.values() if intent.lease_id == lease_id]
        return tuple(sorted(mine, key=lambda each: each.created_at))

    def put_intent(self, intent: Intent, *, fencing_token: int) -> None:
        self._set(self._tables.intents, intent.intent_id, intent)
        self._set(self._tables.fencing, intent.intent_id, fencing_token)

    # -- ledger

    def segments(
        self, deployment_id: DeploymentId | None = None, *, since: datetime | None = None
    ) -> tuple[LedgerSegment, ...]:
        mine = [
            each
            for segments in self._tables.segments.values()
            if since is None or any(each.ended_at is None or each.ended_at >= since for each in segments)
            for each in segments
            if deployment_id is None or each.deployment_id == deployment_id
        ]
        return tuple(sorted(mine, key=lambda each: each.started_at))

    def unsettled_segments(self) -> tuple[LedgerSegment, ...]:
        return tuple(each for each in self.segments() if self._can_change(each))

    def running_segments(self) -> tuple[LedgerSegment, ...]:
        return tuple(each for each in self.segments() if each.settled_at is None or each.market_spend is None)

    def sum_up(self) -> None:
        """Nothing to do: the sums are made when they are asked for."""

    def settled_totals(self) -> tuple[SettledTotal, ...]:
        return settled_totals(self.segments())

    def settled_usd(self) -> dict[DeploymentId, Decimal]:
        found: dict[DeploymentId, Decimal] = {}
        for each in self.segments():
            if each.market_spend is not None and not self._can_change(each):
                cost = each.market_spend * each.usd_per_unit
                found[each.deployment_id] = found.get(each.deployment_id, Decimal(0)) + cost
        return found

    def _can_change(self, segment: LedgerSegment) -> bool:
        lease = self._tables.leases.get(segment.lease_id)
        is_held = lease is not None and lease.is_open
        return segment.settled_at is None or segment.market_spend is None or is_held

    def order_segments(self, order_id: OrderId) -> Segments:
        return self._tables.segments.get(order_id, ())

    def put_order_segments(self, order_id: OrderId, segments: Segments) -> None:
        if segments:
            self._set(self._tables.segments, order_id, segments)

    def note_spends(self, spends: Iterable[tuple[OrderId, LedgerSegment]]) -> None:
        for order_id, last in spends:
            segments = self._tables.segments.get(order_id, ())
            if segments and segments[-1].settled_at is None:
                self.put_order_segments(order_id, (*segments[:-1], last))

    def open_bills(self) -> tuple[OpenBill, ...]:
        table = self._tables.segments
        return table.answer("open bills", lambda: tuple(self._find_open_bills()))

    def _find_open_bills(self) -> Iterator[OpenBill]:
        for order_id, segments in sorted(self._tables.segments.items()):
            open_by_lease: dict[LeaseId, LedgerSegment] = {}
            for each in segments:
                if each.settled_at is None and each.lease_id in self._tables.leases:
                    open_by_lease.setdefault(each.lease_id, each)
            for lease_id, first in open_by_lease.items():
                if all(each.ended_at is not None for each in segments if each.lease_id == lease_id):
                    server_id = self._tables.leases[lease_id].server_id
                    yield OpenBill(order_id, lease_id, server_id, first.started_at)

    # -- ceilings, wallets, coins

    def guard(self) -> FleetGuard:
        found: FleetGuard = self._tables.single.get("guard", _NO_GUARD)
        return found

    def put_guard(self, guard: FleetGuard) -> None:
        self._set(self._tables.single, "guard", guard)

    def wallet_readings(self) -> tuple[WalletReading, ...]:
        return tuple(reading for _, reading in sorted(self._tables.wallets.items()))

    def put_wallet_readings(self, readings: Iterable[WalletReading]) -> None:
        for reading in readings:
            self._set(self._tables.wallets, reading.currency, reading)

    def coin_rates(self) -> tuple[ExchangeRate, ...]:
        return tuple(rate for _, rate in sorted(self._tables.rates.items()))

    def put_coin_rates(self, rates: Iterable[ExchangeRate]) -> None:
        for rate in rates:
            self._set(self._tables.rates, rate.currency, rate)

    # -- nodes, jobs, hosts

    def put_node_facts(
        self,
        lease: Lease,
        facts: NodeFacts,
        discrepancies: tuple[Discrepancy, ...],
        *,
        now: datetime,
    ) -> None:
        self._set(self._tables.facts, lease.lease_id, (facts, discrepancies, lease.server_id, now))

    def node_facts(self, lease_id: LeaseId) -> NodeFacts | None:
        found = self._tables.facts.get(lease_id)
        return None if found is None else found[0]

    def cuda_found(self, *, since: datetime) -> tuple[CudaFound, ...]:
        told = sorted(self._tables.facts.values(), key=lambda each: each[3])
        return newest_cuda((each[2], each[0].cuda_version) for each in told if each[3] >= since)

    def host_record(self, *, since: datetime) -> HostRecord:
        return HostRecord(self.faulty_servers(since=since), self.cuda_found(since=since))

    def discrepancies(self, lease_id: LeaseId) -> tuple[Discrepancy, ...]:
        found = self._tables.facts.get(lease_id)
        return () if found is None else found[1]

    def job_attempts(self, lease_id: LeaseId, phase: str) -> int:
        return sum(1 for job in self._tables.jobs.values() if job[:2] == (lease_id, phase))

    def put_job(
        self, job_id: str, lease_id: LeaseId, phase: str, attempt: int, *, now: datetime, state: str
    ) -> None:
        self._set(self._tables.jobs, job_id, (lease_id, str(phase), state, now))

    def add_host_fault(self, fault: HostFault) -> None:
        self._set(self._tables.faults, len(self._tables.faults) + 1, fault)

    def host_faults(self, *, since: datetime | None = None) -> tuple[HostFault, ...]:
        faults = [fault for fault in self._tables.faults.values() if since is None or fault.at >= since]
        return tuple(sorted(faults, key=lambda each: each.at))

    def add_host_verdict(self, verdict: HostVerdict) -> None:
        self._set(self._tables.verdicts, len(self._tables.verdicts) + 1, verdict)

    def host_verdicts(self) -> tuple[HostVerdict, ...]:
        return tuple(self._tables.verdicts.values())

    def faulty_servers(self, *, since: datetime) -> frozenset[ServerId]:
        return left_out(self.host_faults(), self.host_verdicts(), since=since)

    # -- foreign orders, events, ticks, leadership

    def note_foreign(self, order: Order, *, usd_per_day: Decimal | None, now: datetime) -> bool:
        before = self._tables.foreign.get(order.order_id)
        is_new = before is None or before[1] != order.server_id
        known = None if before is None or is_new else before[2]
        usd = known if usd_per_day is None else usd_per_day
        first = now if before is None or is_new else before[3]
        self._set(self._tables.foreign, order.order_id, (now, order.server_id, usd, first))
        return is_new

    def note_consent(self, order_id: OrderId, *, now: datetime) -> None:
        self._set(self._tables.consents, order_id, now)
        if order_id not in self._tables.foreign:
            self._set(self._tables.foreign, order_id, (now, ServerId(0), None, now))

    def consented_orders(self) -> frozenset[OrderId]:
        return frozenset(self._tables.consents)

    def foreign_orders(self, *, seen_since: datetime) -> tuple[tuple[OrderId, ServerId, Decimal | None], ...]:
        return tuple(
            (order_id, server_id, usd)
            for order_id, (seen, server_id, usd, _) in self._tables.foreign.items()
            if seen >= seen_since
        )

    def strange_orders(self) -> tuple[StrangeOrder, ...]:
        tick = self.last_tick()
        if tick is None or tick.orders_read_at is None:
            return ()
        return tuple(
            StrangeOrder(order_id, server_id, usd, first)
            for order_id, (seen, server_id, usd, first) in sorted(self._tables.foreign.items())
            if server_id and seen >= tick.orders_read_at
        )

    def add_event(self, event: Event) -> None:
        events = self._tables.events
        self._set(events, next(reversed(events), 0) + 1, event)

    def events(
        self, deployment_id: DeploymentId | None = None, *, after_id: int = 0, limit: int = 200
    ) -> tuple[tuple[int, Event], ...]:
        found = [
            (number, event)
            for number, event in self._tables.events.items()
            if number > after_id and (deployment_id is None or event.deployment_id == deployment_id)
        ]
        return tuple(found[-limit:])

    def add_usage(self, hours: Iterable[UsageHour]) -> None:
        for added in hours:
            key = (added.lease_id, added.hour)
            before = self._tables.usage_hours.get(key)
            self._set(self._tables.usage_hours, key, added if before is None else before.plus(added))

    def usage(
        self, *, since: datetime | None = None, lease_ids: Iterable[LeaseId] | None = None
    ) -> tuple[UsageHour, ...]:
        wanted = None if lease_ids is None else set(lease_ids)
        found = [
            each
            for each in self._tables.usage_hours.values()
            if (since is None or each.hour >= since) and (wanted is None or each.lease_id in wanted)
        ]
        return tuple(sorted(found, key=lambda each: (each.hour, each.lease_id)))

    def prices(self, *, until: datetime | None = None) -> tuple[PriceSnapshot, ...]:
        found = (each for each in self._tables.prices.values() if until is None or each.at < until)
        return tuple(sorted(found, key=lambda each: (each.at, each.gpu, each.is_spot)))

    def last_price_at(self) -> datetime | None:
        return max((each.at for each in self._tables.prices.values()), default=None)

    def add_prices(self, snapshots: Iterable[PriceSnapshot]) -> None:
        for each in snapshots:
            self._set(self._tables.prices, (each.gpu, each.is_spot, each.at), each)

    def replace_prices(self, until: datetime, snapshots: Iterable[PriceSnapshot]) -> None:
        for key, each in list(self._tables.prices.items()):
            if each.at < until:
                self._drop(self._tables.prices, key)
        self.add_prices(snapshots)

    def add_load(self, deployment_id: DeploymentId, part: LoadSample) -> None:
        key = (deployment_id, part.started_at)
        before = self._tables.load.get(key)
        self._set(self._tables.load, key, part if before is None else before.plus(part))

    def load(self, deployment_id: DeploymentId, *, since: datetime) -> tuple[LoadSample, ...]:
        found = [
            each
            for (of, minute), each in self._tables.load.items()
            if of == deployment_id and minute >= since
        ]
        return tuple(sorted(found, key=lambda each: each.started_at))

    def drop_load(self, *, before: datetime) -> None:
        for key in [key for key in self._tables.load if key[1] < before]:
            self._drop(self._tables.load, key)

    def put_tick(self, *, now: datetime, orders_read_at: datetime | None, trouble: str) -> None:
        last = self.last_tick() or LastTick(0, now, None, "")
        tick = LastTick(last.count + 1, now, orders_read_at or last.orders_read_at, trouble)
        self._set(self._tables.single, "tick", tick)
        events = self._tables.events
        while len(events) > EVENTS_MAX:
            self._drop(events, next(iter(events)))

    def last_tick(self) -> LastTick | None:
        found: LastTick | None = self._tables.single.get("tick")
        return found

    def prune(self, *, before: datetime) -> None:
        tables = self._tables
        for intent in [i for i in tables.intents.values() if i.finished_at and i.finished_at < before]:
            self._drop(tables.intents, intent.intent_id)
        for job_id in [job_id for job_id, job in tables.jobs.items() if job[3] < before]:
            self._drop(tables.jobs, job_id)
        for order_id in [order_id for order_id, (seen, *_) in tables.foreign.items() if seen < before]:
            self._drop(tables.foreign, order_id)

    def leadership(self) -> Leadership | None:
        found: Leadership | None = self._tables.single.get("leadership")
        return found

    def put_leadership(self, leadership: Leadership) -> None:
        self._set(self._tables.single, "leadership", leadership)


_ABSENT = object()
_NO_GUARD = FleetGuard()


class _Held:
    """A transaction with the store's lock. Written out: a tick has twenty of them, and a generator for each
    would cost more than what they ask."""

    __slots__ = ("_lock", "_token", "_transaction")

    def __init__(
        self, transaction: MemoryTransaction, lock: threading.RLock, token: FencingToken | None = None
    ) -> None:
        self._transaction, self._lock, self._token = transaction, lock, token

    def __enter__(self) -> Transaction:
        self._lock.acquire()
        if self._token is not None:
            try:
                check_fencing(self._transaction, self._token)
            except BaseException:
                self._lock.release()
                raise
        return self._transaction

    def __exit__(self, kind: type[BaseException] | None, error: object, where: object) -> None:
        if kind is not None:
            self._transaction.roll_back()
        self._lock.release()


class MemoryStore(Store):
    """A store whose rows live as long as the process. `tables` may be copied: that is its backup."""

    def __init__(self, tables: Tables | None = None) -> None:
        self.tables = Tables() if tables is None else tables
        self._lock = threading.RLock()

    @property
    def is_sqlite(self) -> bool:
        return True

    def read(self) -> AbstractContextManager[Transaction]:
        return _Held(MemoryTransaction(self.tables), self._lock)

    def write(self, token: FencingToken | None = None) -> AbstractContextManager[Transaction]:
        return _Held(MemoryTransaction(self.tables), self._lock, token)

    def dispose(self) -> None:
        """Nothing is open."""

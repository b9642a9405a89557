"""What is asked of the store, in the domain's words. Rows never leave this module."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from functools import cache, lru_cache
from typing import Any

from pydantic_core import from_json
from sqlalchemy import (
    Connection,
    CursorResult,
    Executable,
    Integer,
    Row,
    String,
    Table,
    Text,
    bindparam,
    cast,
    delete,
    exists,
    func,
    insert,
    not_,
    or_,
    update,
)
from sqlalchemy import select as sa_select
from sqlalchemy.dialects import postgresql, sqlite
from sqlmodel import Session, SQLModel, col, select

from clorefleet.domain.alert import UNFINISHED, Alert, Delivery, DeliveryState, Lookout
from clorefleet.domain.books import PhaseEntry
from clorefleet.domain.deployment import Deployment
from clorefleet.domain.event import Event
from clorefleet.domain.fleet_file import AppliedFile
from clorefleet.domain.guard import FleetGuard, WalletReading
from clorefleet.domain.host import (
    CudaFound,
    HostFault,
    HostRecord,
    HostVerdict,
    Verdict,
    left_out,
    newest_cuda,
)
from clorefleet.domain.identity import DeploymentId, IntentId, LeaseId, OrderId, ServerId
from clorefleet.domain.intent import Effect, Intent, IntentState
from clorefleet.domain.lease import PHASE_ORDER, Lease, LeaseState, Phase
from clorefleet.domain.ledger import (
    LedgerSegment,
    OpenBill,
    Segments,
    SettledTotal,
    in_order,
    total_of,
)
from clorefleet.domain.load import MINUTE_S, LoadSample
from clorefleet.domain.money import Currency, ExchangeRate, Money, Rate
from clorefleet.domain.node import Discrepancy, NodeFacts
from clorefleet.domain.order import Order, StrangeOrder
from clorefleet.domain.plan import Plan
from clorefleet.domain.planning import Planning
from clorefleet.domain.price import PriceSnapshot
from clorefleet.domain.usage import UsageHour
from clorefleet.domain.wanted import Wanted
from clorefleet.store import codec
from clorefleet.store.tables import (
    AppliedFileRow,
    CoinRateRow,
    DeliveryRow,
    DeploymentRow,
    EventRow,
    FleetGuardRow,
    ForeignOrderRow,
    HostFaultRow,
    HostVerdictRow,
    IntentRow,
    JobRow,
    LeadershipRow,
    LeaseRow,
    LedgerSegmentRow,
    LedgerTotalRow,
    LoadRow,
    LookoutRow,
    NodeFactRow,
    PhaseEntryRow,
    PlanningRow,
    PriceSnapshotRow,
    StartUpRow,
    TickRow,
    UsageRow,
    UtcDateTime,
    WalletReadingRow,
    WantedRow,
)

_OPEN_LEASES = tuple(state.value for state in (LeaseState.INTENT, LeaseState.ORDERED, LeaseState.ENDING))
_DOUBTFUL = tuple(state.value for state in (IntentState.OPEN, IntentState.UNKNOWN))
_CLOSED = tuple(state.value for state in IntentState if state.value not in _DOUBTFUL)
_PLAN_APART = frozenset({"plan"})
_POLICY = frozenset(
    {"replicas_max", "schedule", "scale", "idle", "consolidate", "origin", "woken_at", "start_up_estimate"}
)
"""The fields of a deployment that are stored together, without columns of their own."""
PLANS_KEPT = 2048
"""Plans that need not be read anew in each tick: more than a fleet has leases."""
EVENTS_MAX = 50_000
"""Older events are dropped, so that the store stays bounded however long a daemon runs."""


@dataclass(frozen=True, slots=True)
class Leadership:
    """Who may write as the daemon, until when, and the number that proves it."""

    token: int
    holder: str
    expires_at: datetime
    beat: int = 0
    """Grows with each renewal."""


@dataclass(frozen=True, slots=True)
class LastTick:
    """What the last tick saw."""

    count: int
    finished_at: datetime
    orders_read_at: datetime | None
    trouble: str
    """Why it could not do its work; "" when it could."""


class Transaction:
    """Questions and changes inside one transaction of `Store.read` or `Store.write`."""

    def __init__(self, connection: Connection, *, writes: bool) -> None:
        self._connection = connection
        self._writes = writes
        self._session: Session | None = None
        self._leader: Leadership | None = None
        """As read or written in this transaction."""

    @property
    def session(self) -> Session:
        """SQLAlchemy's objects, for the modules of `clorefleet.store` only. What each tick asks does without
        them: they take most of the time."""
        if self._session is None:
            self._session = Session(self._connection, expire_on_commit=False)
        return self._session

    def flush(self) -> None:
        """What was put as an object is written."""
        if self._session is not None:
            self._session.flush()

    # -- deployments

    def deployments(self) -> tuple[Deployment, ...]:
        return tuple(_deployment(row) for row in self._execute(_DEPLOYMENTS))

    def deployment(self, deployment_id: DeploymentId) -> Deployment | None:
        row = self._execute(_ONE_DEPLOYMENT, {"the_deployment": deployment_id}).first()
        return None if row is None else _deployment(row)

    def put_deployment(self, deployment: Deployment) -> None:
        self._put(
            DeploymentRow,
            deployment_id=deployment.deployment_id,
            model=deployment.model,
            desired=deployment.desired,
            replicas=deployment.replicas,
            created_at=deployment.created_at,
            attempts_max=deployment.attempts_max,
            attempts_since=deployment.attempts_since,
            note=deployment.note,
            has_given_up=deployment.has_given_up,
            requirement=codec.encode(deployment.requirement),
            policy={name: value for name, value in codec.encode(deployment).items() if name in _POLICY},
        )

    def wanted(self) -> dict[DeploymentId, Wanted]:
        """What was last found to be wanted of each deployment."""
        rows = self._execute(_WANTED)
        return {DeploymentId(row.deployment_id): Wanted(row.replicas, row.reason, row.until) for row in rows}

    def put_wanted(self, deployment_id: DeploymentId, wanted: Wanted, *, now: datetime) -> None:
        self._put(
            WantedRow,
            deployment_id=deployment_id,
            replicas=wanted.replicas,
            reason=wanted.reason,
            until=wanted.until,
            noted_at=now,
        )

    def plannings(self) -> dict[DeploymentId, Planning]:
        """What the last planning for each deployment found."""
        rows = self.session.exec(select(PlanningRow).order_by(col(PlanningRow.deployment_id)))
        return {DeploymentId(row.deployment_id): codec.decode(Planning, row.document) for row in rows}

    def put_planning(self, deployment_id: DeploymentId, planning: Planning) -> None:
        """It takes the place of the one before."""
        self._put(
            PlanningRow,
            deployment_id=deployment_id,
            made_at=planning.made_at,
            document=codec.encode(planning),
        )

    def applied_file(self) -> AppliedFile | None:
        row = self.session.get(AppliedFileRow, 1)
        return None if row is None else AppliedFile(row.path, row.digest, row.applied_at)

    def put_applied_file(self, applied: AppliedFile) -> None:
        self.session.merge(
            AppliedFileRow(row_id=1, path=applied.path, digest=applied.digest, applied_at=applied.applied_at)
        )

    # -- alerts

    def lookout(self) -> Lookout | None:
        row = self.session.get(LookoutRow, 1)
        return None if row is None else codec.decode(Lookout, row.document)

    def put_lookout(self, lookout: Lookout) -> None:
        self.session.merge(LookoutRow(row_id=1, document=codec.encode(lookout)))

    def add_delivery(self, delivery: Delivery) -> bool:
        """True when it is new; an alert that went or goes to that channel already is left as it is."""
        if self.session.get(DeliveryRow, (delivery.alert.key, delivery.channel)) is not None:
            return False
        self.put_delivery(delivery)
        return True

    def put_delivery(self, delivery: Delivery) -> None:
        self.session.merge(
            DeliveryRow(
                alert_key=delivery.alert.key,
                channel=delivery.channel,
                alert=codec.encode(delivery.alert),
                state=delivery.state,
                attempts=delivery.attempts,
                created_at=delivery.alert.at,
                next_at=delivery.next_at,
                trouble=delivery.trouble,
            )
        )
        self.session.flush()

    def deliveries(self, *states: DeliveryState, limit: int = 200) -> tuple[Delivery, ...]:
        """Of those states, the earliest due first."""
        query = select(DeliveryRow).where(col(DeliveryRow.state).in_([str(state) for state in states]))
        rows = self.session.exec(
            query.order_by(col(DeliveryRow.next_at), col(DeliveryRow.alert_key)).limit(limit)
        )
        return tuple(
            Delivery(
                alert=codec.decode(Alert, row.alert),
                channel=row.channel,
                state=DeliveryState(row.state),
                attempts=row.attempts,
                next_at=row.next_at,
                trouble=row.trouble,
            )
            for row in rows
        )

    def drop_deliveries(self, *, before: datetime) -> None:
        """Forget finished ones of long ago."""
        finished = [str(state) for state in DeliveryState if state not in UNFINISHED]
        self.session.exec(
            delete(DeliveryRow).where(
                col(DeliveryRow.created_at) < before, col(DeliveryRow.state).in_(finished)
            )
        )

    # -- starts

    def start_ups(self, deployment_id: DeploymentId, *, limit: int) -> tuple[timedelta, ...]:
        """How long the latest starts took from rent to serving, newest first."""
        rows = self._execute(_START_UPS, {"the_deployment": deployment_id, "most": limit})
        return tuple(timedelta(seconds=row.took_s) for row in rows)

    def put_start_up(self, lease: Lease, took: timedelta, *, now: datetime) -> None:
        self._put(
            StartUpRow,
            lease_id=lease.lease_id,
            deployment_id=lease.deployment_id,
            server_id=lease.server_id,
            served_at=now,
            took_s=max(0, int(took.total_seconds())),
        )

    # -- leases

    def open_leases(self) -> tuple[Lease, ...]:
        return self._leases(_THE_OPEN_LEASES)

    def leases(
        self, deployment_id: DeploymentId | None = None, *, since: datetime | None = None
    ) -> tuple[Lease, ...]:
        """Open and closed ones; `since` leaves out those that were made and ended before it."""
        if deployment_id is None and since is not None:
            return self._leases(_LEASES_SINCE, {"since": since})
        query = _LEASES
        if deployment_id is not None:
            query = query.where(col(LeaseRow.deployment_id) == deployment_id)
        if since is not None:
            query = query.where(or_(col(LeaseRow.created_at) >= since, col(LeaseRow.ended_at) >= since))
        return self._leases(query.order_by(col(LeaseRow.created_at)))

    def _leases(self, query: Executable, values: Mapping[str, object] | None = None) -> tuple[Lease, ...]:
        return tuple(_lease(row) for row in self._execute(query, values))

    def lease(self, lease_id: LeaseId) -> Lease | None:
        row = self._execute(_ONE_LEASE, {"the_lease": lease_id}).first()
        return None if row is None else _lease(row)

    def put_lease(self, lease: Lease) -> None:
        self._put(
            LeaseRow,
            lease_id=lease.lease_id,
            intent_id=lease.intent_id,
            server_id=lease.server_id,
            created_at=lease.created_at,
            plan=codec.encode(lease.plan),
            **_beliefs(lease),
        )
        self._note_phases([lease])

    def note_leases(self, leases: Iterable[Lease]) -> None:
        """What is believed of leases that are stored already, all at once. Their plans stay as they are."""
        noted = list(leases)
        rows = [{"the_lease": lease.lease_id, **_beliefs(lease)} for lease in noted]
        if rows:
            self._connection.execute(_NOTE_LEASE, rows)
            self._note_phases(noted)

    def _note_phases(self, leases: Iterable[Lease]) -> None:
        """Every writing of a lease passes here: no change of phase goes unrecorded. Known ones stay."""
        self._connection.execute(
            _NEW_PHASE,
            [
                {"the_lease": lease.lease_id, "the_start": lease.phase_since, "the_phase": lease.phase.value}
                for lease in leases
            ],
        )

    def phases(self, *, since: datetime | None = None) -> tuple[PhaseEntry, ...]:
        """In order of time; `since` leaves out the leases whose orders all ended before it."""
        rows = self._execute(_PHASES) if since is None else self._execute(_PHASES_SINCE, {"since": since})
        entries = (PhaseEntry(LeaseId(row.lease_id), Phase(row.phase), row.entered_at) for row in rows)
        return tuple(
            sorted(entries, key=lambda each: (each.at, PHASE_ORDER.index(each.phase), each.lease_id))
        )

    # -- intents

    def doubtful_intents(self) -> tuple[Intent, ...]:
        rows = self._execute(_THE_DOUBTFUL)
        return tuple(_intent(row) for row in rows)

    def intents_of(self, lease_id: LeaseId) -> tuple[Intent, ...]:
        return tuple(_intent(row) for row in self._execute(_INTENTS_OF, {"the_lease": lease_id}))

    def put_intent(self, intent: Intent, *, fencing_token: int) -> None:
        worst = intent.worst_case_usd_per_day
        self._put(
            IntentRow,
            intent_id=intent.intent_id,
            effect=intent.effect,
            lease_id=intent.lease_id,
            deployment_id=intent.deployment_id,
            state=intent.state,
            created_at=intent.created_at,
            doubted_at=intent.doubted_at,
            finished_at=intent.finished_at,
            worst_case_usd_per_day=None if worst is None else worst.amount,
            detail=intent.detail,
            fencing_token=fencing_token,
        )

    # -- ledger

    def segments(
        self, deployment_id: DeploymentId | None = None, *, since: datetime | None = None
    ) -> tuple[LedgerSegment, ...]:
        """In order of time; `since` leaves out the orders that ended before it, and keeps others whole."""
        if deployment_id is None and since is not None:
            return tuple(_segment(row) for row in self._execute(_SEGMENTS_SINCE, {"since": since}))
        query = _SEGMENTS
        if deployment_id is not None:
            query = query.where(col(LedgerSegmentRow.deployment_id) == deployment_id)
        if since is not None:
            ended_at = col(LedgerSegmentRow.ended_at)
            lately = select(LedgerSegmentRow.order_id).where(or_(ended_at.is_(None), ended_at >= since))
            query = query.where(col(LedgerSegmentRow.order_id).in_(lately))
        rows = self._execute(
            query.order_by(col(LedgerSegmentRow.started_at), col(LedgerSegmentRow.segment_id))
        )
        return tuple(_segment(row) for row in rows)

    def unsettled_segments(self) -> tuple[LedgerSegment, ...]:
        """Those whose cost may still change, and all of leases that are open; in order of time."""
        return tuple(_segment(row) for row in self._execute(_UNSETTLED_SEGMENTS))

    def running_segments(self) -> tuple[LedgerSegment, ...]:
        """Those that are not settled, and so in no sum yet."""
        return tuple(_segment(row) for row in self._execute(_RUNNING_SEGMENTS))

    def settled_usd(self) -> dict[DeploymentId, Decimal]:
        """What all other segments cost, by deployment: final bills at the rates that were recorded."""
        found: dict[DeploymentId, Decimal] = {}
        for row in self._execute(_SETTLED):
            name = DeploymentId(row.deployment_id)
            found[name] = found.get(name, Decimal(0)) + row.market_spend * row.usd_per_unit
        return found

    def order_segments(self, order_id: OrderId) -> Segments:
        """All segments of one order, in order of time."""
        return in_order(map(_segment, self._execute(_ORDER_SEGMENTS, {"the_order": order_id})))

    def put_order_segments(self, order_id: OrderId, segments: Segments) -> None:
        """`segments` are from now on all segments of the order; they begin at their places and never
        vanish."""
        rows = self._execute(_ORDER_SEGMENTS, {"the_order": order_id}).all()
        for row, segment in zip(rows, segments, strict=False):
            self._execute(_SET_SEGMENT, {"the_segment": row.segment_id, **_segment_columns(segment)})
        for segment in segments[len(rows) :]:
            self._execute(_ADD_SEGMENT, _segment_columns(segment))
        self._count_settled(segments, tuple(map(_segment, rows[: len(segments)])))

    def _count_settled(self, now: Segments, before: Segments) -> None:
        if any(each.settled_at is not None for each in (*now, *before)):
            known = self.settled_totals()
            for total in total_of(known, now, before):
                if total not in known:
                    self._put(
                        LedgerTotalRow,
                        deployment_id=total.deployment_id,
                        currency=total.currency,
                        settled=total.amount,
                        settled_usd=total.usd,
                    )

    def settled_totals(self) -> tuple[SettledTotal, ...]:
        """The sums of all settled segments, by deployment and currency."""
        return tuple(
            SettledTotal(
                DeploymentId(row.deployment_id), Currency(row.currency), row.settled, row.settled_usd
            )
            for row in self._execute(_TOTALS)
        )

    def note_spends(self, spends: Iterable[tuple[OrderId, LedgerSegment]]) -> None:
        """The market's counter of many orders that run, each on the order's last segment."""
        rows = [
            {"the_order": order_id, "the_start": last.started_at, "spend": last.market_spend}
            for order_id, last in spends
        ]
        if rows:
            self._connection.execute(_NOTE_SPEND, rows)

    def open_bills(self) -> tuple[OpenBill, ...]:
        """Of orders that ended, by number and time."""
        return tuple(
            OpenBill(OrderId(row.order_id), LeaseId(row.lease_id), ServerId(row.server_id), row.started_at)
            for row in self._execute(_OPEN_BILLS)
        )

    # -- ceilings, wallets, coins

    def guard(self) -> FleetGuard:
        row = self._execute(_GUARD).first()
        return FleetGuard() if row is None else codec.decode(FleetGuard, row.document)

    def put_guard(self, guard: FleetGuard) -> None:
        self._put(
            FleetGuardRow,
            row_id=1,
            document=codec.encode(guard),
        )

    def wallet_readings(self) -> tuple[WalletReading, ...]:
        rows = self._execute(_WALLETS)
        return tuple(
            WalletReading(
                balance=Money(row.balance, Currency(row.currency)),
                read_at=row.read_at,
                ledger=row.ledger,
                burn_per_day=row.burn_per_day,
                day_balance=row.day_balance,
                day_read_at=row.day_read_at,
                day_ledger=row.day_ledger,
            )
            for row in rows
        )

    def put_wallet_readings(self, readings: Iterable[WalletReading]) -> None:
        self._put_all(
            WalletReadingRow,
            [
                {
                    "currency": reading.currency,
                    "read_at": reading.read_at,
                    "balance": reading.balance.amount,
                    "ledger": reading.ledger,
                    "burn_per_day": reading.burn_per_day,
                    "day_read_at": reading.day_read_at,
                    "day_balance": reading.day_balance,
                    "day_ledger": reading.day_ledger,
                }
                for reading in readings
            ],
        )

    def coin_rates(self) -> tuple[ExchangeRate, ...]:
        rows = self._execute(_COIN_RATES)
        return tuple(
            ExchangeRate(Currency(row.currency), row.usd_per_unit, row.as_of, row.source) for row in rows
        )

    def put_coin_rates(self, rates: Iterable[ExchangeRate]) -> None:
        self._put_all(
            CoinRateRow,
            [
                {
                    "currency": rate.currency,
                    "usd_per_unit": rate.usd_per_unit,
                    "as_of": rate.as_of,
                    "source": rate.source,
                }
                for rate in rates
            ],
        )

    # -- nodes, jobs, hosts

    def put_node_facts(
        self,
        lease: Lease,
        facts: NodeFacts,
        discrepancies: tuple[Discrepancy, ...],
        *,
        now: datetime,
    ) -> None:
        self._put(
            NodeFactRow,
            lease_id=lease.lease_id,
            server_id=lease.server_id,
            measured_at=now,
            facts=codec.encode(facts),
            discrepancies=[codec.encode(each) for each in discrepancies],
        )

    def node_facts(self, lease_id: LeaseId) -> NodeFacts | None:
        row = self.session.get(NodeFactRow, lease_id)
        return None if row is None else codec.decode(NodeFacts, row.facts)

    def cuda_found(self, *, since: datetime) -> tuple[CudaFound, ...]:
        """The newest CUDA version measured on each server since then, where its driver told one."""
        query = (
            select(NodeFactRow.server_id, NodeFactRow.facts)
            .where(col(NodeFactRow.measured_at) >= since)
            .order_by(col(NodeFactRow.measured_at))
        )
        return newest_cuda(
            (server_id, facts.get("cuda_version")) for server_id, facts in self.session.exec(query)
        )

    def host_record(self, *, since: datetime) -> HostRecord:
        return HostRecord(self.faulty_servers(since=since), self.cuda_found(since=since))

    def discrepancies(self, lease_id: LeaseId) -> tuple[Discrepancy, ...]:
        row = self.session.get(NodeFactRow, lease_id)
        return () if row is None else tuple(codec.decode(Discrepancy, each) for each in row.discrepancies)

    def job_attempts(self, lease_id: LeaseId, phase: str) -> int:
        query = select(func.count()).where(col(JobRow.lease_id) == lease_id, col(JobRow.phase) == phase)
        return self.session.exec(query).one()

    def put_job(
        self, job_id: str, lease_id: LeaseId, phase: str, attempt: int, *, now: datetime, state: str
    ) -> None:
        row = self._execute(_ONE_JOB, {"the_job": job_id}).first()
        finished_at = None if row is None else row.finished_at
        self._put(
            JobRow,
            job_id=job_id,
            lease_id=lease_id,
            phase=phase,
            attempt=attempt if row is None else row.attempt,
            started_at=now if row is None else row.started_at,
            finished_at=finished_at if state == "running" else finished_at or now,
            state=state,
            detail="" if row is None else row.detail,
        )

    def add_host_fault(self, fault: HostFault) -> None:
        columns = {
            "server_id": fault.server_id,
            "at": fault.at,
            "reason": fault.reason,
            "cost_usd": fault.cost_usd,
        }
        self._execute(_ADD_FAULT, columns)

    def host_faults(self, *, since: datetime | None = None) -> tuple[HostFault, ...]:
        """Oldest first; None: all that are remembered."""
        rows = self._execute(_FAULTS) if since is None else self._execute(_FAULTS_SINCE, {"since": since})
        return tuple(HostFault(ServerId(row.server_id), row.at, row.reason, row.cost_usd) for row in rows)

    def add_host_verdict(self, verdict: HostVerdict) -> None:
        self.session.add(
            HostVerdictRow(
                server_id=verdict.server_id, verdict=verdict.verdict, at=verdict.at, reason=verdict.reason
            )
        )

    def host_verdicts(self) -> tuple[HostVerdict, ...]:
        """In the order in which they were given."""
        rows = self._execute(_VERDICTS)
        return tuple(
            HostVerdict(ServerId(row.server_id), Verdict(row.verdict), row.at, row.reason) for row in rows
        )

    def faulty_servers(self, *, since: datetime) -> frozenset[ServerId]:
        """Those that plans leave out: see `domain.host.left_out`."""
        return left_out(self.host_faults(since=since), self.host_verdicts(), since=since)

    # -- foreign orders, events, ticks

    def note_foreign(self, order: Order, *, usd_per_day: Decimal | None, now: datetime) -> bool:
        """Remember an order that is not ours; true when it is new to us."""
        row = self._execute(_ONE_FOREIGN, {"the_order": order.order_id}).first()
        same = None if row is None or row.server_id != order.server_id else row
        known = None if same is None else same.usd_per_day
        self._put(
            ForeignOrderRow,
            order_id=order.order_id,
            server_id=order.server_id,
            first_seen_at=now if same is None else same.first_seen_at,
            last_seen_at=now,
            usd_per_day=known if usd_per_day is None else usd_per_day,
            consented_at=None if row is None else row.consented_at,
        )
        return same is None

    def note_consent(self, order_id: OrderId, *, now: datetime) -> None:
        """The user said, of this very order, that it may be ended though it is not ours."""
        row = self.session.get(ForeignOrderRow, order_id)
        if row is None:
            row = ForeignOrderRow(order_id=order_id, server_id=0, first_seen_at=now, last_seen_at=now)
        row.consented_at = now
        self.session.add(row)

    def consented_orders(self) -> frozenset[OrderId]:
        query = select(ForeignOrderRow.order_id).where(col(ForeignOrderRow.consented_at).is_not(None))
        return frozenset(OrderId(order_id) for order_id in self.session.exec(query))

    def foreign_orders(self, *, seen_since: datetime) -> tuple[tuple[OrderId, ServerId, Decimal | None], ...]:
        """Order, its server, and USD a day where it is known."""
        rows = self._execute(_FOREIGN_SINCE, {"since": seen_since})
        return tuple((OrderId(row.order_id), ServerId(row.server_id), row.usd_per_day) for row in rows)

    def strange_orders(self) -> tuple[StrangeOrder, ...]:
        """Orders that nothing here explains and that the last reading of the order list showed."""
        tick = self.last_tick()
        read_at = None if tick is None else tick.orders_read_at
        rows = () if read_at is None else self._execute(_FOREIGN_SINCE, {"since": read_at})
        return tuple(
            StrangeOrder(OrderId(row.order_id), ServerId(row.server_id), row.usd_per_day, row.first_seen_at)
            for row in sorted(rows, key=lambda row: row.order_id)
            if row.server_id
        )

    def add_event(self, event: Event) -> None:
        columns = {
            "at": event.at,
            "name": event.name,
            "text": event.text,
            "deployment_id": event.deployment_id or "",
            "lease_id": event.lease_id or "",
        }
        self._execute(_ADD_EVENT, columns)

    def events(
        self, deployment_id: DeploymentId | None = None, *, after_id: int = 0, limit: int = 200
    ) -> tuple[tuple[int, Event], ...]:
        """The newest `limit` events after `after_id`, oldest first, each with its id."""
        query = select(EventRow).where(col(EventRow.event_id) > after_id)
        if deployment_id is not None:
            query = query.where(col(EventRow.deployment_id) == deployment_id)
        rows = list(self.session.exec(query.order_by(col(EventRow.event_id).desc()).limit(limit)))
        return tuple((row.event_id or 0, _event(row)) for row in reversed(rows))

    # -- leadership

    def leadership(self) -> Leadership | None:
        """The one row of it. In a transaction that writes it is locked until that ends. One that only reads
        takes no lock: PostgreSQL would refuse it when the leader has beaten since the transaction began."""
        if self._leader is None:
            row = self._execute(_THE_LEADER_LOCKED if self._writes else _THE_LEADER).first()
            self._leader = (
                None if row is None else Leadership(row.token, row.holder, row.expires_at, row.beat)
            )
        return self._leader

    def put_leadership(self, leadership: Leadership) -> None:
        values = {
            "token": leadership.token,
            "holder": leadership.holder,
            "expires_at": leadership.expires_at,
            "beat": leadership.beat,
        }
        if self._execute(_SET_LEADER, values).rowcount == 0:
            self._execute(insert(_LEADERSHIP), {"row_id": 1, **values})
        self._leader = leadership

    def _execute(
        self, statement: Executable, values: Mapping[str, object] | None = None
    ) -> CursorResult[Any]:
        """Without the object layer; what was put as an object before is written first. A statement that is
        made once keeps its key in SQLAlchemy's cache of compiled ones: making it anew costs as much as SQLite
        does."""
        self.flush()
        return self._connection.execute(statement, values)

    def _put(self, kind: type[SQLModel], **columns: object) -> None:
        """A row and all its columns, whether or not there is one of its key."""
        self._put_all(kind, [columns])

    def _put_all(self, kind: type[SQLModel], rows: list[dict[str, object]]) -> None:
        if rows:
            self.flush()
            self._connection.execute(_upsert(kind, self._connection.dialect.name), rows)

    # -- usage

    def add_usage(self, hours: Iterable[UsageHour]) -> None:
        """Add to what the leases were used for."""
        for added in hours:
            row = self.session.get(UsageRow, (added.lease_id, added.hour))
            total = added if row is None else _usage(row).plus(added)
            self.session.merge(
                UsageRow(
                    lease_id=total.lease_id,
                    hour=total.hour,
                    model=total.model,
                    last_at=total.last_at,
                    requests=total.requests,
                    failures=total.failures,
                    uncounted=total.uncounted,
                    prompt_tokens=total.prompt_tokens,
                    completion_tokens=total.completion_tokens,
                    uncounted_events=total.uncounted_events,
                    first_byte_s=total.first_byte_s,
                    total_s=total.total_s,
                    waits=list(total.waits),
                )
            )

    def usage(
        self, *, since: datetime | None = None, lease_ids: Iterable[LeaseId] | None = None
    ) -> tuple[UsageHour, ...]:
        """By hour, oldest first; those hours that begin at `since` or later."""
        query = select(UsageRow)
        if since is not None:
            query = query.where(col(UsageRow.hour) >= since)
        if lease_ids is not None:
            query = query.where(col(UsageRow.lease_id).in_(list(lease_ids)))
        rows = self.session.exec(query.order_by(col(UsageRow.hour), col(UsageRow.lease_id)))
        return tuple(_usage(row) for row in rows)

    # -- prices

    def prices(self, *, until: datetime | None = None) -> tuple[PriceSnapshot, ...]:
        """In order of time; `until` leaves out those from then on."""
        query = sa_select(_PRICE)
        if until is not None:
            query = query.where(_PRICE.c.at < until)
        rows = self._execute(query.order_by(_PRICE.c.at, _PRICE.c.gpu, _PRICE.c.is_spot))
        return tuple(
            PriceSnapshot(
                gpu=row.gpu,
                is_spot=row.is_spot,
                at=row.at,
                offers=row.offers,
                least=row.least,
                p10=row.p10,
                p25=row.p25,
                median=row.median,
                p75=row.p75,
                p90=row.p90,
                lasts=timedelta(seconds=row.lasts_s),
                readings=row.readings,
            )
            for row in rows
        )

    def last_price_at(self) -> datetime | None:
        """When the newest was read; None without any."""
        row = self._execute(sa_select(_PRICE.c.at).order_by(_PRICE.c.at.desc()).limit(1)).first()
        return None if row is None else row.at

    def add_prices(self, snapshots: Iterable[PriceSnapshot]) -> None:
        """One that is there already is replaced."""
        rows = [
            {
                "gpu": each.gpu,
                "is_spot": each.is_spot,
                "at": each.at,
                "lasts_s": int(each.lasts.total_seconds()),
                "readings": each.readings,
                "offers": each.offers,
                "least": each.least,
                "p10": each.p10,
                "p25": each.p25,
                "median": each.median,
                "p75": each.p75,
                "p90": each.p90,
            }
            for each in snapshots
        ]
        if rows:
            keys = [
                {"the_gpu": row["gpu"], "the_kind": row["is_spot"], "the_time": row["at"]} for row in rows
            ]
            connection = self.session.connection()
            connection.execute(_DROP_PRICE, keys)
            connection.execute(insert(_PRICE), rows)

    def replace_prices(self, until: datetime, snapshots: Iterable[PriceSnapshot]) -> None:
        """`snapshots` are from now on all that is kept from before `until`."""
        self.session.execute(delete(_PRICE).where(_PRICE.c.at < until))
        self.add_prices(snapshots)

    # -- load

    def add_load(self, deployment_id: DeploymentId, part: LoadSample) -> None:
        """Add to the minute that `part` belongs to."""
        key = {"the_deployment": deployment_id, "the_minute": part.started_at}
        row = self._execute(_ONE_LOAD, key).first()
        total = part if row is None else _load(row).plus(part)
        self._put(
            LoadRow,
            deployment_id=deployment_id,
            minute=total.started_at,
            requests=total.requests,
            turned_away=total.turned_away,
            prompt_tokens=total.prompt_tokens,
            generated_tokens=total.generated_tokens,
            running=total.running,
            waiting=total.waiting,
            serving=total.serving,
            first_byte_s=total.first_byte_s,
        )

    def load(self, deployment_id: DeploymentId, *, since: datetime) -> tuple[LoadSample, ...]:
        """By minute, oldest first."""
        rows = self._execute(_LOAD_SINCE, {"the_deployment": deployment_id, "since": since})
        return tuple(map(_load, rows))

    def drop_load(self, *, before: datetime) -> None:
        self._execute(_DROP_LOAD, {"before": before})

    def put_tick(self, *, now: datetime, orders_read_at: datetime | None, trouble: str) -> None:
        values: dict[str, object] = {"finished_at": now, "trouble": trouble}
        if orders_read_at is not None:
            values["orders_read_at"] = orders_read_at
        if self._execute(_COUNT_TICK, values).rowcount == 0:
            self._execute(insert(_TICK), {"row_id": 1, "count": 1, **values})
        self._execute(_DROP_OLD_EVENTS, {"kept": EVENTS_MAX})

    def last_tick(self) -> LastTick | None:
        row = self._execute(_LAST_TICK).first()
        return None if row is None else LastTick(row.ticks, row.finished_at, row.orders_read_at, row.trouble)

    def prune(self, *, before: datetime) -> None:
        """Forget what no decision needs any more: finished intents, jobs and foreign orders from before
        `before`. Leases and ledger stay: they are the account of the money."""
        for statement in _PRUNE:
            self._execute(statement, {"before": before})


def _table(row: type[SQLModel]) -> Table:
    found: Table = row.__table__  # type: ignore[attr-defined]
    return found


@cache
def _upsert(kind: type[SQLModel], dialect: str) -> Executable:
    table = _table(kind)
    statement = sqlite.insert(table) if dialect == "sqlite" else postgresql.insert(table)
    return statement.on_conflict_do_update(
        index_elements=list(table.primary_key),
        set_={each.name: statement.excluded[each.name] for each in table.c if not each.primary_key},
    )


# What each tick asks, made once.
_LEADERSHIP, _TICK, _EVENT = _table(LeadershipRow), _table(TickRow), _table(EventRow)
_LEASE, _INTENT, _SEGMENT = _table(LeaseRow), _table(IntentRow), _table(LedgerSegmentRow)
_FAULT, _FOREIGN, _JOB = _table(HostFaultRow), _table(ForeignOrderRow), _table(JobRow)
_DEPLOYMENT = _table(DeploymentRow)
_SINCE = bindparam("since", type_=UtcDateTime())
_THE_LEADER = sa_select(
    _LEADERSHIP.c.token, _LEADERSHIP.c.holder, _LEADERSHIP.c.expires_at, _LEADERSHIP.c.beat
)
_THE_LEADER_LOCKED = _THE_LEADER.with_for_update()
_SET_LEADER = update(_LEADERSHIP).where(_LEADERSHIP.c.row_id == 1)
_LAST_TICK = sa_select(
    _TICK.c.count.label("ticks"), _TICK.c.finished_at, _TICK.c.orders_read_at, _TICK.c.trouble
)
_COUNT_TICK = update(_TICK).where(_TICK.c.row_id == 1).values(count=_TICK.c.count + 1)
_DROP_OLD_EVENTS = delete(_EVENT).where(
    _EVENT.c.event_id
    <= sa_select(func.max(_EVENT.c.event_id)).scalar_subquery() - bindparam("kept", type_=Integer())
)
_LEASES = sa_select(_LEASE.c.document, cast(_LEASE.c.plan, Text).label("plan"))
_THE_OPEN_LEASES = _LEASES.where(_LEASE.c.state.in_(_OPEN_LEASES)).order_by(_LEASE.c.created_at)
_LEASES_SINCE = _LEASES.where(or_(_LEASE.c.created_at >= _SINCE, _LEASE.c.ended_at >= _SINCE)).order_by(
    _LEASE.c.created_at
)
_ONE_LEASE = _LEASES.where(_LEASE.c.lease_id == bindparam("the_lease"))
_THE_DOUBTFUL = sa_select(_INTENT).where(_INTENT.c.state.in_(_DOUBTFUL))
_INTENTS_OF = (
    sa_select(_INTENT).where(_INTENT.c.lease_id == bindparam("the_lease")).order_by(_INTENT.c.created_at)
)
_SEGMENTS = sa_select(_SEGMENT)
_SEGMENTS_SINCE = _SEGMENTS.where(
    _SEGMENT.c.order_id.in_(
        sa_select(_SEGMENT.c.order_id).where(
            or_(_SEGMENT.c.ended_at.is_(None), _SEGMENT.c.ended_at >= _SINCE)
        )
    )
).order_by(_SEGMENT.c.started_at, _SEGMENT.c.segment_id)
_CAN_CHANGE = or_(
    _SEGMENT.c.settled_at.is_(None),
    _SEGMENT.c.market_spend.is_(None),
    _SEGMENT.c.lease_id.in_(sa_select(_LEASE.c.lease_id).where(_LEASE.c.state.in_(_OPEN_LEASES))),
)
_RUNNING_SEGMENTS = _SEGMENTS.where(or_(_SEGMENT.c.settled_at.is_(None), _SEGMENT.c.market_spend.is_(None)))
_TOTALS = sa_select(_table(LedgerTotalRow))
_UNSETTLED_SEGMENTS = _SEGMENTS.where(_CAN_CHANGE).order_by(_SEGMENT.c.started_at, _SEGMENT.c.segment_id)
_SETTLED = sa_select(_SEGMENT.c.deployment_id, _SEGMENT.c.market_spend, _SEGMENT.c.usd_per_unit).where(
    not_(_CAN_CHANGE)
)
_PRICE = _table(PriceSnapshotRow)
_DROP_PRICE = delete(_PRICE).where(
    _PRICE.c.gpu == bindparam("the_gpu"),
    _PRICE.c.is_spot == bindparam("the_kind"),
    _PRICE.c.at == bindparam("the_time", type_=UtcDateTime()),
)
_PHASE_ENTRY = _table(PhaseEntryRow)
_THIS_PHASE = (
    bindparam("the_lease", type_=String()),
    bindparam("the_start", type_=UtcDateTime()),
    bindparam("the_phase", type_=String()),
)
_NEW_PHASE = insert(_PHASE_ENTRY).from_select(
    ["lease_id", "entered_at", "phase"],
    sa_select(*_THIS_PHASE).where(
        ~exists().where(
            _PHASE_ENTRY.c.lease_id == _THIS_PHASE[0],
            _PHASE_ENTRY.c.entered_at == _THIS_PHASE[1],
            _PHASE_ENTRY.c.phase == _THIS_PHASE[2],
        )
    ),
)
_PHASES = sa_select(_PHASE_ENTRY)
_PHASES_SINCE = _PHASES.where(
    _PHASE_ENTRY.c.lease_id.in_(
        sa_select(_SEGMENT.c.lease_id).where(
            or_(_SEGMENT.c.ended_at.is_(None), _SEGMENT.c.ended_at >= _SINCE)
        )
    )
)
_RUNNING = _SEGMENT.alias("running")
_OPEN_BILLS = (
    sa_select(
        _SEGMENT.c.order_id,
        _SEGMENT.c.lease_id,
        _LEASE.c.server_id,
        func.min(_SEGMENT.c.started_at, type_=UtcDateTime()).label("started_at"),
    )
    .join(_LEASE, _LEASE.c.lease_id == _SEGMENT.c.lease_id)
    .where(
        _SEGMENT.c.settled_at.is_(None),
        _SEGMENT.c.ended_at.is_not(None),
        ~exists().where(
            _RUNNING.c.order_id == _SEGMENT.c.order_id,
            _RUNNING.c.lease_id == _SEGMENT.c.lease_id,
            _RUNNING.c.ended_at.is_(None),
        ),
    )
    .group_by(_SEGMENT.c.order_id, _SEGMENT.c.lease_id, _LEASE.c.server_id)
    .order_by(_SEGMENT.c.order_id, func.min(_SEGMENT.c.started_at))
)
_DEPLOYMENTS = sa_select(_DEPLOYMENT).order_by(_DEPLOYMENT.c.created_at)
_ONE_DEPLOYMENT = sa_select(_DEPLOYMENT).where(_DEPLOYMENT.c.deployment_id == bindparam("the_deployment"))
_ORDER_SEGMENTS = _SEGMENTS.where(_SEGMENT.c.order_id == bindparam("the_order")).order_by(
    _SEGMENT.c.started_at, _SEGMENT.c.segment_id
)
_SET_SEGMENT = update(_SEGMENT).where(_SEGMENT.c.segment_id == bindparam("the_segment"))
_NOTE_SPEND = (
    update(_SEGMENT)
    .where(
        _SEGMENT.c.order_id == bindparam("the_order"),
        _SEGMENT.c.started_at == bindparam("the_start"),
        _SEGMENT.c.settled_at.is_(None),
    )
    .values(market_spend=bindparam("spend"))
)
_NOTE_LEASE = update(_LEASE).where(_LEASE.c.lease_id == bindparam("the_lease"))
_ONE_FOREIGN = sa_select(_FOREIGN).where(_FOREIGN.c.order_id == bindparam("the_order"))
_ONE_JOB = sa_select(_JOB).where(_JOB.c.job_id == bindparam("the_job"))
_START_UPS = (
    sa_select(_table(StartUpRow).c.took_s)
    .where(_table(StartUpRow).c.deployment_id == bindparam("the_deployment"))
    .order_by(_table(StartUpRow).c.served_at.desc())
    .limit(bindparam("most", type_=Integer()))
)
_LOAD = sa_select(_table(LoadRow))
_ONE_LOAD = _LOAD.where(
    _table(LoadRow).c.deployment_id == bindparam("the_deployment"),
    _table(LoadRow).c.minute == bindparam("the_minute"),
)
_LOAD_SINCE = _LOAD.where(
    _table(LoadRow).c.deployment_id == bindparam("the_deployment"), _table(LoadRow).c.minute >= _SINCE
).order_by(_table(LoadRow).c.minute)
_DROP_LOAD = delete(_table(LoadRow)).where(_table(LoadRow).c.minute < bindparam("before"))
_PRUNE = (
    delete(_INTENT).where(_INTENT.c.state.in_(_CLOSED), _INTENT.c.finished_at < bindparam("before")),
    delete(_JOB).where(_JOB.c.started_at < bindparam("before")),
    delete(_FOREIGN).where(_FOREIGN.c.last_seen_at < bindparam("before")),
)
_GUARD = sa_select(_table(FleetGuardRow))
_WANTED = sa_select(_table(WantedRow))
_WALLETS = sa_select(_table(WalletReadingRow)).order_by(_table(WalletReadingRow).c.currency)
_COIN_RATES = sa_select(_table(CoinRateRow)).order_by(_table(CoinRateRow).c.currency)
_ADD_SEGMENT, _ADD_FAULT, _ADD_EVENT = insert(_SEGMENT), insert(_FAULT), insert(_EVENT)
_FAULTS = sa_select(_FAULT).order_by(_FAULT.c.at)
_FAULTS_SINCE = _FAULTS.where(_FAULT.c.at >= _SINCE)
_VERDICTS = sa_select(_table(HostVerdictRow)).order_by(_table(HostVerdictRow).c.verdict_id)
_FOREIGN_SINCE = sa_select(_FOREIGN).where(_FOREIGN.c.last_seen_at >= _SINCE)


def _usage(row: UsageRow) -> UsageHour:
    return UsageHour(
        lease_id=LeaseId(row.lease_id),
        hour=row.hour,
        model=row.model,
        last_at=row.last_at,
        requests=row.requests,
        failures=row.failures,
        uncounted=row.uncounted,
        prompt_tokens=row.prompt_tokens,
        completion_tokens=row.completion_tokens,
        uncounted_events=row.uncounted_events,
        first_byte_s=row.first_byte_s,
        total_s=row.total_s,
        waits=tuple(row.waits),
    )


def _load(row: Row[Any]) -> LoadSample:
    return LoadSample(
        started_at=row.minute,
        length_s=MINUTE_S,
        requests=row.requests,
        turned_away=row.turned_away,
        prompt_tokens=row.prompt_tokens,
        generated_tokens=row.generated_tokens,
        running=row.running,
        waiting=row.waiting,
        serving=row.serving,
        first_byte_s=row.first_byte_s,
    )


def _deployment(row: Row[Any]) -> Deployment:
    columns = dict(row._mapping)
    del columns["model"]  # a copy of the requirement's, to query by
    policy = columns.pop("policy") or {}
    return codec.decode(Deployment, columns | policy)


def _intent(row: Row[Any]) -> Intent:
    worst = row.worst_case_usd_per_day
    return Intent(
        intent_id=IntentId(row.intent_id),
        effect=Effect(row.effect),
        lease_id=LeaseId(row.lease_id),
        deployment_id=DeploymentId(row.deployment_id),
        state=IntentState(row.state),
        created_at=row.created_at,
        doubted_at=row.doubted_at,
        finished_at=row.finished_at,
        worst_case_usd_per_day=None if worst is None else Rate.per_day(worst),
        detail=row.detail,
    )


def _lease(row: Row[Any]) -> Lease:
    return codec.decode(Lease, {**row.document, "plan": _plan(row.plan)})


@lru_cache(maxsize=PLANS_KEPT)
def _plan(text: str) -> Plan:
    """A plan is long, and the same in each tick."""
    return codec.decode(Plan, from_json(text))


def _beliefs(lease: Lease) -> dict[str, Any]:
    """The columns of a lease that change after its intent."""
    return {
        "deployment_id": lease.deployment_id,
        "slot": lease.slot,
        "state": lease.state,
        "phase": lease.phase,
        "order_id": lease.order_id,
        "phase_since": lease.phase_since,
        "ended_at": lease.ended_at,
        "reason": lease.reason,
        "document": codec.encode(lease, without=_PLAN_APART),
    }


def _segment(row: Row[Any]) -> LedgerSegment:
    return LedgerSegment(
        lease_id=LeaseId(row.lease_id),
        deployment_id=DeploymentId(row.deployment_id),
        order_id=OrderId(row.order_id),
        price=Rate.per_day(row.price_per_day, Currency(row.currency)),
        is_spot=row.is_spot,
        fee_percent=row.fee_percent,
        creation_fee=row.creation_fee,
        usd_per_unit=row.usd_per_unit,
        rate_source=row.rate_source,
        started_at=row.started_at,
        ended_at=row.ended_at,
        market_spend=row.market_spend,
        settled_at=row.settled_at,
        order_started_at=row.order_started_at,
    )


def _segment_columns(segment: LedgerSegment) -> dict[str, Any]:
    return {
        "lease_id": segment.lease_id,
        "deployment_id": segment.deployment_id,
        "order_id": segment.order_id,
        "currency": segment.currency,
        "is_spot": segment.is_spot,
        "price_per_day": segment.price.amount,
        "fee_percent": segment.fee_percent,
        "creation_fee": segment.creation_fee,
        "usd_per_unit": segment.usd_per_unit,
        "rate_source": segment.rate_source,
        "started_at": segment.started_at,
        "ended_at": segment.ended_at,
        "market_spend": segment.market_spend,
        "settled_at": segment.settled_at,
        "order_started_at": segment.order_started_at,
    }


def _event(row: EventRow) -> Event:
    return Event(
        at=row.at,
        name=row.name,
        text=row.text,
        deployment_id=DeploymentId(row.deployment_id) if row.deployment_id else None,
        lease_id=LeaseId(row.lease_id) if row.lease_id else None,
    )

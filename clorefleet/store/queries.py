"""What is asked of the store, in the domain's words: no row leaves it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from sqlalchemy import Connection, CursorResult, Executable, delete, func, insert, or_
from sqlalchemy import select as sa_select
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
from clorefleet.domain.identity import DeploymentId, LeaseId, OrderId, ServerId
from clorefleet.domain.intent import Intent
from clorefleet.domain.lease import PHASE_ORDER, Lease, Phase
from clorefleet.domain.ledger import (
    LedgerSegment,
    OpenBill,
    Segments,
    SettledTotal,
    in_order,
    settled_totals,
    total_of,
)
from clorefleet.domain.load import LoadSample
from clorefleet.domain.money import Currency, ExchangeRate, Money
from clorefleet.domain.node import Discrepancy, NodeFacts
from clorefleet.domain.order import Order, StrangeOrder
from clorefleet.domain.planning import Planning
from clorefleet.domain.price import PriceSnapshot
from clorefleet.domain.usage import UsageHour
from clorefleet.domain.wanted import Wanted
from clorefleet.store import codec
from clorefleet.store import statements as sql
from clorefleet.store.rows import (
    beliefs_of,
    columns_of_segment,
    deployment_of,
    event_of,
    intent_of,
    lease_of,
    load_of,
    segment_of,
    usage_of,
)
from clorefleet.store.tables import (
    AppliedFileRow,
    CoinRateRow,
    DeliveryRow,
    DeploymentRow,
    EventRow,
    FleetGuardRow,
    ForeignOrderRow,
    HostVerdictRow,
    IntentRow,
    JobRow,
    LeaseRow,
    LedgerSegmentRow,
    LedgerTotalRow,
    LoadRow,
    LookoutRow,
    NodeFactRow,
    PlanningRow,
    StartUpRow,
    UsageRow,
    WalletReadingRow,
    WantedRow,
)

_POLICY = frozenset(
    {"replicas_max", "schedule", "scale", "idle", "consolidate", "origin", "woken_at", "start_up_estimate"}
)
"""The fields of a deployment that are stored together, without columns of their own."""
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
        return tuple(deployment_of(row) for row in self._execute(sql.DEPLOYMENTS))

    def deployment(self, deployment_id: DeploymentId) -> Deployment | None:
        row = self._execute(sql.ONE_DEPLOYMENT, {"the_deployment": deployment_id}).first()
        return None if row is None else deployment_of(row)

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
        rows = self._execute(sql.WANTED)
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
        rows = self._execute(sql.START_UPS, {"the_deployment": deployment_id, "most": limit})
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
        return self._leases(sql.THE_OPEN_LEASES)

    def leases(
        self, deployment_id: DeploymentId | None = None, *, since: datetime | None = None
    ) -> tuple[Lease, ...]:
        """Open and closed ones; `since` leaves out those that were made and ended before it."""
        if deployment_id is None and since is not None:
            return self._leases(sql.LEASES_SINCE, {"since": since})
        query = sql.LEASES
        if deployment_id is not None:
            query = query.where(col(LeaseRow.deployment_id) == deployment_id)
        if since is not None:
            query = query.where(or_(col(LeaseRow.created_at) >= since, col(LeaseRow.ended_at) >= since))
        return self._leases(query.order_by(col(LeaseRow.created_at)))

    def _leases(self, query: Executable, values: Mapping[str, object] | None = None) -> tuple[Lease, ...]:
        return tuple(lease_of(row) for row in self._execute(query, values))

    def lease(self, lease_id: LeaseId) -> Lease | None:
        row = self._execute(sql.ONE_LEASE, {"the_lease": lease_id}).first()
        return None if row is None else lease_of(row)

    def put_lease(self, lease: Lease) -> None:
        self._put(
            LeaseRow,
            lease_id=lease.lease_id,
            intent_id=lease.intent_id,
            server_id=lease.server_id,
            created_at=lease.created_at,
            plan=codec.encode(lease.plan),
            **beliefs_of(lease),
        )
        self._note_phases([lease])

    def note_leases(self, leases: Iterable[Lease]) -> None:
        """What is believed of leases that are stored already, all at once. Their plans stay as they are."""
        noted = list(leases)
        rows = [{"the_lease": lease.lease_id, **beliefs_of(lease)} for lease in noted]
        if rows:
            self._connection.execute(sql.NOTE_LEASE, rows)
            self._note_phases(noted)

    def _note_phases(self, leases: Iterable[Lease]) -> None:
        """Every writing of a lease passes here: no change of phase goes unrecorded. Known ones stay."""
        self._connection.execute(
            sql.NEW_PHASE,
            [
                {"the_lease": lease.lease_id, "the_start": lease.phase_since, "the_phase": lease.phase.value}
                for lease in leases
            ],
        )

    def phases(self, *, since: datetime | None = None) -> tuple[PhaseEntry, ...]:
        """In order of time; `since` leaves out the leases whose orders all ended before it."""
        rows = (
            self._execute(sql.PHASES) if since is None else self._execute(sql.PHASES_SINCE, {"since": since})
        )
        entries = (PhaseEntry(LeaseId(row.lease_id), Phase(row.phase), row.entered_at) for row in rows)
        return tuple(
            sorted(entries, key=lambda each: (each.at, PHASE_ORDER.index(each.phase), each.lease_id))
        )

    # -- intents

    def doubtful_intents(self) -> tuple[Intent, ...]:
        rows = self._execute(sql.THE_DOUBTFUL)
        return tuple(intent_of(row) for row in rows)

    def intents_of(self, lease_id: LeaseId) -> tuple[Intent, ...]:
        return tuple(intent_of(row) for row in self._execute(sql.INTENTS_OF, {"the_lease": lease_id}))

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
            return tuple(segment_of(row) for row in self._execute(sql.SEGMENTS_SINCE, {"since": since}))
        query = sql.SEGMENTS
        if deployment_id is not None:
            query = query.where(col(LedgerSegmentRow.deployment_id) == deployment_id)
        if since is not None:
            ended_at = col(LedgerSegmentRow.ended_at)
            lately = select(LedgerSegmentRow.order_id).where(or_(ended_at.is_(None), ended_at >= since))
            query = query.where(col(LedgerSegmentRow.order_id).in_(lately))
        rows = self._execute(
            query.order_by(col(LedgerSegmentRow.started_at), col(LedgerSegmentRow.segment_id))
        )
        return tuple(segment_of(row) for row in rows)

    def unsettled_segments(self) -> tuple[LedgerSegment, ...]:
        """Those whose cost may still change, and all of leases that are open; in order of time."""
        return tuple(segment_of(row) for row in self._execute(sql.UNSETTLED_SEGMENTS))

    def running_segments(self) -> tuple[LedgerSegment, ...]:
        """Those that are not settled, and so in no sum yet."""
        return tuple(segment_of(row) for row in self._execute(sql.RUNNING_SEGMENTS))

    def settled_usd(self) -> dict[DeploymentId, Decimal]:
        """What all other segments cost, by deployment: final bills at the rates that were recorded."""
        found: dict[DeploymentId, Decimal] = {}
        for row in self._execute(sql.SETTLED):
            name = DeploymentId(row.deployment_id)
            found[name] = found.get(name, Decimal(0)) + row.market_spend * row.usd_per_unit
        return found

    def order_segments(self, order_id: OrderId) -> Segments:
        """All segments of one order, in order of time."""
        return in_order(map(segment_of, self._execute(sql.ORDER_SEGMENTS, {"the_order": order_id})))

    def put_order_segments(self, order_id: OrderId, segments: Segments) -> None:
        """`segments` are from now on all segments of the order; they begin at their places and never
        vanish."""
        rows = self._execute(sql.ORDER_SEGMENTS, {"the_order": order_id}).all()
        for row, segment in zip(rows, segments, strict=False):
            self._execute(sql.SET_SEGMENT, {"the_segment": row.segment_id, **columns_of_segment(segment)})
        for segment in segments[len(rows) :]:
            self._execute(sql.ADD_SEGMENT, columns_of_segment(segment))
        self._count_settled(segments, tuple(map(segment_of, rows[: len(segments)])))

    def _count_settled(self, now: Segments, before: Segments) -> None:
        if any(each.settled_at is not None for each in (*now, *before)):
            known = self.settled_totals()
            self._put_totals(total for total in total_of(known, now, before) if total not in known)

    def _put_totals(self, totals: Iterable[SettledTotal]) -> None:
        for total in totals:
            self._put(
                LedgerTotalRow,
                deployment_id=total.deployment_id,
                currency=total.currency,
                settled=total.amount,
                settled_usd=total.usd,
            )

    def sum_up(self) -> None:
        """The sums anew from the ledger itself. Who led before may have been a daemon of an older version,
        which knows nothing of them."""
        self._execute(sql.DROP_TOTALS)
        self._put_totals(settled_totals(map(segment_of, self._execute(sql.SETTLED_SEGMENTS))))

    def settled_totals(self) -> tuple[SettledTotal, ...]:
        """The sums of all settled segments, by deployment and currency."""
        return tuple(
            SettledTotal(
                DeploymentId(row.deployment_id), Currency(row.currency), row.settled, row.settled_usd
            )
            for row in self._execute(sql.TOTALS)
        )

    def note_spends(self, spends: Iterable[tuple[OrderId, LedgerSegment]]) -> None:
        """The market's counter of many orders that run, each on the order's last segment."""
        rows = [
            {"the_order": order_id, "the_start": last.started_at, "spend": last.market_spend}
            for order_id, last in spends
        ]
        if rows:
            self._connection.execute(sql.NOTE_SPEND, rows)

    def open_bills(self) -> tuple[OpenBill, ...]:
        """Of orders that ended, by number and time."""
        return tuple(
            OpenBill(OrderId(row.order_id), LeaseId(row.lease_id), ServerId(row.server_id), row.started_at)
            for row in self._execute(sql.OPEN_BILLS)
        )

    # -- ceilings, wallets, coins

    def guard(self) -> FleetGuard:
        row = self._execute(sql.GUARD).first()
        return FleetGuard() if row is None else codec.decode(FleetGuard, row.document)

    def put_guard(self, guard: FleetGuard) -> None:
        self._put(
            FleetGuardRow,
            row_id=1,
            document=codec.encode(guard),
        )

    def wallet_readings(self) -> tuple[WalletReading, ...]:
        rows = self._execute(sql.WALLETS)
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
        rows = self._execute(sql.COIN_RATES)
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
        row = self._execute(sql.ONE_JOB, {"the_job": job_id}).first()
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
        self._execute(sql.ADD_FAULT, columns)

    def host_faults(self, *, since: datetime | None = None) -> tuple[HostFault, ...]:
        """Oldest first; None: all that are remembered."""
        rows = (
            self._execute(sql.FAULTS) if since is None else self._execute(sql.FAULTS_SINCE, {"since": since})
        )
        return tuple(HostFault(ServerId(row.server_id), row.at, row.reason, row.cost_usd) for row in rows)

    def add_host_verdict(self, verdict: HostVerdict) -> None:
        self.session.add(
            HostVerdictRow(
                server_id=verdict.server_id, verdict=verdict.verdict, at=verdict.at, reason=verdict.reason
            )
        )

    def host_verdicts(self) -> tuple[HostVerdict, ...]:
        """In the order in which they were given."""
        rows = self._execute(sql.VERDICTS)
        return tuple(
            HostVerdict(ServerId(row.server_id), Verdict(row.verdict), row.at, row.reason) for row in rows
        )

    def faulty_servers(self, *, since: datetime) -> frozenset[ServerId]:
        """Those that plans leave out: see `domain.host.left_out`."""
        return left_out(self.host_faults(since=since), self.host_verdicts(), since=since)

    # -- foreign orders, events, ticks

    def note_foreign(self, order: Order, *, usd_per_day: Decimal | None, now: datetime) -> bool:
        """Remember an order that is not ours; true when it is new to us."""
        row = self._execute(sql.ONE_FOREIGN, {"the_order": order.order_id}).first()
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
        rows = self._execute(sql.FOREIGN_SINCE, {"since": seen_since})
        return tuple((OrderId(row.order_id), ServerId(row.server_id), row.usd_per_day) for row in rows)

    def strange_orders(self) -> tuple[StrangeOrder, ...]:
        """Orders that nothing here explains and that the last reading of the order list showed."""
        tick = self.last_tick()
        read_at = None if tick is None else tick.orders_read_at
        rows = () if read_at is None else self._execute(sql.FOREIGN_SINCE, {"since": read_at})
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
        self._execute(sql.ADD_EVENT, columns)

    def events(
        self, deployment_id: DeploymentId | None = None, *, after_id: int = 0, limit: int = 200
    ) -> tuple[tuple[int, Event], ...]:
        """The newest `limit` events after `after_id`, oldest first, each with its id."""
        query = select(EventRow).where(col(EventRow.event_id) > after_id)
        if deployment_id is not None:
            query = query.where(col(EventRow.deployment_id) == deployment_id)
        rows = list(self.session.exec(query.order_by(col(EventRow.event_id).desc()).limit(limit)))
        return tuple((row.event_id or 0, event_of(row)) for row in reversed(rows))

    # -- leadership

    def leadership(self) -> Leadership | None:
        """The one row of it. In a transaction that writes it is locked until that ends. One that only reads
        takes no lock: PostgreSQL would refuse it when the leader has beaten since the transaction began."""
        if self._leader is None:
            row = self._execute(sql.THE_LEADER_LOCKED if self._writes else sql.THE_LEADER).first()
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
        if self._execute(sql.SET_LEADER, values).rowcount == 0:
            self._execute(insert(sql.LEADERSHIP), {"row_id": 1, **values})
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
            self._connection.execute(sql.upsert(kind, self._connection.dialect.name), rows)

    # -- usage

    def add_usage(self, hours: Iterable[UsageHour]) -> None:
        """Add to what the leases were used for."""
        for added in hours:
            row = self.session.get(UsageRow, (added.lease_id, added.hour))
            total = added if row is None else usage_of(row).plus(added)
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
        return tuple(usage_of(row) for row in rows)

    # -- prices

    def prices(self, *, until: datetime | None = None) -> tuple[PriceSnapshot, ...]:
        """In order of time; `until` leaves out those from then on."""
        query = sa_select(sql.PRICE)
        if until is not None:
            query = query.where(sql.PRICE.c.at < until)
        rows = self._execute(query.order_by(sql.PRICE.c.at, sql.PRICE.c.gpu, sql.PRICE.c.is_spot))
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
        row = self._execute(sa_select(sql.PRICE.c.at).order_by(sql.PRICE.c.at.desc()).limit(1)).first()
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
            connection.execute(sql.DROP_PRICE, keys)
            connection.execute(insert(sql.PRICE), rows)

    def replace_prices(self, until: datetime, snapshots: Iterable[PriceSnapshot]) -> None:
        """`snapshots` are from now on all that is kept from before `until`."""
        self.session.execute(delete(sql.PRICE).where(sql.PRICE.c.at < until))
        self.add_prices(snapshots)

    # -- load

    def add_load(self, deployment_id: DeploymentId, part: LoadSample) -> None:
        """Add to the minute that `part` belongs to."""
        key = {"the_deployment": deployment_id, "the_minute": part.started_at}
        row = self._execute(sql.ONE_LOAD, key).first()
        total = part if row is None else load_of(row).plus(part)
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
        rows = self._execute(sql.LOAD_SINCE, {"the_deployment": deployment_id, "since": since})
        return tuple(map(load_of, rows))

    def drop_load(self, *, before: datetime) -> None:
        self._execute(sql.DROP_LOAD, {"before": before})

    def put_tick(self, *, now: datetime, orders_read_at: datetime | None, trouble: str) -> None:
        values: dict[str, object] = {"finished_at": now, "trouble": trouble}
        if orders_read_at is not None:
            values["orders_read_at"] = orders_read_at
        if self._execute(sql.COUNT_TICK, values).rowcount == 0:
            self._execute(insert(sql.TICK), {"row_id": 1, "count": 1, **values})
        self._execute(sql.DROP_OLD_EVENTS, {"kept": EVENTS_MAX})

    def last_tick(self) -> LastTick | None:
        row = self._execute(sql.LAST_TICK).first()
        return None if row is None else LastTick(row.ticks, row.finished_at, row.orders_read_at, row.trouble)

    def prune(self, *, before: datetime) -> None:
        """Forget what no decision needs any more: finished intents, jobs and foreign orders from before
        `before`. Leases and ledger stay: they are the account of the money."""
        for statement in sql.PRUNE:
            self._execute(statement, {"before": before})

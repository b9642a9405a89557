"""The tables. One class per table, columns named by the glossary; nothing but storage here.

Instants are stored as UTC, amounts of money as text (exact), nested values as JSON made by
`clorefleet.store.codec`. Every change here comes with a revision in `migrations/`.
"""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import JSON, BigInteger, DateTime, Index, String
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator
from sqlmodel import Field, SQLModel


class UtcDateTime(TypeDecorator[datetime]):
    """Timezone-aware UTC in and out, also on SQLite, which forgets time zones."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("only timezone-aware instants are stored")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class DecimalText(TypeDecorator[Decimal]):
    """A Decimal as text: SQLite's numbers are floats, and money must come back as it went in."""

    impl = String(64)
    cache_ok = True

    def process_bind_param(self, value: Decimal | None, dialect: Dialect) -> str | None:
        return None if value is None else str(value)

    def process_result_value(self, value: str | None, dialect: Dialect) -> Decimal | None:
        return None if value is None else Decimal(value)


class DeploymentRow(SQLModel, table=True):
    __tablename__ = "deployment"
    deployment_id: str = Field(primary_key=True)
    model: str
    desired: str
    replicas: int
    created_at: datetime = Field(sa_type=UtcDateTime)
    attempts_max: int
    attempts_since: datetime | None = Field(default=None, sa_type=UtcDateTime)
    note: str = ""
    has_given_up: bool = False
    requirement: dict[str, Any] = Field(sa_type=JSON)
    policy: dict[str, Any] | None = Field(default=None, sa_type=JSON)
    """Schedule, scaling, idle rule, origin: the fields of `Deployment` that have no column of their own."""


class WantedRow(SQLModel, table=True):
    """How many replicas of a deployment were last found to be wanted, and why."""

    __tablename__ = "wanted"
    deployment_id: str = Field(primary_key=True)
    replicas: int
    reason: str
    until: datetime | None = Field(default=None, sa_type=UtcDateTime)
    noted_at: datetime = Field(sa_type=UtcDateTime)


class AppliedFileRow(SQLModel, table=True):
    """One row: which fleet file was last approved. Its text is not kept."""

    __tablename__ = "applied_file"
    row_id: int = Field(default=1, primary_key=True)
    path: str
    digest: str
    applied_at: datetime = Field(sa_type=UtcDateTime)


class DeliveryRow(SQLModel, table=True):
    """One alert on its way to one channel. The key makes that it goes out once."""

    __tablename__ = "delivery"
    alert_key: str = Field(primary_key=True)
    channel: str = Field(primary_key=True)
    alert: dict[str, Any] = Field(sa_type=JSON)
    state: str = Field(index=True)
    attempts: int
    created_at: datetime = Field(sa_type=UtcDateTime)
    next_at: datetime = Field(sa_type=UtcDateTime)
    trouble: str = ""


class LookoutRow(SQLModel, table=True):
    """One row: up to which event alerts were made, and what each deployment's replicas were like then."""

    __tablename__ = "lookout"
    row_id: int = Field(default=1, primary_key=True)
    document: dict[str, Any] = Field(sa_type=JSON)


class StartUpRow(SQLModel, table=True):
    """How long a replica took from rent to serving."""

    __tablename__ = "start_up"
    lease_id: str = Field(primary_key=True)
    deployment_id: str = Field(index=True)
    server_id: int
    served_at: datetime = Field(sa_type=UtcDateTime)
    took_s: int


class LeaseRow(SQLModel, table=True):
    __tablename__ = "lease"
    __table_args__ = (Index("ix_lease_state", "state"), Index("ix_lease_deployment", "deployment_id"))
    lease_id: str = Field(primary_key=True)
    deployment_id: str
    slot: int
    intent_id: str
    state: str
    phase: str
    server_id: int
    order_id: int | None = None
    created_at: datetime = Field(sa_type=UtcDateTime)
    phase_since: datetime = Field(sa_type=UtcDateTime)
    ended_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    reason: str = ""
    document: dict[str, Any] = Field(sa_type=JSON)
    """The whole `Lease` but its plan; the columns above are copies to query by."""
    plan: dict[str, Any] = Field(sa_type=JSON)
    """Apart, because it is long, changes almost never, and a tick writes many leases."""


class PhaseEntryRow(SQLModel, table=True):
    """When a lease's replica entered a phase. Never changed, and kept as long as the ledger."""

    __tablename__ = "phase_entry"
    lease_id: str = Field(primary_key=True)
    entered_at: datetime = Field(primary_key=True, sa_type=UtcDateTime)
    phase: str = Field(primary_key=True)


class IntentRow(SQLModel, table=True):
    __tablename__ = "intent"
    __table_args__ = (Index("ix_intent_state", "state"), Index("ix_intent_lease", "lease_id"))
    intent_id: str = Field(primary_key=True)
    effect: str
    lease_id: str
    deployment_id: str
    state: str
    created_at: datetime = Field(sa_type=UtcDateTime)
    doubted_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    finished_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    worst_case_usd_per_day: Decimal | None = Field(default=None, sa_type=DecimalText)
    detail: str = ""
    fencing_token: int


class LedgerSegmentRow(SQLModel, table=True):
    """One lease at one rate. Open while `ended_at` is null."""

    __tablename__ = "ledger_segment"
    __table_args__ = (Index("ix_ledger_lease", "lease_id"), Index("ix_ledger_order", "order_id"))
    segment_id: int | None = Field(default=None, primary_key=True)
    lease_id: str
    deployment_id: str
    order_id: int
    currency: str
    is_spot: bool
    price_per_day: Decimal = Field(sa_type=DecimalText)
    fee_percent: Decimal = Field(sa_type=DecimalText)
    creation_fee: Decimal = Field(sa_type=DecimalText)
    usd_per_unit: Decimal = Field(sa_type=DecimalText)
    rate_source: str
    started_at: datetime = Field(sa_type=UtcDateTime)
    ended_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    market_spend: Decimal | None = Field(default=None, sa_type=DecimalText)
    """The market's own counter, last seen; final once `settled_at` is set."""
    settled_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    order_started_at: datetime | None = Field(default=None, sa_type=UtcDateTime)


class LedgerTotalRow(SQLModel, table=True):
    """The sum of the settled segments, which only grow in number: a tick does not read them."""

    __tablename__ = "ledger_total"
    deployment_id: str = Field(primary_key=True)
    currency: str = Field(primary_key=True)
    settled: Decimal = Field(sa_type=DecimalText)
    """In the billed currency."""
    settled_usd: Decimal = Field(sa_type=DecimalText)
    """At the rates that were recorded with each segment."""


class NodeFactRow(SQLModel, table=True):
    __tablename__ = "node_fact"
    lease_id: str = Field(primary_key=True)
    server_id: int = Field(index=True)
    measured_at: datetime = Field(sa_type=UtcDateTime)
    facts: dict[str, Any] = Field(sa_type=JSON)
    discrepancies: list[dict[str, Any]] = Field(sa_type=JSON)


class JobRow(SQLModel, table=True):
    __tablename__ = "job"
    job_id: str = Field(primary_key=True)
    lease_id: str = Field(index=True)
    phase: str
    attempt: int
    started_at: datetime = Field(sa_type=UtcDateTime)
    finished_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    state: str
    detail: str = ""


class EventRow(SQLModel, table=True):
    __tablename__ = "event"
    event_id: int | None = Field(default=None, primary_key=True)
    at: datetime = Field(sa_type=UtcDateTime, index=True)
    name: str
    deployment_id: str = ""
    lease_id: str = ""
    text: str = ""


class HostFaultRow(SQLModel, table=True):
    __tablename__ = "host_fault"
    fault_id: int | None = Field(default=None, primary_key=True)
    server_id: int = Field(index=True)
    at: datetime = Field(sa_type=UtcDateTime)
    reason: str
    cost_usd: Decimal = Field(sa_type=DecimalText)


class HostVerdictRow(SQLModel, table=True):
    """The user's word on a server; rows are only added, the latest counts."""

    __tablename__ = "host_verdict"
    verdict_id: int | None = Field(default=None, primary_key=True)
    server_id: int = Field(index=True)
    verdict: str
    at: datetime = Field(sa_type=UtcDateTime)
    reason: str = ""


class ForeignOrderRow(SQLModel, table=True):
    """An order on the account that is not ours: reported, never touched."""

    __tablename__ = "foreign_order"
    order_id: int = Field(primary_key=True)
    server_id: int
    first_seen_at: datetime = Field(sa_type=UtcDateTime)
    last_seen_at: datetime = Field(sa_type=UtcDateTime)
    usd_per_day: Decimal | None = Field(default=None, sa_type=DecimalText)
    consented_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    """When the user said, of this very order, that it may be ended."""


class CoinRateRow(SQLModel, table=True):
    """What a coin was last worth, and who said so."""

    __tablename__ = "coin_rate"
    currency: str = Field(primary_key=True)
    usd_per_unit: Decimal = Field(sa_type=DecimalText)
    as_of: datetime = Field(sa_type=UtcDateTime)
    source: str


class PriceSnapshotRow(SQLModel, table=True):
    """What free servers of one kind of GPU asked for at one time, or over an hour or a day."""

    __tablename__ = "price_snapshot"
    __table_args__ = (Index("ix_price_at", "at"),)
    gpu: str = Field(primary_key=True)
    is_spot: bool = Field(primary_key=True)
    at: datetime = Field(primary_key=True, sa_type=UtcDateTime)
    lasts_s: int
    readings: int
    offers: int
    least: Decimal = Field(sa_type=DecimalText)
    p10: Decimal = Field(sa_type=DecimalText)
    p25: Decimal = Field(sa_type=DecimalText)
    median: Decimal = Field(sa_type=DecimalText)
    p75: Decimal = Field(sa_type=DecimalText)
    p90: Decimal = Field(sa_type=DecimalText)


class WalletReadingRow(SQLModel, table=True):
    """The last reading of a wallet, and the first one of its day (UTC), each with the ledger's own total
    then."""

    __tablename__ = "wallet_reading"
    currency: str = Field(primary_key=True)
    read_at: datetime = Field(sa_type=UtcDateTime)
    balance: Decimal = Field(sa_type=DecimalText)
    ledger: Decimal = Field(sa_type=DecimalText)
    burn_per_day: Decimal = Field(sa_type=DecimalText)
    """What all live orders of the account took a day in this currency, with fee."""
    day_read_at: datetime = Field(sa_type=UtcDateTime)
    day_balance: Decimal = Field(sa_type=DecimalText)
    day_ledger: Decimal = Field(sa_type=DecimalText)


class FleetGuardRow(SQLModel, table=True):
    """One row: the ceilings over all deployments, and whether renting is stopped until the user says go
    on."""

    __tablename__ = "fleet_guard"
    row_id: int = Field(default=1, primary_key=True)
    document: dict[str, Any] = Field(sa_type=JSON)


class UsageRow(SQLModel, table=True):
    """What a lease was used for within an hour; rows only grow by addition."""

    __tablename__ = "usage"
    lease_id: str = Field(primary_key=True)
    hour: datetime = Field(primary_key=True, sa_type=UtcDateTime)
    model: str
    last_at: datetime = Field(sa_type=UtcDateTime)
    requests: int
    failures: int
    uncounted: int
    prompt_tokens: int = Field(sa_type=BigInteger)
    completion_tokens: int = Field(sa_type=BigInteger)
    uncounted_events: int = Field(sa_type=BigInteger)
    first_byte_s: float
    total_s: float
    waits: list[int] = Field(sa_type=JSON)


class LoadRow(SQLModel, table=True):
    """What a deployment was asked for within a minute."""

    __tablename__ = "load"
    deployment_id: str = Field(primary_key=True)
    minute: datetime = Field(primary_key=True, sa_type=UtcDateTime)
    requests: int
    turned_away: int
    prompt_tokens: int = Field(sa_type=BigInteger)
    generated_tokens: int = Field(sa_type=BigInteger)
    running: int
    waiting: int
    serving: int
    first_byte_s: float | None = None


class PlanningRow(SQLModel, table=True):
    """What the last planning for a deployment found."""

    __tablename__ = "planning"
    deployment_id: str = Field(primary_key=True)
    made_at: datetime = Field(sa_type=UtcDateTime)
    document: dict[str, Any] = Field(sa_type=JSON)


class LeadershipRow(SQLModel, table=True):
    """One row: who may write as the daemon, and the fencing token that proves it."""

    __tablename__ = "leadership"
    row_id: int = Field(default=1, primary_key=True)
    token: int
    holder: str
    expires_at: datetime = Field(sa_type=UtcDateTime)
    beat: int = 0
    """Grows with each renewal: who stands by sees by it that the leader lives, whatever either clock says."""


class TickRow(SQLModel, table=True):
    """One row: what the last tick saw, for `status` and for whoever asks whether the daemon lives."""

    __tablename__ = "tick"
    row_id: int = Field(default=1, primary_key=True)
    count: int
    finished_at: datetime = Field(sa_type=UtcDateTime)
    orders_read_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    trouble: str = ""
    """Why the last tick could not do its work; "" when it could."""

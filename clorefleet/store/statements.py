"""What the store is asked often, above all in each tick, as statements that are made once."""

from __future__ import annotations

from functools import cache

from sqlalchemy import (
    Executable,
    Integer,
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
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlmodel import SQLModel

from clorefleet.domain.intent import IntentState
from clorefleet.domain.lease import LeaseState
from clorefleet.store.tables import (
    CoinRateRow,
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
    PhaseEntryRow,
    PriceSnapshotRow,
    StartUpRow,
    TickRow,
    UtcDateTime,
    WalletReadingRow,
    WantedRow,
)

OPEN_LEASES = tuple(state.value for state in (LeaseState.INTENT, LeaseState.ORDERED, LeaseState.ENDING))
DOUBTFUL = tuple(state.value for state in (IntentState.OPEN, IntentState.UNKNOWN))
CLOSED = tuple(state.value for state in IntentState if state.value not in DOUBTFUL)


def table(row: type[SQLModel]) -> Table:
    found: Table = row.__table__  # type: ignore[attr-defined]
    return found


@cache
def upsert(kind: type[SQLModel], dialect: str) -> Executable:
    into = table(kind)
    statement = sqlite.insert(into) if dialect == "sqlite" else postgresql.insert(into)
    return statement.on_conflict_do_update(
        index_elements=list(into.primary_key),
        set_={each.name: statement.excluded[each.name] for each in into.c if not each.primary_key},
    )


LEADERSHIP, TICK, EVENT = table(LeadershipRow), table(TickRow), table(EventRow)
LEASE, INTENT, SEGMENT = table(LeaseRow), table(IntentRow), table(LedgerSegmentRow)
FAULT, FOREIGN, JOB = table(HostFaultRow), table(ForeignOrderRow), table(JobRow)
DEPLOYMENT = table(DeploymentRow)
SINCE = bindparam("since", type_=UtcDateTime())
THE_LEADER = select(LEADERSHIP.c.token, LEADERSHIP.c.holder, LEADERSHIP.c.expires_at, LEADERSHIP.c.beat)
THE_LEADER_LOCKED = THE_LEADER.with_for_update()
SET_LEADER = update(LEADERSHIP).where(LEADERSHIP.c.row_id == 1)
LAST_TICK = select(TICK.c.count.label("ticks"), TICK.c.finished_at, TICK.c.orders_read_at, TICK.c.trouble)
COUNT_TICK = update(TICK).where(TICK.c.row_id == 1).values(count=TICK.c.count + 1)
DROP_OLD_EVENTS = delete(EVENT).where(
    EVENT.c.event_id
    <= select(func.max(EVENT.c.event_id)).scalar_subquery() - bindparam("kept", type_=Integer())
)
LEASES = select(LEASE.c.document, cast(LEASE.c.plan, Text).label("plan"))
THE_OPEN_LEASES = LEASES.where(LEASE.c.state.in_(OPEN_LEASES)).order_by(LEASE.c.created_at)
LEASES_SINCE = LEASES.where(or_(LEASE.c.created_at >= SINCE, LEASE.c.ended_at >= SINCE)).order_by(
    LEASE.c.created_at
)
ONE_LEASE = LEASES.where(LEASE.c.lease_id == bindparam("the_lease"))
THE_DOUBTFUL = select(INTENT).where(INTENT.c.state.in_(DOUBTFUL))
INTENTS_OF = select(INTENT).where(INTENT.c.lease_id == bindparam("the_lease")).order_by(INTENT.c.created_at)
SEGMENTS = select(SEGMENT)
SEGMENTS_SINCE = SEGMENTS.where(
    SEGMENT.c.order_id.in_(
        select(SEGMENT.c.order_id).where(or_(SEGMENT.c.ended_at.is_(None), SEGMENT.c.ended_at >= SINCE))
    )
).order_by(SEGMENT.c.started_at, SEGMENT.c.segment_id)
CAN_CHANGE = or_(
    SEGMENT.c.settled_at.is_(None),
    SEGMENT.c.market_spend.is_(None),
    SEGMENT.c.lease_id.in_(select(LEASE.c.lease_id).where(LEASE.c.state.in_(OPEN_LEASES))),
)
RUNNING_SEGMENTS = SEGMENTS.where(or_(SEGMENT.c.settled_at.is_(None), SEGMENT.c.market_spend.is_(None)))
SETTLED_SEGMENTS = SEGMENTS.where(SEGMENT.c.settled_at.is_not(None), SEGMENT.c.market_spend.is_not(None))
TOTALS = select(table(LedgerTotalRow))
DROP_TOTALS = delete(table(LedgerTotalRow))
UNSETTLED_SEGMENTS = SEGMENTS.where(CAN_CHANGE).order_by(SEGMENT.c.started_at, SEGMENT.c.segment_id)
SETTLED = select(SEGMENT.c.deployment_id, SEGMENT.c.market_spend, SEGMENT.c.usd_per_unit).where(
    not_(CAN_CHANGE)
)
PRICE = table(PriceSnapshotRow)
DROP_PRICE = delete(PRICE).where(
    PRICE.c.gpu == bindparam("the_gpu"),
    PRICE.c.is_spot == bindparam("the_kind"),
    PRICE.c.at == bindparam("the_time", type_=UtcDateTime()),
)
PHASE_ENTRY = table(PhaseEntryRow)
THIS_PHASE = (
    bindparam("the_lease", type_=String()),
    bindparam("the_start", type_=UtcDateTime()),
    bindparam("the_phase", type_=String()),
)
NEW_PHASE = insert(PHASE_ENTRY).from_select(
    ["lease_id", "entered_at", "phase"],
    select(*THIS_PHASE).where(
        ~exists().where(
            PHASE_ENTRY.c.lease_id == THIS_PHASE[0],
            PHASE_ENTRY.c.entered_at == THIS_PHASE[1],
            PHASE_ENTRY.c.phase == THIS_PHASE[2],
        )
    ),
)
PHASES = select(PHASE_ENTRY)
PHASES_SINCE = PHASES.where(
    PHASE_ENTRY.c.lease_id.in_(
        select(SEGMENT.c.lease_id).where(or_(SEGMENT.c.ended_at.is_(None), SEGMENT.c.ended_at >= SINCE))
    )
)
RUNNING = SEGMENT.alias("running")
OPEN_BILLS = (
    select(
        SEGMENT.c.order_id,
        SEGMENT.c.lease_id,
        LEASE.c.server_id,
        func.min(SEGMENT.c.started_at, type_=UtcDateTime()).label("started_at"),
    )
    .join(LEASE, LEASE.c.lease_id == SEGMENT.c.lease_id)
    .where(
        SEGMENT.c.settled_at.is_(None),
        SEGMENT.c.ended_at.is_not(None),
        ~exists().where(
            RUNNING.c.order_id == SEGMENT.c.order_id,
            RUNNING.c.lease_id == SEGMENT.c.lease_id,
            RUNNING.c.ended_at.is_(None),
        ),
    )
    .group_by(SEGMENT.c.order_id, SEGMENT.c.lease_id, LEASE.c.server_id)
    .order_by(SEGMENT.c.order_id, func.min(SEGMENT.c.started_at))
)
DEPLOYMENTS = select(DEPLOYMENT).order_by(DEPLOYMENT.c.created_at)
ONE_DEPLOYMENT = select(DEPLOYMENT).where(DEPLOYMENT.c.deployment_id == bindparam("the_deployment"))
ORDER_SEGMENTS = SEGMENTS.where(SEGMENT.c.order_id == bindparam("the_order")).order_by(
    SEGMENT.c.started_at, SEGMENT.c.segment_id
)
SET_SEGMENT = update(SEGMENT).where(SEGMENT.c.segment_id == bindparam("the_segment"))
NOTE_SPEND = (
    update(SEGMENT)
    .where(
        SEGMENT.c.order_id == bindparam("the_order"),
        SEGMENT.c.started_at == bindparam("the_start"),
        SEGMENT.c.settled_at.is_(None),
    )
    .values(market_spend=bindparam("spend"))
)
NOTE_LEASE = update(LEASE).where(LEASE.c.lease_id == bindparam("the_lease"))
ONE_FOREIGN = select(FOREIGN).where(FOREIGN.c.order_id == bindparam("the_order"))
ONE_JOB = select(JOB).where(JOB.c.job_id == bindparam("the_job"))
START_UPS = (
    select(table(StartUpRow).c.took_s)
    .where(table(StartUpRow).c.deployment_id == bindparam("the_deployment"))
    .order_by(table(StartUpRow).c.served_at.desc())
    .limit(bindparam("most", type_=Integer()))
)
LOAD = select(table(LoadRow))
ONE_LOAD = LOAD.where(
    table(LoadRow).c.deployment_id == bindparam("the_deployment"),
    table(LoadRow).c.minute == bindparam("the_minute"),
)
LOAD_SINCE = LOAD.where(
    table(LoadRow).c.deployment_id == bindparam("the_deployment"), table(LoadRow).c.minute >= SINCE
).order_by(table(LoadRow).c.minute)
DROP_LOAD = delete(table(LoadRow)).where(table(LoadRow).c.minute < bindparam("before"))
PRUNE = (
    delete(INTENT).where(INTENT.c.state.in_(CLOSED), INTENT.c.finished_at < bindparam("before")),
    delete(JOB).where(JOB.c.started_at < bindparam("before")),
    delete(FOREIGN).where(FOREIGN.c.last_seen_at < bindparam("before")),
)
GUARD = select(table(FleetGuardRow))
WANTED = select(table(WantedRow))
WALLETS = select(table(WalletReadingRow)).order_by(table(WalletReadingRow).c.currency)
COIN_RATES = select(table(CoinRateRow)).order_by(table(CoinRateRow).c.currency)
ADD_SEGMENT, ADD_FAULT, ADD_EVENT = insert(SEGMENT), insert(FAULT), insert(EVENT)
FAULTS = select(FAULT).order_by(FAULT.c.at)
FAULTS_SINCE = FAULTS.where(FAULT.c.at >= SINCE)
VERDICTS = select(table(HostVerdictRow)).order_by(table(HostVerdictRow).c.verdict_id)
FOREIGN_SINCE = select(FOREIGN).where(FOREIGN.c.last_seen_at >= SINCE)

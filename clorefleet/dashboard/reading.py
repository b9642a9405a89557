"""What each page shows: one short reading of the store, as values for its template.

No page decides or computes anything about money that is not computed elsewhere: the status comes from
`report.status`, what was spent today from `fleet.spending`, hosts from `report.host_history`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from clorefleet.dashboard import picture
from clorefleet.domain.books import PhaseEntry
from clorefleet.domain.deployment import Deployment, Desired
from clorefleet.domain.dimension import Dimension
from clorefleet.domain.event import Event
from clorefleet.domain.guard import WalletReading
from clorefleet.domain.identity import DeploymentId, LeaseId, ServerId
from clorefleet.domain.lease import PHASE_ORDER, Lease, LeaseState, Phase
from clorefleet.domain.ledger import LedgerSegment
from clorefleet.domain.load import LoadSample
from clorefleet.domain.money import Money
from clorefleet.domain.node import Discrepancy, NodeFacts
from clorefleet.domain.planning import Planning
from clorefleet.fleet import strange
from clorefleet.fleet.budget import midnight_utc
from clorefleet.fleet.limits import DEFAULT_LIMITS
from clorefleet.fleet.spending import load_spending
from clorefleet.fleet.wallet import wallet_warning
from clorefleet.fleet.wanted import as_wished
from clorefleet.report.charges import charges
from clorefleet.report.cost import CostRow, rows_by
from clorefleet.report.cost_report import CostQuestion, CostReport, books_since, cost_report
from clorefleet.report.host_history import HostHistory, host_histories
from clorefleet.report.status import DeploymentStatus, ReplicaStatus, fleet_status
from clorefleet.store.books import load_books
from clorefleet.store.queries import LastTick, Transaction

HOURS_A_DAY = 24
EVENTS_BESIDE = 12
"""Beside the fleet; the events page has more."""
EVENTS_SHOWN = 200
LOG_LINES_SHOWN = 300
HOST_LEASES_SHOWN = 20
TRACKS_MAX = 200
"""Leases of one deployment on a timeline, the newest."""
LOAD_SHOWN = timedelta(hours=3)
SPANS = {
    "1h": timedelta(hours=1),
    "6h": timedelta(hours=6),
    "24h": timedelta(hours=24),
    "7d": timedelta(days=7),
    "30d": timedelta(days=30),
}
DEFAULT_SPAN = "24h"
COST_DAYS = {"7d": 7, "30d": 30, "90d": 90}
DEFAULT_COST_SPAN = "30d"
COST_ROWS = 12
COST_TABLES = (
    ("Deployment", Dimension.DEPLOYMENT),
    ("Phase", Dimension.PHASE),
    ("Model", Dimension.MODEL),
    ("GPU", Dimension.GPU),
    ("Host", Dimension.HOST),
)
STEPS = tuple(phase for phase in PHASE_ORDER if phase not in (Phase.DRAINING, Phase.ENDED))
"""What a replica goes through until it serves."""


@dataclass(frozen=True, slots=True)
class DaemonSeen:
    """The daemon of this profile, as its files say."""

    pid: int
    gateway_url: str


@dataclass(frozen=True, slots=True)
class Sources:
    """Where a reading comes from besides the store: this machine's daemon."""

    find_daemon: Callable[[], DaemonSeen | None]
    daemon_log: Callable[[int], Sequence[str]]
    """The last so many lines, cleaned."""
    log_tail: Callable[[str], Sequence[str]]
    """What a lease's work wrote last, as the daemon saw it; cleaned."""


@dataclass(frozen=True, slots=True)
class Overview:
    """The head of every page: what bills now, and whether anybody watches it."""

    at: datetime
    usd_per_hour: Decimal
    spent_today_usd: Decimal
    spent_usd: Decimal
    per_day_ceiling_usd: Decimal | None
    serving: int
    wanted: int
    daemon: DaemonSeen | None
    last_tick: LastTick | None
    wallets: tuple[WalletReading, ...]
    warnings: tuple[str, ...]

    @property
    def tick_age(self) -> timedelta | None:
        return None if self.last_tick is None else self.at - self.last_tick.finished_at

    @property
    def share_of_day(self) -> float | None:
        """Spent today, of the fleet's ceiling."""
        if not self.per_day_ceiling_usd:
            return None
        return float(min(Decimal(1), self.spent_today_usd / self.per_day_ceiling_usd))


@dataclass(frozen=True, slots=True)
class Card:
    """A deployment as the fleet page shows it."""

    status: DeploymentStatus
    budget_usd_per_day: Decimal | None
    spent_today_usd: Decimal


@dataclass(frozen=True, slots=True)
class FleetPage:
    cards: tuple[Card, ...]
    stopped: tuple[DeploymentStatus, ...]
    events: tuple[Event, ...]
    """The newest first."""


@dataclass(frozen=True, slots=True)
class Track:
    """A lease on the timeline."""

    lease: Lease
    spent_usd: Decimal
    bars: tuple[picture.Bar, ...]


@dataclass(frozen=True, slots=True)
class TimelinePage:
    span: str
    since: datetime
    until: datetime
    tracks: tuple[tuple[str, tuple[Track, ...]], ...]
    """By deployment; the newest lease first."""


@dataclass(frozen=True, slots=True)
class DeploymentPage:
    card: Card
    wish: Deployment
    facts: tuple[tuple[str, str], ...]
    load: tuple[picture.Column, ...]
    load_max: float
    load_since: datetime
    timeline: TimelinePage
    events: tuple[Event, ...]
    planning: Planning | None


@dataclass(frozen=True, slots=True)
class PlansPage:
    found: tuple[tuple[str, Planning, picture.Front], ...]


@dataclass(frozen=True, slots=True)
class EventsPage:
    events: tuple[Event, ...]
    names: tuple[str, ...]
    """Of the deployments that there are."""
    chosen: str


@dataclass(frozen=True, slots=True)
class HostsPage:
    records: tuple[tuple[HostHistory, str], ...]
    """Each with whether plans take it, and why not."""


@dataclass(frozen=True, slots=True)
class HostLease:
    """What a server turned out to be while it was rented, and what was heard from it last."""

    lease: Lease
    facts: NodeFacts | None
    differences: tuple[Discrepancy, ...]
    log: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class HostPage:
    record: HostHistory
    state: str
    leases: tuple[HostLease, ...]
    """The newest first."""


@dataclass(frozen=True, slots=True)
class CostsPage:
    span: str
    report: CostReport
    days: tuple[picture.Column, ...]
    day_max: float
    since: datetime
    tables: tuple[tuple[str, tuple[CostRow, ...]], ...]
    """What was spent by, with the dearest rows."""


@dataclass(frozen=True, slots=True)
class LogsPage:
    daemon: tuple[str, ...]
    work: tuple[tuple[ReplicaStatus, tuple[str, ...]], ...]
    """Each with the last lines of its log."""
    names: dict[str, str]
    """Deployment by lease."""


def read_overview(tx: Transaction, sources: Sources, now: datetime) -> Overview:
    status = _status(tx, now)
    running = [each for each in status if each.desired is Desired.RUNNING]
    spending = load_spending(tx, now)
    guard = spending.fleet.guard
    readings = tx.wallet_readings()
    daemon, tick = sources.find_daemon(), tx.last_tick()
    warnings = [warning for warning in map(wallet_warning, readings) if warning]
    if guard.is_stopped:
        warnings.append(f"Renting is stopped: {guard.stopped_because}. `clorefleet budget --resume` goes on.")
    if daemon is None and any(each.replicas for each in status):
        warnings.append("No daemon runs here: nothing watches what bills. `clorefleet daemon start` does.")
    if tick is not None and tick.trouble:
        warnings.append(f"The daemon's last tick had trouble: {tick.trouble}")
    warnings += [_unending(each) for each in _replicas(status) if each.cancel_attempts > 1]
    warnings += _strange(tx)
    return Overview(
        at=now,
        usd_per_hour=sum((each.usd_per_day for each in status), Decimal(0)) / HOURS_A_DAY,
        spent_today_usd=spending.fleet.spent_today_usd,
        spent_usd=sum((each.spent_usd for each in status), Decimal(0)),
        per_day_ceiling_usd=None if guard.per_day is None else guard.per_day.per_day.amount,
        serving=sum(each.phase is Phase.SERVING for each in _replicas(status)),
        wanted=sum(each.wanted_replicas for each in running),
        daemon=daemon,
        last_tick=tick,
        wallets=readings,
        warnings=tuple(warnings),
    )


def read_fleet(tx: Transaction, now: datetime) -> FleetPage:
    status = _status(tx, now)
    today = load_spending(tx, now).today_usd
    budgets = {each.deployment_id: _budget(each) for each in tx.deployments()}
    cards = (
        Card(
            each,
            budgets.get(DeploymentId(each.deployment_id)),
            today.get(DeploymentId(each.deployment_id), Decimal(0)),
        )
        for each in status
        if each.state != "stopped"
    )
    return FleetPage(
        cards=tuple(cards),
        stopped=tuple(each for each in status if each.state == "stopped"),
        events=_newest(tx, None, EVENTS_BESIDE),
    )


def read_deployment(tx: Transaction, name: str, now: datetime) -> DeploymentPage | None:
    """None where there is no such deployment."""
    wish = tx.deployment(DeploymentId(name))
    if wish is None:
        return None
    segments = tx.segments(wish.deployment_id)
    wanted = as_wished([wish], tx.wanted(), now)
    [status] = fleet_status([wish], tx.open_leases(), segments, now=now, wanted=wanted).deployments
    today = load_spending(tx, now).today_usd.get(wish.deployment_id, Decimal(0))
    since = now - LOAD_SHOWN
    load, load_max = _load_columns(tx.load(wish.deployment_id, since=since), since, now)
    lately = now - SPANS[DEFAULT_SPAN]
    leases = [each for each in _leases_since(tx, lately) if each.deployment_id == name]
    return DeploymentPage(
        card=Card(status, _budget(wish), today),
        wish=wish,
        facts=_facts(wish),
        load=load,
        load_max=load_max,
        load_since=since,
        timeline=_timeline(tx, leases, segments, DEFAULT_SPAN, now),
        events=_newest(tx, wish.deployment_id, EVENTS_SHOWN // 4),
        planning=tx.plannings().get(wish.deployment_id),
    )


def read_timeline(tx: Transaction, span: str, now: datetime) -> TimelinePage:
    span = span if span in SPANS else DEFAULT_SPAN
    since = now - SPANS[span]
    return _timeline(tx, _leases_since(tx, since), tx.segments(since=since), span, now)


def read_plans(tx: Transaction) -> PlansPage:
    found = tx.plannings()
    running = {each.deployment_id: each.desired is Desired.RUNNING for each in tx.deployments()}
    order = sorted(found, key=lambda name: (not running.get(name, False), name))
    return PlansPage(tuple((name, found[name], picture.front(found[name].options)) for name in order))


def read_events(tx: Transaction, chosen: str) -> EventsPage:
    names = tuple(str(each.deployment_id) for each in tx.deployments())
    chosen = chosen if chosen in names else ""
    return EventsPage(_newest(tx, DeploymentId(chosen) if chosen else None, EVENTS_SHOWN), names, chosen)


def read_hosts(tx: Transaction, now: datetime) -> HostsPage:
    return HostsPage(tuple((each, _state(each, now)) for each in _records(tx, now)))


def read_host(tx: Transaction, sources: Sources, server_id: int, now: datetime) -> HostPage | None:
    record = next((each for each in _records(tx, now) if each.server_id == ServerId(server_id)), None)
    if record is None:
        return None
    return HostPage(
        record,
        _state(record, now),
        tuple(
            HostLease(
                lease,
                tx.node_facts(lease.lease_id),
                tx.discrepancies(lease.lease_id),
                tuple(sources.log_tail(lease.lease_id)),
            )
            for lease in record.leases[: -HOST_LEASES_SHOWN - 1 : -1]
        ),
    )


def read_costs(tx: Transaction, span: str, now: datetime) -> CostsPage:
    """Days are UTC's, as those of the ceilings."""
    span = span if span in COST_DAYS else DEFAULT_COST_SPAN
    since = midnight_utc(now) - timedelta(days=COST_DAYS[span] - 1)
    question = CostQuestion((Dimension.DAY,), UTC, "UTC", since=since)
    books = load_books(tx, since=books_since(question, now=now))
    report = cost_report(books, question, now=now)
    by_day = {row.key[0]: row.usd for row in report.rows}
    days = [f"{since + timedelta(days=i):%Y-%m-%d}" for i in range(COST_DAYS[span])]
    drawn, day_max = picture.columns(
        [(float(by_day.get(day, 0)), f"{day}: {Money.usd(by_day.get(day, Decimal(0)))}") for day in days]
    )
    found = charges(books, now=now, zone=UTC, since=since)
    return CostsPage(
        span,
        report,
        drawn,
        day_max,
        since,
        tuple(
            (title, rows_by((dimension,), found, books, zone=UTC, since=since)[:COST_ROWS])
            for title, dimension in COST_TABLES
        ),
    )


def read_logs(tx: Transaction, sources: Sources, now: datetime) -> LogsPage:
    status = _status(tx, now)
    return LogsPage(
        daemon=tuple(sources.daemon_log(LOG_LINES_SHOWN)),
        work=tuple((each, tuple(sources.log_tail(each.lease_id))) for each in _replicas(status)),
        names={each.lease_id: one.deployment_id for one in status for each in one.replicas},
    )


# -- parts


def _status(tx: Transaction, now: datetime) -> tuple[DeploymentStatus, ...]:
    deployments = tx.deployments()
    found = fleet_status(
        deployments,
        tx.open_leases(),
        tx.unsettled_segments(),
        now=now,
        wanted=as_wished(deployments, tx.wanted(), now),
        settled_usd=tx.settled_usd(),
    )
    return found.deployments


def _replicas(status: Iterable[DeploymentStatus]) -> list[ReplicaStatus]:
    return [replica for each in status for replica in each.replicas]


def _budget(deployment: Deployment) -> Decimal | None:
    budget = deployment.requirement.budget
    return None if budget is None else budget.per_day.amount


def _strange(tx: Transaction) -> list[str]:
    """Of each order that bills and that nothing here explains."""
    orders = tx.strange_orders()
    leases = tx.leases(since=min(each.first_seen_at for each in orders)) if orders else ()
    return [strange.told(each, leases) for each in orders]


def _unending(replica: ReplicaStatus) -> str:
    return (
        f"Order {replica.order_id} still bills after {replica.cancel_attempts} cancels: {replica.reason}. "
        "It is asked again while the daemon runs; else end it on clore.ai."
    )


def _newest(tx: Transaction, deployment_id: DeploymentId | None, limit: int) -> tuple[Event, ...]:
    return tuple(event for _, event in reversed(tx.events(deployment_id, limit=limit)))


def _records(tx: Transaction, now: datetime) -> tuple[HostHistory, ...]:
    since = now - DEFAULT_LIMITS.host_fault_memory
    return host_histories(tx.leases(), tx.host_faults(), tx.host_verdicts(), since=since)


def _state(record: HostHistory, now: datetime) -> str:
    return record.state(now, DEFAULT_LIMITS.host_fault_memory)


def _leases_since(tx: Transaction, since: datetime) -> tuple[Lease, ...]:
    """Those that were there at some time after `since`."""
    lately = tx.leases(since=since)
    known = {each.lease_id for each in lately}
    return (*(each for each in tx.open_leases() if each.lease_id not in known), *lately)


def _timeline(
    tx: Transaction, leases: Sequence[Lease], segments: Sequence[LedgerSegment], span: str, now: datetime
) -> TimelinePage:
    since = now - SPANS[span]
    entries: dict[LeaseId, list[PhaseEntry]] = {}
    for entry in tx.phases(since=since):
        entries.setdefault(entry.lease_id, []).append(entry)
    tracks = []
    for name in sorted({str(each.deployment_id) for each in leases}):
        mine = sorted(
            (each for each in leases if each.deployment_id == name),
            key=lambda each: each.created_at,
            reverse=True,
        )
        drawn = (
            _track(each, segments, entries.get(each.lease_id, ()), since=since, until=now)
            for each in mine[:TRACKS_MAX]
        )
        tracks.append((name, tuple(each for each in drawn if each.bars)))
    return TimelinePage(span, since, now, tuple(each for each in tracks if each[1]))


def _track(
    lease: Lease,
    segments: Iterable[LedgerSegment],
    entries: Sequence[PhaseEntry],
    *,
    since: datetime,
    until: datetime,
) -> Track:
    spent = (each.cost_usd(until) for each in segments if each.lease_id == lease.lease_id)
    bars = (
        picture.bar(begin, end, since=since, until=until, kind=kind, label=label)
        for begin, end, kind, label in _stretches(lease, entries, until)
    )
    return Track(lease, sum(spent, Decimal(0)), tuple(each for each in bars if each is not None))


def _stretches(
    lease: Lease, entries: Sequence[PhaseEntry], now: datetime
) -> Iterable[tuple[datetime, datetime, str, str]]:
    """The lease's life in its phases, as they were recorded; what was not is one stretch."""
    end = lease.ended_at or now
    if lease.state is LeaseState.REFUSED:
        yield lease.created_at, end, "refused", "refused"
        return
    if not entries and lease.is_open:
        entries = (PhaseEntry(lease.lease_id, lease.phase, lease.phase_since),)
    if not entries or entries[0].at > lease.created_at:
        first = entries[0].at if entries else end
        yield lease.created_at, min(first, end), "unrecorded", "not recorded"
    ends = [*(each.at for each in entries[1:]), end]
    for entry, until in zip(entries, ends, strict=False):
        if entry.phase is not Phase.ENDED:
            yield entry.at, min(until, end), entry.phase.name.lower(), entry.phase.value


def _load_columns(
    samples: Iterable[LoadSample], since: datetime, now: datetime
) -> tuple[tuple[picture.Column, ...], float]:
    """Requests by stretches of five minutes."""
    step = timedelta(minutes=5)
    count = int((now - since) / step)
    amounts = [0] * count
    for each in samples:
        i = int((each.started_at - since) / step)
        if 0 <= i < count:
            amounts[i] += each.requests + each.turned_away
    return picture.columns(
        [(amount, f"{since + i * step:%H:%M}: {amount} requests") for i, amount in enumerate(amounts)]
    )


def _facts(wish: Deployment) -> tuple[tuple[str, str], ...]:
    """What the user wants of it, as far as it was said."""
    requirement = wish.requirement
    bounds = wish.bounds
    replicas = str(bounds.replicas_min)
    if bounds.replicas_max > bounds.replicas_min:
        replicas += f" to {bounds.replicas_max}"
    found = [
        ("Model", requirement.model),
        ("Replicas", replicas),
        ("Budget", str(requirement.budget) if requirement.budget else "none"),
        ("Preference", requirement.objective.value),
        ("Kept by", "a fleet file" if wish.origin == "file" else "clorefleet deploy"),
        ("Since", f"{wish.created_at:%Y-%m-%d %H:%M} UTC"),
    ]
    if requirement.precisions:
        found.append(("Precision", ", ".join(requirement.precisions)))
    if requirement.min_context_tokens:
        found.append(("Context", f"at least {requirement.min_context_tokens:,} tokens"))
    if requirement.min_decode_tokens_per_s:
        found.append(("Speed", f"at least {requirement.min_decode_tokens_per_s:g} tok/s"))
    if requirement.gpu:
        found.append(("GPU", requirement.gpu))
    if requirement.countries:
        found.append(("Countries", ", ".join(requirement.countries)))
    if requirement.spot:
        found.append(("Spot", "only" if requirement.spot_only else "also"))
    if wish.schedule is not None:
        names = [each.name for each in wish.schedule.windows]
        found.append(("Schedule", f"{', '.join(names) or 'no windows'} ({wish.schedule.zone})"))
    if wish.scale is not None:
        found.append(("Scaling", f"to {wish.scale.target:.0%} of capacity"))
    if wish.idle is not None:
        minutes = wish.idle.after / timedelta(minutes=1)
        found.append(("When idle", f"down to {wish.idle.floor} after {minutes:g} min"))
    return tuple(found)

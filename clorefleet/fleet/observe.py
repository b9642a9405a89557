"""Observe: read the store, the market and the nodes once, into a snapshot.

Constant work per tick: one reading of the order list, one of the offers when a slot is empty, a few spot
markets, one look per node that is in a phase with something to see, side by side in bounded threads. A
reading that fails is missing from the snapshot; what then may not be decided is `reconcile`'s business.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from zlib import crc32

from clorefleet.clock import Clock
from clorefleet.domain.deployment import Deployment, Desired
from clorefleet.domain.errors import ClorefleetError, MarketError, OutOfFunds, WrongApiKey
from clorefleet.domain.failure import NOBODY_FAILED
from clorefleet.domain.guard import WalletReading
from clorefleet.domain.identity import DeploymentId, LeaseId, ServerId
from clorefleet.domain.lease import Lease, LeaseState, Phase
from clorefleet.domain.load import LoadSample, LoadTaken
from clorefleet.domain.money import Currency, ExchangeRate
from clorefleet.domain.node import NodeView
from clorefleet.domain.offer import MarketView
from clorefleet.domain.order import Order, OrderList, Wallet
from clorefleet.domain.plan import PlanReport
from clorefleet.domain.spot import SpotMarket
from clorefleet.domain.text import clean_line
from clorefleet.domain.wanted import Wanted
from clorefleet.fleet import failover, follow, moves, spot
from clorefleet.fleet.autoscale import WINDOW_MAX
from clorefleet.fleet.edges import Market, Nodes, Planner
from clorefleet.fleet.follow import Record
from clorefleet.fleet.forecast import HISTORY_KEPT, bucket_of, buckets
from clorefleet.fleet.limits import FleetLimits
from clorefleet.fleet.schedule import StartUp
from clorefleet.fleet.slots import empty_slots, slots_held
from clorefleet.fleet.snapshot import Snapshot
from clorefleet.fleet.spending import load_ledger_totals, load_spending
from clorefleet.fleet.start_up import MEASURED_MAX, lead_of, start_up_of
from clorefleet.fleet.wanted import wanted
from clorefleet.store.database import Store
from clorefleet.store.queries import Transaction

log = logging.getLogger("clorefleet.fleet")

LOOKERS_MAX = 16
"""Nodes looked at side by side."""
_LOOKED_AT = frozenset(
    {
        Phase.WAITING,
        Phase.PROBING,
        Phase.INSTALLING,
        Phase.SYNCING,
        Phase.LAUNCHING,
        Phase.VERIFYING,
        Phase.SERVING,
    }
)
SPOT_READINGS_MAX = 8
"""Spot markets read in one tick: each is a request, and the market takes one a second."""
SPOT_CANDIDATES = 2
"""Best plans of a deployment whose spot market is read before one is bid for."""
_NO_START_UP = StartUp()
InFlight = Callable[[LeaseId], int]
TakeLoad = Callable[[], LoadTaken]
NoteView = Callable[[MarketView], None]
"""Told of each reading of the offers; it must return at once."""


def nobody_listens(view: MarketView) -> None:
    """Where no prices are kept."""


class Observer:
    def __init__(
        self,
        *,
        store: Store,
        market: Market,
        nodes: Nodes,
        planner: Planner,
        clock: Clock,
        limits: FleetLimits,
        in_flight: InFlight,
        lookers_max: int = LOOKERS_MAX,
        take_load: TakeLoad = LoadTaken,
        note_view: NoteView = nobody_listens,
    ) -> None:
        self._store = store
        self._market = market
        self._nodes = nodes
        self._planner = planner
        self._clock = clock
        self._limits = limits
        self._in_flight = in_flight
        self._lookers_max = lookers_max
        self._take_load = take_load
        self._note_view = note_view

    def observe(self, *, by_orders_alone: bool = False) -> tuple[Snapshot, str]:
        """The snapshot, and what could not be read ("" when all could).

        `by_orders_alone` asks neither nodes nor offers: what they say made an earlier look fail.
        """
        now = self._clock.now()
        with self._store.read() as tx:
            deployments = tx.deployments()
            leases = tx.open_leases()
            remembered = tx.leases(since=now - self._limits.closed_memory)
            intents = tx.doubtful_intents()
            spending = load_spending(tx, now, open_leases=leases)
            host_faults = tx.host_faults(since=now - self._limits.breaker_window)
            wallets_before = tx.wallet_readings()
            last_tick = tx.last_tick()
            last_tick_at = None if last_tick is None else last_tick.finished_at
            faulty = tx.faulty_servers(since=now - self._limits.host_fault_memory)
            unsettled = tx.open_bills()
            foreign = tx.foreign_orders(seen_since=now - self._limits.closed_memory)
            wanted_before = tx.wanted()
            start_ups = {
                d.deployment_id: tx.start_ups(d.deployment_id, limit=MEASURED_MAX)
                for d in deployments
                if d.desired is Desired.RUNNING
            }
            records = {d.deployment_id: _record(tx, d, now) for d in deployments if follow.follows(d)}
        closed = tuple(lease for lease in remembered if not lease.is_open)
        orders, trouble = self._read_orders(leases, with_completed=bool(unsettled))
        views = self._look_at_nodes(leases, None if by_orders_alone else orders)
        load = (
            {}
            if by_orders_alone
            else follow.this_minute(deployments, leases, views, self._take_load(), now=now)
        )
        wanted_now = {
            d.deployment_id: _wanted(
                replace(d, idle=None) if by_orders_alone else d,
                leases,
                start_ups.get(d.deployment_id, ()),
                views,
                records.get(d.deployment_id, Record()),
                load.get(d.deployment_id),
                wanted_before.get(d.deployment_id),
                now,
            )
            for d in deployments
        }
        if by_orders_alone:
            # Use and load are not known then, which is no reason to start or stop anything.
            wanted_now |= {
                name: before
                for name, before in wanted_before.items()
                if name in wanted_now and wanted_now[name].replicas > before.replicas
            }
        wanting = lacking = _wanting(deployments, leases, wanted_now)
        if _begins_another(self._limits.consolidate_every, last_tick_at, now):
            wanting = tuple(d for d in deployments if d in wanting or _may_move(d))
        needs_rates = self._needs_rates(leases, spending.rates, now)
        reads_offers = orders is not None and not by_orders_alone and bool(wanting or needs_rates)
        view, offers_trouble = self._read_offers() if reads_offers else (None, "")
        rates = () if view is None else tuple(view.rates.rates)
        wallets = (
            view.wallets
            if view is not None and view.wallets
            else self._read_wallets(leases, wallets_before, now)
        )
        ledger_totals: Mapping[Currency, Decimal] = {}
        if wallets is not None:
            with self._store.read() as tx:
                ledger_totals = load_ledger_totals(tx, now)
        plans, unplanned = self._plan(wanting, view, remembered, now)
        refused = {d.deployment_id: _refused_lately(d, closed, now, self._limits) for d in deployments}
        avoided = faulty | {lease.server_id for lease in leases}
        spot_servers = (
            *_spot_servers(leases, orders, views, last_tick_at, now, self._limits),
            *_bid_for(lacking, plans, avoided=avoided),
            *_moved_to(wanting, lacking, plans, refused, avoided=avoided),
        )
        snapshot = Snapshot(
            now=now,
            deployments=deployments,
            leases=leases,
            attempts={d.deployment_id: _attempts(d, remembered, now) for d in deployments},
            intents=intents,
            orders=orders,
            nodes=views,
            plans=plans,
            spot_markets=read_spot_markets(self._market, spot_servers),
            unplanned=unplanned,
            offers_trouble=offers_trouble,
            segments=spending.segments,
            closed_leases=closed,
            faulty_servers=faulty,
            refused_servers=refused,
            pauses=_pauses(deployments, closed, now, self._limits),
            unsettled=unsettled,
            foreign=frozenset((order_id, server_id) for order_id, server_id, _ in foreign),
            wanted=wanted_now,
            start_ups={d.deployment_id: lead_of(d, start_ups.get(d.deployment_id, ())) for d in deployments},
            wanted_before=wanted_before,
            load=load,
            spent_today_usd=spending.today_usd,
            spending=spending.fleet,
            host_faults=host_faults,
            rates=rates,
            wallets=wallets,
            wallets_before=wallets_before,
            ledger_totals=ledger_totals,
            is_prune_due=_begins_another(self._limits.prune_every, last_tick_at, now),
        )
        return snapshot, trouble or offers_trouble

    def _read_orders(
        self, leases: tuple[Lease, ...], *, with_completed: bool
    ) -> tuple[OrderList | None, str]:
        # Also while a rent is in doubt: its order may have been made and have ended unseen.
        with_completed = with_completed or any(
            lease.state in (LeaseState.ENDING, LeaseState.INTENT) for lease in leases
        )
        try:
            return self._market.fetch_orders(include_completed=with_completed), ""
        except MarketError as error:
            why = clean_line(error.what)
            log.warning("orders_not_read why=%s", why)
            return None, f"The market's order list cannot be read: {why}"

    def _read_offers(self) -> tuple[MarketView | None, str]:
        try:
            view = self._market.fetch_view()
        except MarketError as error:
            why = clean_line(error.what)
            log.warning("offers_not_read why=%s", why)
            return None, f"The market's offers cannot be read: {why}"
        self._note_view(view)
        try:
            # What the wallets cannot pay is planned last: the market would refuse it.
            return replace(view, wallets=self._market.fetch_wallets()), ""
        except MarketError as error:
            log.warning("wallets_not_read why=%s", clean_line(error.what))
            return view, ""

    def _needs_rates(self, leases: tuple[Lease, ...], known: tuple[ExchangeRate, ...], now: datetime) -> bool:
        """Something bills in a coin whose rate was not read for a while."""
        # A clock that was set back has made no rate fresh.
        fresh = {rate.currency for rate in known if abs(now - rate.as_of) < self._limits.coin_rates_every}
        billed = {lease.plan.price.billed.currency for lease in leases}
        return bool(billed - fresh - {Currency.USD})

    def _read_wallets(
        self, leases: tuple[Lease, ...], before: tuple[WalletReading, ...], now: datetime
    ) -> tuple[Wallet, ...] | None:
        """Seldom, and only while something may bill: a forecast needs no more."""
        is_fresh = any(abs(now - each.read_at) < self._limits.wallet_every for each in before)
        if is_fresh or not leases:
            return None
        try:
            return self._market.fetch_wallets()
        except MarketError as error:
            log.warning("wallets_not_read why=%s", clean_line(error.what))
            return None

    def _plan(
        self,
        wanting: tuple[Deployment, ...],
        view: MarketView | None,
        leases: tuple[Lease, ...],
        now: datetime,
    ) -> tuple[Mapping[DeploymentId, PlanReport], Mapping[DeploymentId, str]]:
        """Plans that leave out what would fail as an earlier server of the deployment did, and believe what
        was measured on a server before what its offer claims; and why there is none for some deployments."""
        if view is None or not wanting:
            return {}, {}
        with self._store.read() as tx:
            cuda_found = tx.cuda_found(since=now - self._limits.host_fault_memory)
        reports: dict[DeploymentId, PlanReport] = {}
        unplanned: dict[DeploymentId, str] = {}
        for d in wanting:
            excluded = failover.exclusions(d, leases, now)
            requirement = replace(d.requirement, exclusions=excluded, cuda_found=cuda_found)
            try:
                reports[d.deployment_id] = self._planner(requirement, view)
            except ClorefleetError as error:
                # Its recipe is gone, or was spoilt: no trouble of any other deployment.
                unplanned[d.deployment_id] = clean_line(f"{error.what} {error.remedy}".strip())
        return reports, unplanned

    def _look_at_nodes(
        self, leases: tuple[Lease, ...], orders: OrderList | None
    ) -> Mapping[LeaseId, NodeView]:
        views = {
            lease.lease_id: NodeView(in_flight=self._in_flight(lease.lease_id))
            for lease in leases
            if lease.phase is Phase.DRAINING
        }
        looks = [
            (lease, order)
            for lease in map(_as_looked_at, leases)
            if lease.state is LeaseState.ORDERED and lease.phase in _LOOKED_AT
            if orders is not None and lease.order_id is not None
            for order in [orders.on_server(lease.order_id, lease.server_id)]
            if order is not None and not order.is_expired and order.ssh is not None
        ]
        lookers = min(self._lookers_max, len(looks))
        if lookers <= 1:
            return views | {lease.lease_id: self._look(lease, order) for lease, order in looks}
        with ThreadPoolExecutor(lookers, thread_name_prefix="look") as pool:
            seen = pool.map(lambda look: self._look(*look), looks)
            return views | {lease.lease_id: view for (lease, _), view in zip(looks, seen, strict=True)}

    def _look(self, lease: Lease, order: Order) -> NodeView:
        view = self._nodes.look(lease, order)
        if lease.phase is not Phase.SERVING:
            return view
        return replace(view, in_flight=self._in_flight(lease.lease_id))


def read_spot_markets(market: Market, servers: Iterable[ServerId]) -> Mapping[ServerId, SpotMarket]:
    """One request each, at most `SPOT_READINGS_MAX`; what is not read now is due again soon."""
    found: dict[ServerId, SpotMarket] = {}
    for server_id in list(dict.fromkeys(servers))[:SPOT_READINGS_MAX]:
        try:
            found[server_id] = market.fetch_spot_market(server_id)
        except MarketError as error:
            log.warning("spot_market_not_read server=%s why=%s", server_id, clean_line(error.what))
    return found


def _spot_servers(
    leases: tuple[Lease, ...],
    orders: OrderList | None,
    views: Mapping[LeaseId, NodeView],
    last_tick: datetime | None,
    now: datetime,
    limits: FleetLimits,
) -> Iterator[ServerId]:
    """Servers of spot orders whose market is due for a look; those that were outbid or are silent first."""
    due = []
    for lease in leases:
        if orders is None or lease.order_id is None or lease.state is not LeaseState.ORDERED:
            continue
        if not lease.plan.price.is_spot:
            continue
        # Each lease at a time of its own: the market answers one request a second.
        offset = timedelta(seconds=crc32(lease.lease_id.encode()) % 86_400)
        shifted = None if last_tick is None else last_tick + offset
        is_due = _begins_another(limits.spot_every, shifted, now + offset)
        is_due_soon = _begins_another(limits.spot_outbid_every, shifted, now + offset)
        order = orders.on_server(lease.order_id, lease.server_id)
        view = views.get(lease.lease_id)
        # What rivals bid decides whether it is replaced: it has to be known before that.
        lost_at = lease.outbid_since
        is_due_soon = is_due_soon or (lost_at is not None and now - lost_at < limits.rebid_grace)
        if spot.needs_look(lease, order, view, is_due=is_due, is_due_while_outbid=is_due_soon):
            due.append((is_due, lease.server_id))
    yield from (server_id for _, server_id in sorted(due))


def _bid_for(
    deployments: tuple[Deployment, ...],
    plans: Mapping[DeploymentId, PlanReport],
    *,
    avoided: AbstractSet[ServerId],
) -> Iterator[ServerId]:
    """The servers that would be bid for next: what others bid there decides the first bid."""
    for deployment in deployments:
        report = plans.get(deployment.deployment_id)
        candidates = () if report is None else report.plans
        best = [plan for plan in candidates if plan.offer.server_id not in avoided][:SPOT_CANDIDATES]
        yield from (plan.offer.server_id for plan in best if plan.price.is_spot)


def _moved_to(
    deployments: tuple[Deployment, ...],
    lacking: tuple[Deployment, ...],
    plans: Mapping[DeploymentId, PlanReport],
    refused: Mapping[DeploymentId, frozenset[ServerId]],
    *,
    avoided: AbstractSet[ServerId],
) -> Iterator[ServerId]:
    """The servers that replicas might move to: what others bid there decides whether that pays."""
    for deployment in deployments:
        report = plans.get(deployment.deployment_id)
        if report is not None and deployment not in lacking:
            yield from moves.bid_servers(report.plans, avoided | refused[deployment.deployment_id])


def _as_looked_at(lease: Lease) -> Lease:
    """A reopened lease that is not proven to be ours is looked at like one that waits."""
    if lease.state is LeaseState.ENDING and not lease.is_proven and lease.cancel_asked_at is None:
        return replace(lease, state=LeaseState.ORDERED, phase=Phase.WAITING)
    return lease


def _begins_another(period: timedelta, last: datetime | None, now: datetime) -> bool:
    """True for the first tick in each stretch of `period` length."""
    return last is not None and int(last.timestamp() / period.total_seconds()) != int(
        now.timestamp() / period.total_seconds()
    )


def _may_move(deployment: Deployment) -> bool:
    return deployment.desired is Desired.RUNNING and deployment.consolidate is not None


def _record(tx: Transaction, deployment: Deployment, now: datetime) -> Record:
    looks_ahead = deployment.scale is not None and deployment.scale.forecast
    if not looks_ahead:
        return Record(tx.load(deployment.deployment_id, since=now - WINDOW_MAX))
    minutes = tx.load(deployment.deployment_id, since=now - HISTORY_KEPT)
    recent = tuple(each for each in minutes if each.started_at >= now - WINDOW_MAX)
    this_bucket = bucket_of(now)
    return Record(recent, {key: value for key, value in buckets(minutes).items() if key < this_bucket})


def _wanted(
    deployment: Deployment,
    leases: tuple[Lease, ...],
    start_ups: tuple[timedelta, ...],
    views: Mapping[LeaseId, NodeView],
    record: Record,
    current: LoadSample | None,
    before: Wanted | None,
    now: datetime,
) -> Wanted:
    mine = [lease for lease in leases if lease.deployment_id == deployment.deployment_id]
    leads = deployment.schedule is not None or deployment.scale is not None
    start_up = start_up_of(deployment, start_ups, mine) if leads else _NO_START_UP
    return wanted(
        deployment,
        now,
        held=len(slots_held(mine)),
        load=follow.load_decision(deployment, mine, record, current, start_up=start_up.lead, now=now),
        idle=follow.idle_decision(
            deployment, mine, views, record, current, before, start_up=start_up.lead, now=now
        ),
        start_up=start_up,
    )


def _wanting(
    deployments: tuple[Deployment, ...], leases: tuple[Lease, ...], wanted: Mapping[DeploymentId, Wanted]
) -> tuple[Deployment, ...]:
    """Deployments that lack a server, or a second one: only for these are offers read and plans made."""

    def lacks(deployment: Deployment) -> bool:
        mine = [lease for lease in leases if lease.deployment_id == deployment.deployment_id]
        is_short = empty_slots(mine, wanted[deployment.deployment_id].replicas)
        return bool(is_short or failover.hedge_slots(deployment, mine))

    return tuple(d for d in deployments if d.desired is Desired.RUNNING and lacks(d))


def _attempts(deployment: Deployment, leases: tuple[Lease, ...], now: datetime) -> int:
    """Servers tried without success since the count began: given back or lost before they served. One that
    serves, or is on its way, is none of them, however many a deployment has."""
    return sum(
        1
        for lease in leases
        if failover.is_counted(lease, deployment, now)
        and lease.state is not LeaseState.REFUSED
        and lease.cause not in NOBODY_FAILED
        and lease.measured_tokens_per_s is None
        and (not lease.is_open or lease.phase is Phase.DRAINING)
    )


def _refused_lately(
    deployment: Deployment, closed: tuple[Lease, ...], now: datetime, limits: FleetLimits
) -> frozenset[ServerId]:
    return frozenset(
        lease.server_id
        for lease in closed
        if lease.deployment_id == deployment.deployment_id
        and lease.state is LeaseState.REFUSED
        and lease.ended_at is not None
        and now - lease.ended_at < limits.refusal_memory
    )


_PAUSING = {
    OutOfFunds.__name__: "The wallet is too low to rent: {why} Add funds; it is tried again by itself.",
    WrongApiKey.__name__: "The market refuses the API key: {why} Set another; it is tried again by itself.",
}


def _pauses(
    deployments: tuple[Deployment, ...], closed: tuple[Lease, ...], now: datetime, limits: FleetLimits
) -> Mapping[DeploymentId, str]:
    """Refusals that another server would not cure, and too many refusals of any kind."""
    pauses: dict[DeploymentId, str] = {}
    for deployment in deployments:
        recent = [
            lease
            for lease in closed
            if failover.is_counted(lease, deployment, now)
            and lease.state is LeaseState.REFUSED
            and lease.ended_at is not None
            and now - lease.ended_at < limits.refusal_memory
        ]
        pausing = next((lease for lease in reversed(recent) if lease.refusal in _PAUSING), None)
        if pausing is not None:
            pauses[deployment.deployment_id] = _PAUSING[pausing.refusal].format(why=pausing.reason)
        elif len(recent) >= limits.refusals_max:
            pauses[deployment.deployment_id] = (
                f"{len(recent)} servers in a row were gone before they could be rented; "
                "it is tried again in some minutes."
            )
    return pauses

"""One tick: observe, decide, act, and put the routes in order. Start-up and recovery are the same tick."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Protocol

from clorefleet.clock import Clock
from clorefleet.domain.deployment import Deployment, Desired
from clorefleet.domain.errors import ClorefleetError, LostLeadership, StoreError
from clorefleet.domain.lease import Lease, LeaseState, Phase
from clorefleet.domain.load import LoadTaken
from clorefleet.domain.planning import planning_of
from clorefleet.domain.text import clean_line
from clorefleet.domain.usage import UsageHour
from clorefleet.domain.wanted import NotReady
from clorefleet.fleet.action import Action, End, Explain, NoteProgress, NoteUse, NoteWanted
from clorefleet.fleet.audit import Audit, audit
from clorefleet.fleet.edges import Market, Nodes, Planner, SetRoutes
from clorefleet.fleet.execute import Executor, Reached, RouteTable, StartupCommand, nothing_happens
from clorefleet.fleet.forecast import HISTORY_KEPT
from clorefleet.fleet.journal import Journal
from clorefleet.fleet.limits import DEFAULT_LIMITS, FleetLimits
from clorefleet.fleet.observe import LOOKERS_MAX, InFlight, NoteView, Observer, TakeLoad, nobody_listens
from clorefleet.fleet.reconcile import reconcile
from clorefleet.fleet.slots import empty_slots, is_held
from clorefleet.fleet.snapshot import Snapshot
from clorefleet.store import leadership
from clorefleet.store.database import FencingToken, Store

log = logging.getLogger("clorefleet.fleet")


SetWanted = Callable[[Mapping[str, NotReady]], None]


def nothing_is_told(reasons: Mapping[str, NotReady]) -> None:
    """Where there is no gateway to tell which models are to come."""


class Usage(Protocol):
    """What replicas were used for since the last time anybody asked."""

    def take(self) -> tuple[UsageHour, ...]: ...

    def put_back(self, hours: tuple[UsageHour, ...]) -> None: ...


_QUIET = (NoteProgress, NoteUse, NoteWanted, Explain)
"""Actions that are not worth a log line of their own each time."""


@dataclass(frozen=True, slots=True)
class TickResult:
    actions: tuple[Action, ...]
    trouble: str
    """What could not be read; "" when all could."""
    is_busy: bool
    """Something is under way that the next tick should look at soon."""
    look_at: datetime | None = None
    """When the clock alone changes what is wanted: the next tick should not come later."""
    fault: str = ""
    """The kind of an exception of ours that nobody expected; the tick did without what it came of."""


class AuditTrail:
    """What the last tick's audit found: the next one counts on from there. Dies with the process."""

    def __init__(self) -> None:
        self.last = Audit()


@dataclass(frozen=True, slots=True)
class Fleet:
    """The edges, wired; see `clorefleet.daemon.wiring`."""

    store: Store
    market: Market
    nodes: Nodes
    planner: Planner
    clock: Clock
    set_routes: SetRoutes
    in_flight: InFlight
    startup_command: StartupCommand
    usage: Usage | None = None
    take_load: TakeLoad = LoadTaken
    set_wanted: SetWanted = nothing_is_told
    note_view: NoteView = nobody_listens
    limits: FleetLimits = DEFAULT_LIMITS
    new_id: Callable[[], str] = field(default=lambda: secrets.token_hex(6))
    routed: RouteTable = field(default_factory=RouteTable)
    reached: Reached = nothing_happens
    note_unending: Callable[[tuple[Lease, ...]], None] = field(default=lambda leases: None)
    """Told in each tick which leases the market keeps refusing to end."""
    lookers_max: int = LOOKERS_MAX
    """Nodes looked at side by side; 1 looks without threads."""
    trail: AuditTrail = field(default_factory=AuditTrail)
    is_ending: Callable[[], bool] = lambda: False
    """True once the process was asked to end: nothing that costs is begun any more."""

    def observer(self) -> Observer:
        return Observer(
            store=self.store,
            market=self.market,
            nodes=self.nodes,
            planner=self.planner,
            clock=self.clock,
            limits=self.limits,
            in_flight=self.in_flight,
            lookers_max=self.lookers_max,
            take_load=self.take_load,
            note_view=self.note_view,
        )

    def executor(self, snapshot: Snapshot, journal: Journal) -> Executor:
        return Executor(
            snapshot,
            journal=journal,
            market=self.market,
            nodes=self.nodes,
            clock=self.clock,
            new_id=self.new_id,
            startup_command=self.startup_command,
            limits=self.limits,
            reached=self.reached,
            is_ending=self.is_ending,
        )

    def journal(self, token: FencingToken) -> Journal:
        return Journal(self.store, token)

    def decide(self, snapshot: Snapshot) -> tuple[Action, ...]:
        return reconcile(snapshot, self.limits)

    def tick(self, token: FencingToken) -> TickResult:
        """
        Raises:
            LostLeadership: another process acts now; this one must stop.
        """
        can_write = self._stay_leader(token)
        snapshot, actions, trouble, fault = self._decided(can_write=can_write)
        for action in actions:
            if not isinstance(action, _QUIET):
                log.info("action %s", _described(action))
        journal = self.journal(token)
        executor = self.executor(snapshot, journal)
        executor.perform(actions)
        with self.store.read() as tx:
            leases = tx.open_leases()
        self.note_unending(_unending(leases, snapshot))
        executor.update_routes(leases, self.routed, self.set_routes)
        self.set_wanted(why_not_ready(snapshot, leases))
        if snapshot.is_prune_due:
            journal.prune(before=snapshot.now - self.limits.journal_memory)
            self._forget_useless_keys(snapshot.now)
        self._note_tick(snapshot, "; ".join(filter(None, (trouble, executor.trouble))), token)
        has_freed = any(isinstance(action, End) for action in actions)
        return TickResult(
            actions,
            trouble,
            is_busy=has_freed or _is_busy(snapshot, leases),
            look_at=_next_change(snapshot),
            fault=fault or executor.fault,
        )

    def _stay_leader(self, token: FencingToken) -> bool:
        """False where the store cannot be written: what is to end is ended all the same, and who leads is
        read before that."""
        try:
            leadership.renew(self.store, token, now=self.clock.now())
        except LostLeadership:
            raise
        except StoreError as error:
            log.error("leadership_not_renewed why=%s", error.what)
            return False
        return True

    def _decided(self, *, can_write: bool) -> tuple[Snapshot, tuple[Action, ...], str, str]:
        """What is seen, what is to be done, what could not be read, and the fault of ours that stood in the
        way.

        What a stranger sent and we cannot digest is sent again in the next tick. No server would be ended any
        more, so that the decision is then made by store and order list alone: that rents nothing.
        """
        fault = ""
        try:
            snapshot, trouble = self.observer().observe()
            # Records that nobody could write are not held against anybody.
            snapshot = self._audited(snapshot) if can_write else snapshot
            return snapshot, self.decide(snapshot), trouble, fault
        except ClorefleetError:
            raise
        except Exception as error:
            log.exception("tick_failed: it is decided by the order list alone")
            fault = type(error).__name__
        snapshot, trouble = self.observer().observe(by_orders_alone=True)
        told = (
            f"a fault in clorefleet ({fault}; the log has it): servers are given back as always, nothing is "
            "rented and no server is asked"
        )
        return snapshot, self.decide(snapshot), "; ".join(filter(None, (told, trouble))), fault

    def _forget_useless_keys(self, now: datetime) -> None:
        """Of leases that ended so long ago that their order will not come back. A key that no lease knows is
        kept: the store may be an older one, and `adopt` needs it."""
        kept = self.nodes.kept_keys()
        if not kept:
            return
        with self.store.read() as tx:
            leases = [lease for lease in map(tx.lease, sorted(kept)) if lease is not None]
        for lease in leases:
            if not lease.is_open and not may_need_key(lease, now, self.limits):
                self.nodes.forget(lease.lease_id)

    def _audited(self, snapshot: Snapshot) -> Snapshot:
        """The snapshot with the invariants that do not hold: `reconcile` rents nothing beside them."""
        known = set(self.trail.last.violations)
        self.trail.last = audit(snapshot, self.trail.last, self.limits)
        for violation in self.trail.last.violations:
            if violation not in known:
                log.error("invariant_violated %s", violation)
        if not self.trail.last.violations:
            return snapshot
        return replace(snapshot, violations=tuple(map(str, self.trail.last.violations)))

    def _note_tick(self, snapshot: Snapshot, trouble: str, token: FencingToken) -> None:
        used = () if self.usage is None else self.usage.take()
        try:
            with self.store.write(token) as tx:
                tx.add_usage(used)
                for deployment_id, part in snapshot.load.items():
                    tx.add_load(deployment_id, part)
                for deployment_id, report in snapshot.plans.items():
                    tx.put_planning(deployment_id, planning_of(report, now=snapshot.now))
                if snapshot.is_prune_due:
                    tx.drop_load(before=snapshot.now - HISTORY_KEPT)
                tx.put_tick(
                    now=self.clock.now(),
                    orders_read_at=None if snapshot.orders is None else snapshot.orders.read_at,
                    trouble=trouble,
                )
        except StoreError:
            if self.usage is not None:
                self.usage.put_back(used)
            raise


def may_need_key(lease: Lease, now: datetime, limits: FleetLimits) -> bool:
    """Its rent was dropped, or its order left the list unasked, so short a time ago that the order may come
    yet: only the key would prove that it is ours to end."""
    if lease.ended_at is None or lease.cancel_asked_at is not None:
        return False
    return abs(now - lease.ended_at) <= limits.absent_key_memory


CANCELS_BEFORE_NOTICE = 3
"""A cancel may be lost, and a list may lag; who is asked this often and still listed will not end by
itself."""


def _unending(leases: tuple[Lease, ...], snapshot: Snapshot) -> tuple[Lease, ...]:
    listed = None if snapshot.orders is None else {order.order_id for order in snapshot.orders.live()}
    return tuple(
        lease
        for lease in leases
        if lease.state is LeaseState.ENDING
        and lease.cancel_attempts >= CANCELS_BEFORE_NOTICE
        and (listed is None or lease.order_id in listed)
    )


def _next_change(snapshot: Snapshot) -> datetime | None:
    moments = (each.until for each in snapshot.wanted.values())
    return min((moment for moment in moments if moment is not None), default=None)


def why_not_ready(snapshot: Snapshot, leases: tuple[Lease, ...]) -> dict[str, NotReady]:
    """By model that is to be served: what a client is told while no replica of it is ready."""
    reasons: dict[str, NotReady] = {}
    for deployment in snapshot.deployments:
        if deployment.desired is not Desired.RUNNING:
            continue
        mine = [lease for lease in leases if lease.deployment_id == deployment.deployment_id]
        wanted = snapshot.wanted_of(deployment)
        if mine and all(lease.outbid_since is not None for lease in mine):
            reason = "its spot server was outbid, and another is being found"
        elif mine:
            reason = f"its replica is {mine[-1].phase}"
        elif wanted.replicas == 0:
            reason = "it sleeps, and is woken by this request unless a schedule holds it down"
        else:
            reason = deployment.note.rstrip(".") or "a server is being rented for it"
        reasons.setdefault(deployment.model, NotReady(reason, _ready_in(snapshot, deployment, mine)))
    return reasons


def _ready_in(snapshot: Snapshot, deployment: Deployment, leases: list[Lease]) -> timedelta | None:
    """What is left of the start-up of the server that was rented first; all of it where none is rented."""
    lead = snapshot.start_ups.get(deployment.deployment_id)
    if lead is None or deployment.note:
        return None  # something is in the way, and nobody knows for how long
    begun = [lease.created_at for lease in leases if is_held(lease)]
    return max(timedelta(0), lead - (snapshot.now - min(begun))) if begun else lead


def _is_busy(snapshot: Snapshot, leases: tuple[Lease, ...]) -> bool:
    if any(
        (lease.phase is not Phase.SERVING and lease.outbid_since is None) or lease.unhealthy_since
        for lease in leases
    ):
        return True
    return bool(snapshot.unsettled) or any(
        d.desired is Desired.RUNNING
        and not d.note
        and empty_slots(
            [lease for lease in leases if lease.deployment_id == d.deployment_id],
            snapshot.wanted_of(d).replicas,
        )
        for d in snapshot.deployments
    )


def _described(action: Action) -> str:
    """An action in a log line: its kind and ids, never its whole plan."""
    parts = [type(action).__name__.lower()]
    for name in ("lease_id", "deployment_id", "slot", "order_id", "phase", "attempt", "reason"):
        value = getattr(action, name, None)
        if value is not None:
            parts.append(f"{name}={clean_line(value)}")
    return " ".join(parts)

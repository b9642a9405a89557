"""One daemon on virtual time: it ticks, dies, is suspended, is told to end, and begins anew.

Its fleet is the real one. Everything it knows that is not in the store dies with it.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

from clorefleet.domain.errors import ClorefleetError
from clorefleet.domain.identity import LeaseId
from clorefleet.domain.node import Backend, Credentials
from clorefleet.fleet.loop import Fleet
from clorefleet.market.rent import RentProtocol
from clorefleet.simulation.choice import Chooser
from clorefleet.simulation.clock import ProcessClock
from clorefleet.simulation.desk import Desk
from clorefleet.simulation.faults import BOUNDARIES, PAUSES, Incident, Switches
from clorefleet.simulation.house import House, ProcessStore
from clorefleet.simulation.market import Market
from clorefleet.simulation.nodes import KeyFolder, NodeDesk, Nodes
from clorefleet.simulation.planted import HARMLESS, Bug
from clorefleet.simulation.scenario import Scenario
from clorefleet.store import leadership
from clorefleet.store.database import FencingToken

SUSPENDED_S = 3600.0


class Killed(BaseException):
    """The process died here."""


class Around(Protocol):
    """What a process needs of the world."""

    scenario: Scenario
    market: Market
    switches: Switches
    bug: Bug | None
    choose: Chooser

    def make_clock(self, offset_s: float) -> ProcessClock: ...

    def now_s(self) -> float: ...

    def suspend(self, process: Process, seconds: float) -> None: ...

    def new_id(self) -> str: ...


@dataclass
class Home:
    """What one fleet has on disk and outlives its processes: the store, and on each machine the keys."""

    fleet_name: str
    house: House
    nodes: Nodes
    key_folders: list[KeyFolder]
    """By machine; the first machine's first."""
    processes: list[Process] = field(default_factory=list)
    has_lost_memory: bool = False


class Process:
    def __init__(
        self, name: str, home: Home, world: Around, *, offset_s: float, key_folder: KeyFolder
    ) -> None:
        self.name = name
        self.home = home
        self.key_folder = key_folder
        self.fleet_name = home.fleet_name
        self.clock = world.make_clock(offset_s)
        self._world = world
        self._switches = world.switches
        self.token: FencingToken | None = None
        self.fleet: Fleet | None = None
        self.store: ProcessStore | None = None
        self.routes: tuple[Backend, ...] = ()
        self.is_suspended = False
        self.is_told_to_end = False
        self.is_ticking = False
        self.is_renting = False
        self.calls = 0
        self.turn = 0
        """Turns that were planned under another number are void."""
        self.uneventful = 0
        self.troubled = 0
        self.deaths_to_come = 0
        self.leads_since_s = float("-inf")
        self.births = 0
        self.has_jumped_s = float("-inf")
        self._standby: leadership.Standby | None = None

    def now_s(self) -> float:
        return self._world.now_s()

    def begin(self, *, force: bool) -> bool:
        """Start; false when another process leads the store."""
        store = ProcessStore(self.home.house.open(), self, self._switches)
        if self._standby is None:
            self.births += 1
            holder = f"{self.name}.{self.births}"
            self._standby = leadership.Standby(store, holder, clock=self.clock)
        if force:
            holder = f"{self.name}.{self.births}"
            token = leadership.acquire(store, holder, now=self.clock.now(), force=True)
        else:
            token = self._standby.try_to_lead()
        if token is None:
            return False
        self._standby = None
        self.token, self.store = token, store
        self.leads_since_s = self.now_s()
        bug = self._world.bug or HARMLESS
        desk = Desk(self._world.market, self, clock_offset_s=lambda: self.clock.offset_s)
        self.fleet = bug.fleet(
            store=bug.store(store),
            market=bug.market(RentProtocol(desk, clock=self.clock)),
            nodes=bug.nodes(NodeDesk(self.home.nodes, self.key_folder, self._world.market, self)),
            planner=self._world.choose,
            clock=self.clock,
            set_routes=self._set_routes,
            in_flight=_in_flight,
            startup_command=_startup_command,
            limits=bug.limits(self._world.scenario.limits),
            new_id=self._world.new_id,
            lookers_max=1,
            reached=lambda effect, boundary: self.at(f"{effect} {boundary}"),
        )
        self.uneventful = 0
        return True

    def end(self) -> None:
        self.fleet, self.token, self.routes = None, None, ()
        self.is_told_to_end = self.is_ticking = self.is_renting = False
        self._standby = None

    def beat(self) -> None:
        """The daemon's beat, which goes on beside its ticks as long as the machine runs."""
        if self.store is not None and self.token is not None and not self.is_suspended:
            with suppress(ClorefleetError):
                leadership.renew(self.store, self.token, now=self.clock.now())

    @property
    def is_alive(self) -> bool:
        return self.fleet is not None

    def at(self, boundary: str) -> None:
        """A place where the machine may strike.

        Raises:
            Killed: it did.
        """
        if not self.is_ticking:
            return
        if boundary.startswith("rent "):
            self.is_renting = boundary == "rent after intent"
        if self.deaths_to_come and boundary == "before a write":
            self.deaths_to_come -= 1
            self._switches.note("C2")
            raise Killed(boundary)
        switches = self._switches
        if switches.is_armed("C1") and switches.strikes(
            "C1", lambda each: _drawn(each, BOUNDARIES) == boundary
        ):
            switches.note("C1", boundary)
            if switches.strikes("C2"):
                self.deaths_to_come = 2
            raise Killed(boundary)
        if switches.is_armed("C5"):
            pause = switches.strikes("C5", lambda each: _drawn(each, PAUSES) == boundary)
            if pause is not None:
                self._world.suspend(self, SUSPENDED_S * (0.05 + pause.arg))
        if boundary == "rent after intent" and self._switches.strikes("C7"):
            self.is_told_to_end = True

    def _set_routes(self, backends: tuple[Backend, ...]) -> None:
        self.routes = backends


def _drawn(incident: Incident, places: tuple[str, ...]) -> str:
    return places[int(incident.arg * len(places))]


def _in_flight(lease_id: LeaseId) -> int:
    return 0


def _startup_command(credentials: Credentials) -> str:
    return f"#!/bin/sh\n# {credentials.host_private_key.reveal()}\n"

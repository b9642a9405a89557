"""Every fault as a switch: what it is called, how it is thrown, and a count of how often it struck.

Ids are those of the failure model. A fault is thrown in one of three ways:

- `NEXT`: it is armed, and strikes the next call, node or boundary that it can strike, `count` times;
- `WINDOW`: it holds for a while, for everything that it concerns;
- `ONCE`: it happens to the world at that instant.

A fault counts as fired when it changed what somebody saw, not when it was armed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from clorefleet.domain.intent import KILL_POINTS


class Way(Enum):
    NEXT = "next"
    WINDOW = "window"
    ONCE = "once"


@dataclass(frozen=True, slots=True)
class FaultKind:
    fault: str
    title: str
    way: Way
    count_max: int = 2
    lasts_s: tuple[float, float] = (60, 1800)
    weight: float = 1


_N, _W, _O = Way.NEXT, Way.WINDOW, Way.ONCE
KINDS = {
    kind.fault: kind
    for kind in (
        FaultKind("A1", "request timed out, not applied", _N, 4, weight=3),
        FaultKind("A2", "request timed out, applied", _N, 3, weight=4),
        FaultKind("A3", "answer cut after the effect", _N, weight=2),
        FaultKind("A4", "server error before or after the effect", _N, 3, weight=2),
        FaultKind("A5", "code 1 although the order was made", _N, weight=2),
        FaultKind("A6", "rate limit", _W, lasts_s=(10, 300)),
        FaultKind("A7", "answer is not JSON", _N, 3),
        FaultKind("A8", "a record of the list cannot be read", _W, lasts_s=(30, 600)),
        FaultKind("A9", "a new order shows up late", _N, 2, weight=3),
        FaultKind("A9v", "an order vanishes from the list and comes back", _W, lasts_s=(20, 240), weight=2),
        FaultKind("A10", "an order is listed twice", _W, lasts_s=(30, 600)),
        FaultKind("A10d", "the market makes two orders of one request", _N, 1, weight=0.5),
        FaultKind("A11", "the order is refused", _N, 4, weight=2),
        FaultKind("A12", "the price rises between reading and renting", _N, 2, weight=2),
        FaultKind("A13", "other hardware than offered", _N, 2),
        FaultKind("A14", "the cancel is accepted, the order lives on", _N, 3, weight=2),
        FaultKind("A15", "the cancel is refused, the order was gone", _N, 2),
        FaultKind("A16", "the cancel times out", _N, 3, weight=2),
        FaultKind("A17", "the order ends by itself", _O, weight=2),
        FaultKind("A18", "the key is refused", _W, lasts_s=(60, 3600), weight=0.5),
        FaultKind("A19", "answers drip in over minutes", _N, 3),
        FaultKind("A21", "an old order's number is given to a new one", _N, 1, weight=0.5),
        FaultKind("A22", "one page of the list is missing", _N, 3),
        FaultKind("B1", "the wallet runs empty", _W, lasts_s=(600, 7200), weight=0.7),
        FaultKind("B3", "a coin's rate jumps tenfold", _O),
        FaultKind("B4", "a coin has no rate", _W, lasts_s=(600, 7200)),
        FaultKind("B5", "the creation fee is not the offered one", _N, 2),
        FaultKind("B8", "the user orders by hand on the same account", _O),
        FaultKind("B9", "the budget is lowered below the burn", _O),
        FaultKind("C1", "killed at a boundary of an effect", _N, 1, weight=6),
        FaultKind("C2", "killed again during recovery, twice", _N, 1, weight=2),
        FaultKind("C3", "a second daemon on the same store", _O, weight=0.7),
        FaultKind(
            "C3k",
            "a machine on the same store takes over without the keys",
            _W,
            lasts_s=(1800, 20_000),
            weight=0,
        ),
        FaultKind("C4", "a second fleet on the same account", _O, weight=0.5),
        FaultKind("C5", "suspended for an hour, lock expired", _N, 1, weight=3),
        FaultKind("C7", "told to end in the middle of a rent", _N, 1),
        FaultKind("D1", "the wall clock jumps", _O, weight=2),
        FaultKind("D3", "the monotonic clock stalls", _W, lasts_s=(60, 3600)),
        FaultKind("D4", "the market's clock is minutes off", _W, lasts_s=(3600, 40_000)),
        FaultKind("D5", "ticks bunch, then are missed", _O),
        FaultKind("E1", "the store is locked", _W, lasts_s=(10, 120)),
        FaultKind("E2", "the disk is full at a write", _N, 3, weight=2),
        FaultKind("E3", "the store is read-only", _W, lasts_s=(30, 900)),
        FaultKind("E4", "the store is torn, then restored", _O, weight=0.4),
        FaultKind("E5", "the store is restored from an old backup", _O, weight=0.6),
        FaultKind("E6", "the store is deleted", _O, weight=0.4),
        FaultKind("E7", "the commit's sync fails", _N, 2),
        FaultKind("F1", "the server never boots", _N, 1),
        FaultKind("F2", "the server vanishes", _N, 1),
        FaultKind("F3", "the SSH port moves", _N, 2),
        FaultKind("F4", "SSH hangs", _W, lasts_s=(30, 900)),
        FaultKind("F5", "the host key changes", _N, 1),
        FaultKind("F6", "output without end", _N, 3),
        FaultKind("F7", "a job lies about its exit", _N, 1),
        FaultKind("F8", "the line is slow", _N, 1),
        FaultKind("F9", "the disk is fuller than told", _N, 1),
        FaultKind("F10", "a GPU is missing", _N, 1),
        FaultKind("F11", "the driver is too old", _N, 1),
        FaultKind("F12", "the host restarts in the middle of a job", _N, 2),
        FaultKind("F13", "the weights are wrong", _N, 2),
        FaultKind("F14", "a spot order is taken away", _O, weight=2),
        FaultKind("F14o", "a rival outbids a spot order, which waits", _O, lasts_s=(1800, 40_000), weight=0),
        FaultKind("F15", "the tunnel is dead", _W, lasts_s=(30, 900)),
        FaultKind("F16", "the engine is up and answers nothing", _N, 1),
        FaultKind("F17", "the host reboots again and again", _N, 1),
        FaultKind("G1", "hostile text in an answer of the market", _N, 3),
        FaultKind("G3", "hostile text from a host", _N, 3),
        FaultKind("G4", "text without end", _N, 2),
    )
}
ELSEWHERE = {
    "A20": "reordered answers: one request at a time leaves the client; tests/market",
    "B2": "a stale balance decides nothing in a tick; tests/market",
    "B6": "rounding at 1e-8: each simulated bill is rounded so; every life has it",
    "B7": "two fleets share the wallet in every life that has C4",
    "C6": "out of memory is a death at any place: C1",
    "C8": "old and new binary: tests/store",
    "D2": "year end and leap day: lives begin shortly before them by seed",
    "G2": "archives: none are taken from hosts",
    "G5": "shell metacharacters: tests/node",
    "G6": "addresses: tests/node",
    "G7": "depth bombs: tests/market",
    "G8": "SFTP paths: tests/node",
}
"""Faults that do not exist at the domain's edge, or are part of every life; and where they are met."""

BOUNDARIES = (
    *(f"{effect} {boundary}" for effect, boundary in KILL_POINTS),
    "keys made",
    "before a write",
    "after a write",
    "reading",
)
"""Where a process can be killed; C1 is drawn for each of them."""
PAUSES = ("before a write", "after a write", "reading", "rent after intent", "cancel after intent")
"""Where a process can be suspended."""
CANARY = "canary-7f3d9a51-must-never-be-written"
"""Every secret of a simulated fleet; searched for in all that it writes."""
HOSTILE = "\x1b]52;c;cm0gLXJm\x07\r[/]\u202egnp.exe\x9b31m\x00\nlevel=INFO order_rented order=1 $(reboot)"


@dataclass(frozen=True, slots=True)
class Incident:
    """A fault thrown at one instant of a life."""

    at_s: float
    fault: str
    count: int = 1
    lasts_s: float = 0
    arg: float = 0
    """In [0, 1): which order, how far, which boundary."""


class Switches:
    def __init__(self, trace: Callable[[str], None]) -> None:
        self._trace = trace
        self._armed: dict[str, list[Incident]] = {}
        self._left: Counter[str] = Counter()
        self._until_s: dict[str, tuple[float, Incident]] = {}
        self.fired: Counter[str] = Counter()

    def throw(self, incident: Incident) -> None:
        """Arm it, or open its window. What happens at an instant is the world's to do."""
        match KINDS[incident.fault].way:
            case Way.NEXT:
                self._armed.setdefault(incident.fault, []).extend([incident] * incident.count)
            case Way.WINDOW:
                self._until_s[incident.fault] = (incident.at_s + incident.lasts_s, incident)
            case Way.ONCE:
                pass

    def strikes(self, fault: str, fits: Callable[[Incident], bool] | None = None) -> Incident | None:
        """Use one armed fault up: the first that waits, or that fits the place."""
        waiting = self._armed.get(fault)
        if not waiting:
            return None
        for number, incident in enumerate(waiting):
            if fits is None or fits(incident):
                self.note(fault)
                return waiting.pop(number)
        return None

    def is_armed(self, fault: str) -> bool:
        """Something waits to strike: where nothing does, who asks often need not ask for a fitting one."""
        return bool(self._armed.get(fault))

    def holds(self, fault: str, now_s: float) -> Incident | None:
        """The window that is open, without counting it."""
        window = self._until_s.get(fault)
        return None if window is None or now_s >= window[0] else window[1]

    def note(self, fault: str, detail: str = "") -> None:
        self.fired[fault] += 1
        if detail:
            self.fired[f"{fault} {detail}"] += 1
        self._trace(f"fault {fault} {detail}")

    def calm(self) -> None:
        """No more faults: what was armed is forgotten, every window is over."""
        self._armed.clear()
        self._until_s.clear()

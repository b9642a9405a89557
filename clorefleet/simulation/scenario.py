"""One life as data, drawn from a seed: the hosts, what the user wants and when, what goes wrong and when.

Everything that shrinking may leave out is a tuple here; the rest of a life follows from it and the seed.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import StrEnum

from clorefleet.domain.lease import Phase
from clorefleet.domain.money import Currency
from clorefleet.fleet.limits import FleetLimits
from clorefleet.simulation.faults import BOUNDARIES, KINDS, FaultKind, Incident, Way

DAY_S = 86_400
SQLITE_EVERY = 10
"""One seed in so many lives on the real SQLite store."""
RIVAL_SHARE = 0.3
"""Of all lives, in which two deployments of one fleet go for the same servers at the same time."""
OUTBID_SHARE = 0.4
"""Of all lives, in which others bid more for spot servers, so far as the fleet has any."""
TAKEOVER_SHARE = 0.25
"""Of all lives, in which another machine, without the keys of the first, takes over from it."""
_DIES_AT = ("keys made", "rent after intent", "rent after effect", "rent after record", "reading", "reading")
"""Where the machine goes down that is taken over from: in the middle of a rent, or between two."""
_BEGINNINGS = (
    datetime(2026, 11, 24, 9, 0, tzinfo=UTC),
    datetime(2026, 12, 30, 18, 0, tzinfo=UTC),
    datetime(2028, 2, 28, 12, 0, tzinfo=UTC),
)
RATES = {Currency.USD: Decimal(1), Currency.CLORE: Decimal("0.0213"), Currency.BITCOIN: Decimal("91234.5")}


class WishKind(StrEnum):
    DEPLOY = "deploy"
    STOP = "stop"
    SCALE = "scale"
    BUDGET = "budget"
    ORDER_BY_HAND = "order by hand"


@dataclass(frozen=True, slots=True)
class Wish:
    """What the user does at one instant."""

    at_s: float
    kind: WishKind
    deployment: str = ""
    replicas: int = 1
    budget_usd_per_day: int = 10
    spot: bool = False


@dataclass(frozen=True, slots=True)
class Host:
    """One server on the market and the truth about it."""

    server_id: int
    currency: Currency
    per_day: Decimal
    spot_per_day: Decimal | None
    max_rental_s: int
    boot_s: float
    sync_s: float
    launch_s: float
    is_honest: bool = True
    """False: its hardware is never what it offers."""


@dataclass(frozen=True, slots=True)
class Scenario:
    seed: int
    is_on_sqlite: bool
    began_at: datetime
    ends_s: float
    """When the faults stop."""
    hosts: tuple[Host, ...]
    wishes: tuple[Wish, ...]
    incidents: tuple[Incident, ...]
    limits: FleetLimits
    busy_s: float
    quiet_s: float
    bills_by_second: bool
    answer_s: tuple[float, float]
    """Least and most that a market answer takes."""
    clock_offset_s: float


def draw(seed: int, *, is_on_sqlite: bool | None = None, also: tuple[str, ...] = ()) -> Scenario:
    """The life of a seed. The store may be chosen, which changes nothing else; `also` are faults that must
    be among its incidents."""
    chance = random.Random(f"clorefleet {seed}")  # noqa: S311 - seeded chance, not cryptography
    # The real store takes ten times as long for each tick: its lives are shorter, and no other.
    is_short = seed % SQLITE_EVERY == 0
    ends_s = (chance.uniform(0.2, 0.4) if is_short else chance.uniform(0.8, 2)) * DAY_S
    began_at = chance.choice(_BEGINNINGS) + timedelta(seconds=chance.randrange(DAY_S // 4))
    hosts = tuple(_host(chance, 100 + number) for number in range(chance.randint(8, 16)))
    wishes = _with_rival(seed, _wishes(chance, ends_s))
    return Scenario(
        seed=seed,
        is_on_sqlite=is_short if is_on_sqlite is None else is_on_sqlite,
        began_at=began_at,
        ends_s=ends_s,
        hosts=hosts,
        wishes=wishes,
        incidents=_with_takeovers(
            seed, ends_s, wishes, _with_rivals(seed, ends_s, _incidents(chance, ends_s, also), also), also
        ),
        limits=_limits(chance),
        busy_s=chance.uniform(4, 15),
        quiet_s=chance.uniform(40, 120),
        bills_by_second=chance.random() < 0.5,
        answer_s=(0.05, chance.choice((0.3, 1.0, 4.0))),
        clock_offset_s=chance.choice((0.0, 0.0, 0.0, chance.uniform(-120, 120))),
    )


def _host(chance: random.Random, server_id: int) -> Host:
    currency = chance.choice((Currency.USD, Currency.USD, Currency.CLORE, Currency.BITCOIN))
    usd = Decimal(chance.randint(80, 700)) / 100
    return Host(
        server_id=server_id,
        currency=currency,
        per_day=(usd / RATES[currency]).quantize(Decimal("1E-8")),
        spot_per_day=(usd / 2 / RATES[currency]).quantize(Decimal("1E-8")) if chance.random() < 0.5 else None,
        max_rental_s=chance.choice((1, 3, 20)) * DAY_S,
        boot_s=chance.uniform(20, 300),
        sync_s=chance.uniform(60, 1800),
        launch_s=chance.uniform(20, 400),
        is_honest=chance.random() > 0.08,
    )


def _wishes(chance: random.Random, ends_s: float) -> tuple[Wish, ...]:
    wishes: list[Wish] = []
    for name in ("glm", "qwen", "tiny")[: chance.choice((1, 1, 1, 2, 2, 3)) if ends_s > DAY_S / 2 else 1]:
        at_s = chance.uniform(0, 3600)
        wanted = {
            "replicas": chance.choice((1, 1, 1, 2, 2, 3)),
            "budget_usd_per_day": chance.choice((3, 6, 9, 14, 25)),
            "spot": chance.random() < 0.3,
        }
        wishes.append(Wish(at_s, WishKind.DEPLOY, name, **wanted))  # type: ignore[arg-type]
        is_running = True
        while (at_s := at_s + chance.expovariate(1 / (0.8 * DAY_S)) + 600) < ends_s:
            kind = WishKind.DEPLOY
            if is_running:
                kind = chance.choice((WishKind.STOP, WishKind.SCALE, WishKind.BUDGET, WishKind.DEPLOY))
            is_running = kind is not WishKind.STOP
            wanted["replicas"] = chance.choice((1, 1, 2, 3))
            wanted["budget_usd_per_day"] = chance.choice((3, 6, 9, 14, 25))
            wishes.append(Wish(at_s, kind, name, **wanted))  # type: ignore[arg-type]
    return tuple(sorted(wishes, key=lambda wish: wish.at_s))


def _with_rival(seed: int, wishes: tuple[Wish, ...]) -> tuple[Wish, ...]:
    """In some lives a second deployment is wished for at once with the first, and again whenever that one is
    deployed anew: their plans point at the same servers."""
    chance = random.Random(f"rival {seed}")  # noqa: S311 - the rest of the life stays as it is without it
    if chance.random() >= RIVAL_SHARE:
        return wishes
    first = wishes[0]
    rivals = [
        replace(wish, at_s=wish.at_s + 0.001, deployment="rival", replicas=min(2, wish.replicas))
        for wish in wishes
        if wish.deployment == first.deployment and wish.kind in (WishKind.DEPLOY, WishKind.BUDGET)
    ]
    return tuple(sorted((*wishes, *rivals), key=lambda wish: wish.at_s))


def _incidents(chance: random.Random, ends_s: float, also: tuple[str, ...]) -> tuple[Incident, ...]:
    drawn = [fault for fault, kind in KINDS.items() if kind.weight]
    chosen = chance.sample(sorted(drawn), chance.randint(12, 26))
    kinds = [KINDS[fault] for fault in chosen]
    weights = [kind.weight for kind in kinds]
    incidents = []
    for _ in range(chance.randint(16, 30) if ends_s > DAY_S / 2 else chance.randint(8, 14)):
        kind = chance.choices(kinds, weights)[0]
        incidents.append(_incident(chance, kind, ends_s))
    # Early trouble as well: most of what can go wrong does so while something is being rented.
    incidents += [_incident(chance, chance.choices(kinds, weights)[0], 7200) for _ in range(7)]
    more = random.Random(f"{ends_s}")  # noqa: S311 - the rest of the life stays as it is without them
    for fault in filter(drawn.__contains__, also):
        incidents += [_incident(more, KINDS[fault], within_s) for within_s in (3600, ends_s / 2, ends_s)]
    return tuple(sorted(incidents, key=lambda incident: incident.at_s))


def _with_rivals(
    seed: int, ends_s: float, incidents: tuple[Incident, ...], also: tuple[str, ...]
) -> tuple[Incident, ...]:
    """In some lives others bid more than the fleet for its spot servers, and leave after a while. Drawn
    apart: the rest of the life stays as it is without them."""
    chance = random.Random(f"outbid {seed}")  # noqa: S311 - seeded chance, not cryptography
    if chance.random() >= OUTBID_SHARE and "F14o" not in also:
        return incidents
    kind = KINDS["F14o"]
    rivals = [
        Incident(
            at_s=chance.uniform(1800, ends_s),
            fault=kind.fault,
            lasts_s=chance.uniform(*kind.lasts_s),
            arg=chance.random(),
        )
        for _ in range(chance.randint(2, 6))
    ]
    return tuple(sorted((*incidents, *rivals), key=lambda incident: incident.at_s))


def _with_takeovers(
    seed: int, ends_s: float, wishes: tuple[Wish, ...], incidents: tuple[Incident, ...], also: tuple[str, ...]
) -> tuple[Incident, ...]:
    """In some lives the machine that has the keys goes down for a while: in the middle of a rent, between
    two, or when it has just given up a rent whose order is late. Drawn apart: the rest of the life stays as
    it is without them."""
    chance = random.Random(f"takeover {seed}")  # noqa: S311 - seeded chance, not cryptography
    if chance.random() >= TAKEOVER_SHARE and "C3k" not in also:
        return incidents
    found: list[Incident] = []
    for number in range(chance.randint(1, 3)):
        at_s = chance.uniform(0, 7200 if number == 0 else ends_s)
        dies_at = chance.choice(_DIES_AT)
        if number == 0 and chance.random() < 0.5:
            asked_s = chance.choice(wishes).at_s
            found.append(Incident(asked_s, "A2"))
            found.append(Incident(asked_s, "A9", arg=chance.uniform(0.9, 1)))
            at_s, dies_at = asked_s + chance.uniform(60, 230), "reading"
        lasts_s = chance.uniform(*KINDS["C3k"].lasts_s)
        found.append(Incident(at_s, "C3k", lasts_s=lasts_s, arg=chance.random()))
        found.append(Incident(at_s, "C1", arg=(BOUNDARIES.index(dies_at) + 0.5) / len(BOUNDARIES)))
    return tuple(sorted((*incidents, *found), key=lambda incident: incident.at_s))


def _incident(chance: random.Random, kind: FaultKind, ends_s: float) -> Incident:
    return Incident(
        at_s=chance.uniform(0, ends_s),
        fault=kind.fault,
        count=chance.randint(1, kind.count_max) if kind.way is Way.NEXT else 1,
        lasts_s=chance.uniform(*kind.lasts_s) if kind.way is Way.WINDOW else 0,
        arg=chance.random(),
    )


def _limits(chance: random.Random) -> FleetLimits:
    base = FleetLimits()
    patience = chance.uniform(0.5, 2)
    phases = {phase: limit * patience for phase, limit in base.phase.items()}
    phases[Phase.PROBING] = max(phases[Phase.PROBING], timedelta(minutes=3))
    return replace(
        base,
        phase=phases,
        doubt_grace=timedelta(seconds=chance.uniform(60, 300)),
        accepted_grace=timedelta(seconds=chance.uniform(120, 900)),
        doubt_polls=chance.randint(2, 5),
        absent_polls=chance.randint(2, 3),
        cancel_repeat=timedelta(seconds=chance.uniform(5, 60)),
        drain=timedelta(seconds=chance.uniform(0, 60)),
        job_attempts=chance.randint(1, 4),
        launches=chance.randint(1, 3),
        unhealthy=timedelta(seconds=chance.uniform(60, 600)),
        refusal_memory=timedelta(seconds=chance.uniform(120, 1200)),
    )

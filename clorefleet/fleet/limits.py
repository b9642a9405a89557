"""How long things may take, and how often they may be tried. Every wait in the fleet has its bound here."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

from clorefleet.domain.lease import Phase

_PHASE_LIMITS = {
    Phase.WAITING: timedelta(minutes=20),
    # Image pull at the host's line speed is part of it; no source gives a bound [assumed].
    Phase.PROBING: timedelta(minutes=5),
    Phase.INSTALLING: timedelta(minutes=30),
    Phase.SYNCING: timedelta(hours=4),
    # 756 GB at 1 Gbit/s take 1.7 h [computed]; slower hosts are given back.
    Phase.LAUNCHING: timedelta(minutes=60),
    # SGLang's own tests allow 3600 s for a GLM launch.
    Phase.VERIFYING: timedelta(minutes=10),
    Phase.DRAINING: timedelta(minutes=5),
}


@dataclass(frozen=True, slots=True)
class FleetLimits:
    phase: dict[Phase, timedelta] = field(default_factory=lambda: dict(_PHASE_LIMITS))
    """Time limits by phase; passing one gives the server back and takes the next plan."""
    bootstrap_days_of_rate: Decimal = Decimal("0.35")
    """Spend limit from order to serving, as a share of the plan's price for a day."""
    doubt_grace: timedelta = timedelta(seconds=90)
    """How long an order that may exist is looked for after the doubt. Clients of the live market saw
    orders appear up to 50 s late; until then the slot and the server stay locked."""
    accepted_grace: timedelta = timedelta(minutes=10)
    """The same where the market had said yes."""
    doubt_polls: int = 3
    """Readings of the order list, all after the doubt, that must miss the order as well."""
    doubt_polls_without_clock: int = 60
    """Readings that must miss the order where no clock shows that the grace is over, since ours was set back
    behind the doubt, or the market's stands still: this many take longer than the graces at any pace."""
    absent_key_memory: timedelta = timedelta(hours=1)
    """How long the key is kept of a rent that was dropped, and of an order that left the list unasked: one
    that shows up late is ended only after its server has let this key in."""
    absent_polls: int = 2
    """Readings in a row without the order before it counts as ended."""
    cancel_repeat: timedelta = timedelta(seconds=15)
    """An accepted cancel whose order is still listed is asked for again after this."""
    drain: timedelta = timedelta(seconds=30)
    """Requests under way may finish for this long before the cancel."""
    sync_patience: timedelta = timedelta(minutes=15)
    """After this the speed of the weights so far decides whether they can be there within the phase's limit.
    A first quarter of an hour may be slow for reasons that pass (a cold cache, a rate limit)."""
    job_attempts: int = 3
    """Starts of one job on one node before the node is given up."""
    start_failures: int = 5
    """Times in a row that a job may fail to start before the server is given back."""
    launches: int = 2
    degraded_share: float = 0.6
    """Of the predicted speed for one stream: a replica below it serves, and is called degraded."""
    give_back_share: float = 0.35
    """Below this its server is given back. Both are assumed: most predictions lie within a factor of two."""
    floor_tolerance: float = 0.85
    """Of the speed that was asked for: the first measurement is short, and has a prompt and the line in it
    [assumed]. Below it the server is given back."""
    unhealthy: timedelta = timedelta(minutes=3)
    """How long a serving replica may fail to answer before its server is given back."""
    order_ct_skew: timedelta = timedelta(minutes=10)
    """How far an order's time may lie from when it was asked for by the market's own clock, and by ours where
    the market did not tell its time, when an order is recognised by it."""
    host_fault_memory: timedelta = timedelta(days=7)
    """How long a server that failed us is left out of plans."""
    price_tolerance: Decimal = Decimal(0)
    """Share by which an order's own price may pass the approved one before it is cancelled."""
    refusals_max: int = 20
    """Refused rents of one deployment within that time before it pauses."""
    closed_memory: timedelta = timedelta(days=2)
    """How long a closed lease is remembered against an order that shows up late."""
    refusal_memory: timedelta = timedelta(minutes=10)
    """How long a server that the market refused to rent is left out of plans."""
    effect_lead: timedelta = timedelta(seconds=20)
    """How long after its intent a rent may still be sent. Shorter than any doubt's grace and than the time
    after which another daemon takes over: a process that was paused in between finds that it is too late."""
    reading_life: timedelta = timedelta(minutes=10)
    """How old a tick's reading of the orders may be when it begins something that costs. A process may have
    been paused between the two for hours; also, an order is known as late by the time at which it was asked
    for, which is told from that reading."""
    stop_lead: timedelta = timedelta(minutes=15)
    """How long before a ceiling is reached leases are given back: draining, cancelling, reading back."""
    breaker_window: timedelta = timedelta(hours=1)
    rents_per_window: int = 12
    """Rents of the whole fleet within the window before renting stops until the user says go on."""
    failed_hosts_per_window: int = 8
    unseen_rents_per_window: int = 2
    """Rents that the market said yes to and of which its list showed no order: more of them may bill, where
    no ledger counts and no ceiling holds, while the list is not what we take it for."""
    low_wallet: timedelta = timedelta(hours=12)
    """A wallet that lasts shorter than this at the present burn is warned about."""
    wallet_every: timedelta = timedelta(minutes=5)
    coin_rates_every: timedelta = timedelta(minutes=15)
    """How old a reading may be while something bills; constant work, whatever the size of the fleet."""
    coin_rate_step: Decimal = Decimal("0.01")
    """A coin that moved by more than this share since a ledger segment began starts a new segment."""
    journal_memory: timedelta = timedelta(days=30)
    """How long finished intents and jobs are kept."""
    prune_every: timedelta = timedelta(hours=1)

    consolidate_every: timedelta = timedelta(minutes=30)
    """Between two looks for cheaper servers where nothing else asks for the offers."""

    spot_every: timedelta = timedelta(minutes=10)
    """Between two looks at the spot market of a server that runs: its bid may be lowered as often."""
    spot_outbid_every: timedelta = timedelta(seconds=30)
    """The same for one that waits for its machine."""
    outbid_patience: timedelta = timedelta(minutes=5)
    """How long a new spot order may be listed without the machine, and without a known rival, before it
    counts as outbid."""
    outbid_kept: timedelta = timedelta(hours=12)
    """How long an order that lost its machine is kept: it costs nothing, and its disk may come back."""
    bid_settles: timedelta = timedelta(minutes=2)
    """After a bid, until every reading of the order list shows it."""
    rebid_grace: timedelta = timedelta(minutes=1)
    """After a raise, until a replacement is looked for all the same."""

    def scaled(self, factor: float) -> FleetLimits:
        """For a sandbox whose clock runs `factor` times as fast while its nodes work in real time."""
        if factor <= 1:
            return self
        durations: dict[str, Any] = {
            each.name: value * factor
            for each in fields(self)
            if isinstance(value := getattr(self, each.name), timedelta)
        }
        return replace(
            self,
            phase={phase: limit * factor for phase, limit in self.phase.items()},
            bootstrap_days_of_rate=self.bootstrap_days_of_rate * Decimal(str(factor)),
            **durations,
        )


DEFAULT_LIMITS = FleetLimits()
SANDBOX_LIMITS = FleetLimits(
    # The sandbox's list is at most 2.5 s late, so that a doubt is over sooner than on the real market.
    doubt_grace=timedelta(seconds=8),
    accepted_grace=timedelta(seconds=60),
    refusal_memory=timedelta(minutes=2),
    # Its arithmetic of speed is not the planner's: of honest servers it says as little as 0.28 of what the
    # planner does [computed over all recipes]. Only what is below all of that is a slow server.
    give_back_share=0.2,
    # Its clock may run faster than work does; the market's 600 s between two reductions are then soon over.
    spot_every=timedelta(seconds=10),
    spot_outbid_every=timedelta(seconds=5),
    outbid_patience=timedelta(seconds=30),
    bid_settles=timedelta(seconds=10),
    rebid_grace=timedelta(seconds=20),
)

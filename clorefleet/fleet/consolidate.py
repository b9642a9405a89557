"""Whether to move a serving replica to a cheaper server, and if not, why not. Pure.

A move costs money before it saves any: the new server is paid while it boots and loads, both are paid until
the new one serves, and the order has its own fee. It is made only when

    saving a day x days it is expected to last  >  (1 + margin) x cost of the move

How long it will last nobody knows. The guess is that a thing which has lasted for some time will last for as
long again (J. R. Gott, 1993), and no longer than a schedule or the new order's own end says.

One move at a time in the whole fleet, none while anything else is under way in the deployment, none within
the cooldown. The new server serves before the old one is drained: the budget must carry both, or there is
no move.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from itertools import islice

from clorefleet.domain.deployment import ConsolidatePolicy, Deployment
from clorefleet.domain.identity import DeploymentId, LeaseId, ServerId
from clorefleet.domain.lease import Lease, LeaseState, Phase
from clorefleet.domain.money import AS_RENTED, UsdPerUnit, format_usd
from clorefleet.domain.plan import Plan
from clorefleet.planner.cost import start_up_of
from clorefleet.planner.preference import QUALITY

LIFE_LEAST = timedelta(hours=1)
SPEED_LEAST = 0.95
"""Of the speed it has: a saving that a slower server gives is another kind of thing."""
CANDIDATES_MAX = 3
"""Plans that are looked at for each replica: a worse one cannot pay where the best does not."""


AtBid = Callable[[Plan], Plan | str]
"""The plan at the price that would be paid for it now; or why there is none."""


Forbids = Callable[[Plan], str]
"""Why no ceiling lets the plan be rented beside what runs; "" where all do."""


def _as_listed(plan: Plan) -> Plan | str:
    return plan


def _forbids_nothing(plan: Plan) -> str:
    return ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """One replica and one server that it might move to."""

    deployment_id: DeploymentId
    lease_id: LeaseId
    plan: Plan | None
    """At the price that would be paid; None where no server was even looked at."""
    pays: bool
    reason: str
    saving_usd_per_day: Decimal = Decimal(0)
    cost_usd: Decimal = Decimal(0)
    expected_life: timedelta = timedelta(0)

    @property
    def gain_usd(self) -> Decimal:
        return self.saving_usd_per_day * _days(self.expected_life) - self.cost_usd


def judge(
    deployment: Deployment,
    policy: ConsolidatePolicy,
    leases: Sequence[Lease],
    plans: Iterable[Plan],
    *,
    avoided: frozenset[ServerId],
    now: datetime,
    last_move_at: datetime | None,
    start_up: timedelta | None = None,
    until: datetime | None = None,
    busy: str = "",
    at_bid: AtBid = _as_listed,
    forbids: Forbids = _forbids_nothing,
    usd_per_unit: UsdPerUnit = AS_RENTED,
) -> tuple[Verdict, ...]:
    """A verdict on each serving replica, the most worthwhile first.

    Args:
        leases: the deployment's open ones.
        plans: ranked, of this reading of the market.
        avoided: servers in use, blocked, or that failed before.
        start_up: as measured; else predicted from the offer.
        until: when a schedule ends the replica, as far as it is known.
        busy: why nothing in the fleet may move now; "" = it may.
        at_bid: what spot servers cost beside what others bid there, as in deploying.
        forbids: the ceilings, asked as for any rent: both servers bill until the new one serves.
        usd_per_unit: present rates of coins, as the plans have them; at the rent its coin may have been
            worth more.
    """
    serving = [each for each in leases if each.state is LeaseState.ORDERED and each.phase is Phase.SERVING]
    why_none = busy or _why_none(policy, leases, now, last_move_at)
    candidates = candidates_of(plans, avoided)
    verdicts: list[Verdict] = []
    for lease in serving:
        looked = [
            _judge_one(
                policy,
                lease,
                plan,
                now=now,
                start_up=start_up,
                until=until,
                at_bid=at_bid,
                forbids=forbids,
                usd_per_unit=usd_per_unit,
            )
            for plan in candidates
        ]
        if not looked:
            looked = [_rejected(lease, None, "no other server on the market fits")]
        if why_none:
            looked = [_withheld(each, why_none) for each in looked]
        verdicts.extend(looked)
    return tuple(sorted(verdicts, key=lambda each: (not each.pays, -each.gain_usd, each.lease_id)))


def candidates_of(plans: Iterable[Plan], avoided: AbstractSet[ServerId]) -> tuple[Plan, ...]:
    """The servers that are looked at for each replica."""
    return tuple(islice((plan for plan in plans if plan.offer.server_id not in avoided), CANDIDATES_MAX))


def _why_none(
    policy: ConsolidatePolicy, leases: Sequence[Lease], now: datetime, last_move_at: datetime | None
) -> str:
    unsettled = [each for each in leases if each.phase is not Phase.SERVING]
    if unsettled:
        return f"replica {unsettled[0].slot} is {unsettled[0].phase}: one thing at a time"
    if any(each.unhealthy_since is not None for each in leases):
        return "a replica does not answer just now"
    if last_move_at is not None and now - last_move_at < policy.cooldown:
        left = policy.cooldown - (now - last_move_at)
        return f"it moved {_span(now - last_move_at)} ago; the next move may be in {_span(left)}"
    return ""


def _judge_one(
    policy: ConsolidatePolicy,
    lease: Lease,
    plan: Plan,
    *,
    now: datetime,
    start_up: timedelta | None,
    until: datetime | None,
    at_bid: AtBid,
    forbids: Forbids,
    usd_per_unit: UsdPerUnit,
) -> Verdict:
    old, new = lease.plan, at_bid(plan)
    if isinstance(new, str):
        return _rejected(lease, plan, new)
    running = running_usd_per_day(lease, usd_per_unit)
    saving = running - new.price.running_usd_per_day
    life = expected_life(lease, new, now=now, until=until)
    ready = start_up or timedelta(seconds=start_up_of(new.offer, new.setup).total_s)
    # The new server's start, and its fee. The old one serves meanwhile and is paid either way.
    cost = new.price.running_usd_per_day * _days(ready) + new.price.creation_fee * new.price.usd_per_unit
    verdict = Verdict(lease.deployment_id, lease.lease_id, new, False, "", saving, cost, life)
    if QUALITY.index(new.setup.precision) > QUALITY.index(old.setup.precision):
        return _because(verdict, f"{new.setup.precision} is less exact than the {old.setup.precision} it has")
    speed = lease.measured_tokens_per_s or old.speed.decode_tokens_per_s
    if new.speed.decode_tokens_per_s < SPEED_LEAST * min(speed, old.speed.decode_tokens_per_s):
        return _because(
            verdict,
            f"{new.speed.decode_tokens_per_s:.1f} tok/s predicted is slower than the {speed:.1f} it has",
        )
    if new.setup.context_tokens < old.setup.context_tokens and new.setup.concurrency < old.setup.concurrency:
        return _because(verdict, "it has room for less context and fewer requests")
    if new.price.is_spot and not old.price.is_spot:
        return _because(verdict, "a spot server can be taken away, and the one it has cannot")
    if saving <= 0:
        return _because(verdict, f"it is not cheaper (${format_usd(-saving)}/day more)")
    if saving < policy.saving_least * running:
        return _because(
            verdict, f"${format_usd(saving)}/day is less than {policy.saving_least:.0%} of what it costs"
        )
    forbidden = forbids(new)
    if forbidden:
        return _because(verdict, f"both run until the new one serves: {forbidden}")
    saved = saving * _days(life)
    needed = cost * (1 + policy.margin)
    sum_words = (
        f"saves ${format_usd(saving)}/day, ${format_usd(saved)} over the {_span(life)} expected; "
        f"the move costs ${format_usd(cost)}, with the margin ${format_usd(needed)}"
    )
    if saved <= needed:
        return _because(verdict, sum_words)
    return Verdict(lease.deployment_id, lease.lease_id, new, True, sum_words, saving, cost, life)


def expected_life(lease: Lease, plan: Plan, *, now: datetime, until: datetime | None) -> timedelta:
    """As long again as it has lasted, up to the ends that are known."""
    age = now - (lease.ordered_at or lease.created_at)
    life = max(LIFE_LEAST, age)
    if plan.offer.max_rental_s:
        life = min(life, timedelta(seconds=plan.offer.max_rental_s))
    if until is not None:
        life = min(life, max(timedelta(0), until - now))
    return life


def running_usd_per_day(lease: Lease, usd_per_unit: UsdPerUnit = AS_RENTED) -> Decimal:
    """As billed, with fee, at the present rate of the coin; where that is not given, as at the rent."""
    price = lease.plan.price
    billed = price.billed if lease.price is None else lease.price
    rate = usd_per_unit.get(billed.currency, price.usd_per_unit)
    return billed.amount * (1 + price.fee_percent / 100) * rate


def _because(verdict: Verdict, reason: str) -> Verdict:
    return replace(verdict, reason=reason)


def _withheld(verdict: Verdict, why: str) -> Verdict:
    return replace(verdict, pays=False, reason=f"{why} ({verdict.reason})") if verdict.pays else verdict


def _rejected(lease: Lease, plan: Plan | None, reason: str) -> Verdict:
    return Verdict(lease.deployment_id, lease.lease_id, plan, False, reason)


def _days(duration: timedelta) -> Decimal:
    return Decimal(int(duration.total_seconds())) / 86_400


def _span(duration: timedelta) -> str:
    minutes = duration.total_seconds() / 60
    if minutes < 120:
        return f"{minutes:.0f} min"
    return f"{minutes / 60:.1f} h" if minutes < 2880 else f"{minutes / 1440:.1f} days"

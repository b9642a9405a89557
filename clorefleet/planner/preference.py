"""What is better than what: the setup on one server, the servers among each other, and the words for it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from clorefleet.domain.money import format_usd
from clorefleet.domain.plan import Objective, Plan
from clorefleet.domain.recipe import Precision, Recipe
from clorefleet.planner.cost import StartUp
from clorefleet.planner.shapes import Candidate

SAME_PRICE_SHARE = 0.10
"""Setups on one server differ in price only by their start-up. Within a tenth, quality and speed decide."""
QUALITY = (
    Precision.BF16, Precision.FP8, Precision.Q8, Precision.Q6, Precision.Q5,
    Precision.FP4, Precision.Q4, Precision.Q3, Precision.Q2, Precision.Q1,
)  # fmt: skip
"""Best first."""

Key = tuple[object, ...]
"""Compared part by part; smaller is better."""


def preferred(
    candidates: list[tuple[StartUp, Candidate]], objective: Objective, recipe: Recipe
) -> tuple[StartUp, Candidate]:
    """An offer's best setup, of those with their start-up there.

    Its price has no part in this, so a falling price never changes the setup.
    """
    if len(candidates) == 1:
        return candidates[0]
    limit = float("inf")
    if objective is Objective.COST:
        limit = min(_day(start) for start, _ in candidates) * (1 + SAME_PRICE_SHARE)

    def key(entry: tuple[StartUp, Candidate]) -> tuple[Parts, float, Parts]:
        before, divisor, after = setup_parts(entry[1], objective, recipe)
        return before, _day(entry[0]) / divisor, after

    return min((entry for entry in candidates if _day(entry[0]) <= limit), key=key)


def _day(start: StartUp) -> float:
    """What a day costs, start-up included, as a multiple of its rate."""
    return 1 + start.total_s / 86_400


Parts = tuple[float | int | str, ...]


def setup_parts(candidate: Candidate, objective: Objective, recipe: Recipe) -> tuple[Parts, float, Parts]:
    """What setups are compared by on one server, smaller being better: first part, then share / divisor, then
    last part. The share is what a day costs there, start-up included, as a multiple of its rate."""
    setup = candidate.setup
    order = next(i for i, each in enumerate(recipe.checkpoints) if each.key == setup.checkpoint)
    speed, quality = -candidate.speed.decode_tokens_per_s, QUALITY.index(setup.precision)
    last: Parts = (order, setup.engine, setup.tensor_parallel)
    match objective:
        case Objective.COST if setup.precision in (Precision.BF16, Precision.FP8):
            # Both are the model as its maker serves it: the faster one.
            return (-1, 0, speed), 1.0, last
        case Objective.COST:
            # Of a model's quantisations in one class, the recipe names its choice first.
            return (quality, order, speed), 1.0, last
        case Objective.SPEED:
            return (speed,), 1.0, (quality, *last)
        case Objective.QUALITY:
            return (quality,), 1.0, (speed, *last)
        case Objective.VALUE:
            together = candidate.speed.throughput_tokens_per_s or candidate.speed.decode_tokens_per_s
            return (), together, (quality, speed, *last)


# -- all plans


def plan_key(plan: Plan, objective: Objective) -> Key:
    """Smaller is better. What the wallets cannot pay comes last; the last parts make the order total."""
    parts = tuple(value for _, value in _criteria(plan, objective))
    return (plan.price.lacking is not None, *parts, plan.setup.checkpoint, plan.setup.engine)


def _criteria(plan: Plan, objective: Objective) -> tuple[tuple[str, object], ...]:
    """What plans are compared by, in order, each with its name."""
    cost = ("cost", plan.price.all_in_usd_per_day.amount)
    speed = ("speed", -plan.speed.decode_tokens_per_s)
    quality = ("precision", QUALITY.index(plan.setup.precision))
    number = ("server", plan.offer.server_id)
    match objective:
        case Objective.COST:
            return (cost, quality, speed, number)
        case Objective.SPEED:
            return (speed, cost, quality, number)
        case Objective.QUALITY:
            return (quality, cost, speed, number)
        case Objective.VALUE:
            value = plan.price.usd_per_million_tokens
            return (("tokens per dollar", (value is None, value or 0)), cost, quality, number)


def pareto(plans: Iterable[Plan]) -> tuple[str, ...]:
    """Keys of plans that no other beats on both price and speed, cheapest first.

    Plans that the wallets cannot pay count only where there are no others.
    """
    front: list[str] = []
    fastest = -1.0
    listed = sorted(plans, key=lambda each: plan_key(each, Objective.COST))
    payable = [plan for plan in listed if plan.price.lacking is None]
    for plan in payable or listed:
        if plan.speed.decode_tokens_per_s > fastest:
            fastest = plan.speed.decode_tokens_per_s
            front.append(plan.key)
    return tuple(front)


def with_reason(plan: Plan, following: Plan | None, objective: Objective) -> Plan:
    """Why this one stands before the next."""
    return plan if following is None else replace(plan, reasons=(_why_before(plan, following, objective),))


def _why_before(plan: Plan, following: Plan, objective: Objective) -> str:
    other = f"server {following.offer.server_id}"
    lacking = following.price.lacking
    if lacking is not None and plan.price.lacking is None:
        return f"before {other}: the wallet can pay it, and lacks {lacking} for the other"
    equal = []
    for (name, mine), (_, theirs) in zip(
        _criteria(plan, objective), _criteria(following, objective), strict=True
    ):
        if mine == theirs:
            equal.append(name)
            continue
        if name == "server":
            return f"before {other} only by its smaller number: equal in {', '.join(equal)}"
        tie = f"equal in {', '.join(equal)}; " if equal else ""
        return f"before {other} by {name}: {tie}{_difference(plan, following)}"
    return f"before {other}: the same server, by the setup's name"


def _difference(plan: Plan, following: Plan) -> str:
    dearer = following.price.all_in_usd_per_day.amount - plan.price.all_in_usd_per_day.amount
    faster = plan.speed.decode_tokens_per_s - following.speed.decode_tokens_per_s
    cost = f"${format_usd(abs(dearer))}/day {'less' if dearer > 0 else 'more'}" if dearer else "same cost"
    speed = f"{abs(faster):.1f} tok/s {'faster' if faster > 0 else 'slower'}" if faster else "same speed"
    return f"{cost}, {speed}"

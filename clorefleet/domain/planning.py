"""What the last planning for a deployment found, small enough to keep: for looking at, never for deciding.

A report over the whole market holds thousands of plans with all their arithmetic. Kept are those that
somebody would ask about: the best, those than which nothing is both cheaper and faster, the nearest above
the budget, and why the rest were refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from clorefleet.domain.plan import Plan, PlanReport, Refusal
from clorefleet.domain.recipe import Mark

BEST_KEPT = 24
FRONT_KEPT = 24
OVER_BUDGET_KEPT = 12
REFUSALS_KEPT = 12


@dataclass(frozen=True, slots=True)
class PlanOption:
    """One plan, as far as a picture and a row of a table need it."""

    key: str
    server_id: int
    gpus: str
    setup: str
    is_spot: bool
    all_in_usd_per_day: Decimal
    tokens_per_s: float
    """One stream."""
    is_measured: bool
    """False where the speed is predicted."""
    is_on_front: bool
    """Nothing is both cheaper and faster."""
    rank: int | None
    """From 1, the best first; None above the budget."""


@dataclass(frozen=True, slots=True)
class Planning:
    """What one planning found."""

    made_at: datetime
    model: str
    objective: str
    budget: str
    """"" without one."""
    offers_seen: int
    plans_found: int
    """Within the budget; `options` has some of them."""
    options: tuple[PlanOption, ...]
    """By rank, those above the budget last."""
    refusals: tuple[Refusal, ...]
    advice: tuple[str, ...]

    @property
    def front(self) -> tuple[PlanOption, ...]:
        """The cheapest first."""
        found = (each for each in self.options if each.is_on_front)
        return tuple(sorted(found, key=lambda each: each.all_in_usd_per_day))


def planning_of(report: PlanReport, *, now: datetime) -> Planning:
    front = frozenset(report.pareto)

    def option(plan: Plan, rank: int | None) -> PlanOption:
        key, offer, price = plan.key, plan.offer, plan.price
        return PlanOption(
            key=key,
            server_id=offer.server_id,
            gpus=offer.gpu_summary,
            setup=f"{plan.setup.checkpoint} on {plan.setup.engine}",
            is_spot=price.is_spot,
            all_in_usd_per_day=price.all_in_usd_per_day.amount,
            tokens_per_s=round(plan.speed.decode_tokens_per_s, 3),
            is_measured=plan.speed.mark is Mark.MEASURED,
            is_on_front=rank is not None and key in front,
            rank=rank,
        )

    requirement = report.requirement
    ranked = [(plan, rank) for rank, plan in enumerate(report.plans, 1)]
    on_front = [each for each in ranked[BEST_KEPT:] if each[0].key in front]
    kept = [*ranked[:BEST_KEPT], *_spread(on_front, FRONT_KEPT)]
    return Planning(
        made_at=now,
        model=requirement.model,
        objective=requirement.objective.value,
        budget=str(requirement.budget) if requirement.budget else "",
        offers_seen=report.offers_seen,
        plans_found=len(report.plans),
        options=(
            *(option(plan, rank) for plan, rank in kept),
            *(option(plan, None) for plan in report.over_budget[:OVER_BUDGET_KEPT]),
        ),
        refusals=report.refusals[:REFUSALS_KEPT],
        advice=report.advice,
    )


def _spread(found: Sequence[tuple[Plan, int]], count: int) -> Iterable[tuple[Plan, int]]:
    """Some of many, evenly, with both ends."""
    if len(found) <= count:
        return found
    return [found[round(i * (len(found) - 1) / (count - 1))] for i in range(count)]

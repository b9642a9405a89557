"""What to say when there is no plan: what the budget does buy, of this model and of smaller ones.

Advice never loosens what the user asked for: another model is named only if it has a plan under the same
budget, filters and floors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from clorefleet.domain.money import format_usd, worst_rate_factor
from clorefleet.domain.plan import Plan, Requirement
from clorefleet.domain.recipe import Recipe

MODELS_NAMED_MAX = 2
CONTEXT_MIN_TOKENS = 2048
MODELS_TRIED_MAX = 32
"""Each try plans the market anew, while the user waits for a refusal."""


def advise(
    requirement: Requirement,
    recipe: Recipe,
    over_budget: Iterable[Plan],
    *,
    others: Iterable[Recipe],
    best_plan: Callable[[Requirement, Recipe], Plan | None],
) -> tuple[str, ...]:
    """Sentences for the user. `best_plan` plans another wish, or another model."""
    return (
        *_hours(requirement, over_budget),
        *_less_context(requirement, recipe, best_plan),
        *_smaller_models(requirement, recipe, others, best_plan),
    )


def _hours(requirement: Requirement, over_budget: Iterable[Plan]) -> tuple[str, ...]:
    """How long the budget lasts on the nearest plan, its start paid anew each day."""
    nearest = next(iter(over_budget), None)
    if nearest is None or requirement.budget is None:
        return ()
    price = nearest.price
    worst = worst_rate_factor(price.billed.currency)
    left = requirement.budget.per_day.amount - price.creation_fee * price.usd_per_unit * worst
    if left <= 0:
        return ()
    hours = left / (price.running_usd_per_day * worst) * 24
    text = f"{requirement.budget} would pay for about {hours:.1f} hours a day of the nearest, with its start."
    return (text,)


def _less_context(
    requirement: Requirement, recipe: Recipe, best_plan: Callable[[Requirement, Recipe], Plan | None]
) -> tuple[str, ...]:
    """The same model with the most of half, a quarter... of the context that has a plan, or of all it has."""
    asked = requirement.min_context_tokens or recipe.floors.context_tokens
    tokens = asked // 2 if asked <= recipe.max_context_tokens else recipe.max_context_tokens
    while tokens >= CONTEXT_MIN_TOKENS:
        plan = best_plan(replace(requirement, min_context_tokens=tokens), recipe)
        if plan is not None:
            return (f"--context {tokens} would do: {_one_line(plan)}",)
        tokens //= 2
    return ()


def _one_line(plan: Plan) -> str:
    return (
        f"{plan.setup.checkpoint} on {plan.offer.gpu_summary}, "
        f"${format_usd(plan.price.all_in_usd_per_day.amount)}/day all in, "
        f"about {plan.speed.decode_tokens_per_s:.1f} tok/s predicted."
    )


def _smaller_models(
    requirement: Requirement,
    recipe: Recipe,
    others: Iterable[Recipe],
    best_plan: Callable[[Requirement, Recipe], Plan | None],
) -> tuple[str, ...]:
    """The largest models below `recipe` that have a plan."""
    smaller = [each for each in others if each.parameters.total < recipe.parameters.total]
    smaller.sort(key=lambda each: (-each.parameters.total, each.name))
    named: list[str] = []
    for each in smaller[:MODELS_TRIED_MAX]:
        plan = best_plan(replace(requirement, model=each.name), each)
        if plan is None:
            continue
        named.append(f"{each.name} would run: {_one_line(plan)}")
        if len(named) == MODELS_NAMED_MAX:
            break
    return tuple(named)

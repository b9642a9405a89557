"""Replicas on servers of different owners, where that costs little.

One owner's servers fail together: one power line, one internet line, one hand on the switch.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from decimal import Decimal

from clorefleet.domain.identity import OwnerId
from clorefleet.domain.plan import Plan

EXTRA_COST = Decimal("1.10")
LEAST_SPEED = 0.9
"""Another owner may cost a tenth more a day, or be a tenth slower, than the next in rank [assumed]."""


def prefer_other_owners(plans: Iterable[Plan], held: Collection[OwnerId | None]) -> Iterator[Plan]:
    """The same plans. Where the next in rank belongs to an owner of `held`, a little dearer one of somebody
    else goes before it. An owner that the market does not name is nobody else."""
    waiting = list(plans)
    while waiting:
        chosen = waiting[0]
        if _is_known(chosen.offer.owner_id, held):
            chosen = next((each for each in waiting if _is_near(each, chosen, held)), chosen)
        waiting.remove(chosen)
        yield chosen


def spread(plans: Iterable[Plan], replicas: int) -> tuple[Plan, ...]:
    """The plans that `replicas` empty slots would take one after the other, each on a server of its own."""
    left = list(plans)
    taken: list[Plan] = []
    while left and len(taken) < replicas:
        chosen = next(prefer_other_owners(left, [each.offer.owner_id for each in taken]))
        taken.append(chosen)
        left = [each for each in left if each.offer.server_id != chosen.offer.server_id]
    return tuple(taken)


def _is_known(owner: OwnerId | None, held: Collection[OwnerId | None]) -> bool:
    """Held already, or not told apart from those held."""
    return bool(held) and (owner is None or owner in held)


def _is_near(plan: Plan, best: Plan, held: Collection[OwnerId | None]) -> bool:
    return (
        not _is_known(plan.offer.owner_id, held)
        and (plan.price.lacking is None or best.price.lacking is not None)
        and plan.price.all_in_usd_per_day.amount <= best.price.all_in_usd_per_day.amount * EXTRA_COST
        and plan.speed.decode_tokens_per_s >= best.speed.decode_tokens_per_s * LEAST_SPEED
    )

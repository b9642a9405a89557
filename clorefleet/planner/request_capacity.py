"""How much a setup could serve on its hardware: the longest context, and the most requests at one context.

Found by asking `check_fit`, so that no figure here can disagree with a verdict.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from clorefleet.domain.recipe import Recipe
from clorefleet.domain.setup import Setup
from clorefleet.planner.fit import check_fit
from clorefleet.planner.hardware import Hardware

CONTEXT_GRAIN = 256
REQUESTS_MAX = 4096


@dataclass(frozen=True, slots=True)
class Capacity:
    context_tokens: int
    """The longest context of a single request; 0 when not even an empty one fits."""
    requests: int
    """At once, each with the setup's context."""


def capacity_of(setup: Setup, recipe: Recipe, hardware: Hardware) -> Capacity:
    """What fits beside the weights as `setup` lays them out: its split is kept."""

    def fits(tokens: int, requests: int) -> bool:
        return check_fit(replace(setup, context_tokens=tokens, concurrency=requests), recipe, hardware).fits

    grains = _most(lambda n: fits(n * CONTEXT_GRAIN, 1), recipe.max_context_tokens // CONTEXT_GRAIN)
    tokens = grains * CONTEXT_GRAIN
    if tokens and fits(recipe.max_context_tokens, 1):
        tokens = recipe.max_context_tokens
    return Capacity(tokens, _most(lambda n: fits(setup.context_tokens, n), REQUESTS_MAX))


def _most(fits: Callable[[int], bool], limit: int) -> int:
    """The largest number up to `limit` that fits, where a smaller one always does too; 0 for none."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        if fits(middle):
            low = middle
        else:
            high = middle - 1
    return low

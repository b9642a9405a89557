"""From a reading of the market to ranked plans and counted refusals.

Offers are grouped by hardware shape, which is all but RAM and disk: setups are searched once per shape, and
each offer's own RAM, disk and price decide after. The order of the offers changes nothing, and equal plans
are told apart by the server's number.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from decimal import Decimal

from clorefleet.domain.money import Currency, format_usd
from clorefleet.domain.offer import MarketView, Offer
from clorefleet.domain.plan import Fit, Objective, Plan, PlanReport, Refusal, Requirement, Speed
from clorefleet.domain.recipe import Precision, Recipe
from clorefleet.domain.setup import Setup
from clorefleet.planner.advice import advise
from clorefleet.planner.cost import price_of, start_up_of
from clorefleet.planner.fit import in_room, without_room
from clorefleet.planner.gpus import GpuTable
from clorefleet.planner.hardware import Hardware, hardware_of_offer
from clorefleet.planner.search import default_precisions, setups
from clorefleet.planner.speed import predict

PLANS_MAX = 50
OVER_BUDGET_MAX = 20
MIN_RELIABILITY = Decimal("0.9")
"""Unless the user asks for another: a host that is away a tenth of the time serves nobody."""
DOWNLOAD_MAX_S = 3.5 * 3600
"""The fleet gives a server back whose weights take four hours: a plan that must fail is not offered."""
SAME_PRICE_SHARE = 0.10
"""Setups on one server differ in price only by their start-up. Within a tenth, quality and speed decide."""
SOFT_FLAGS = frozenset({"prices_disagree", "gigaspot", "cuda_unknown"})
"""Oddities of an offer that do not make its on-demand price or hardware untrustworthy."""
QUALITY = (
    Precision.BF16, Precision.FP8, Precision.Q8, Precision.Q6, Precision.Q5,
    Precision.FP4, Precision.Q4, Precision.Q3, Precision.Q2, Precision.Q1,
)  # fmt: skip
"""Best first."""
DEFAULT_CURRENCIES = (Currency.USD, Currency.CLORE, Currency.BITCOIN)


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A setup that fits a hardware shape, at its predicted speed."""

    setup: Setup
    fit: Fit
    speed: Speed


@dataclass(slots=True)
class _Refusals:
    """Counts by code; the nearest miss of each gives the words."""

    found: dict[str, tuple[str, int, str, int]] = field(default_factory=dict)
    """Code to text, count, example, distance of the nearest."""

    def add(self, code: str, text: str, offer: Offer, distance: int = 0) -> None:
        old = self.found.get(code)
        example = f"server {offer.server_id}, {offer.gpu_summary}"
        if old is None:
            self.found[code] = (text, 1, example, distance)
        elif distance < old[3] or (distance == old[3] and example < old[2]):
            self.found[code] = (text, old[1] + 1, example, distance)
        else:
            self.found[code] = (old[0], old[1] + 1, old[2], old[3])

    def listed(self) -> tuple[Refusal, ...]:
        rows = [Refusal(code, text, count, example) for code, (text, count, example, _) in self.found.items()]
        return tuple(sorted(rows, key=lambda row: (-row.count, row.code)))


def plan_requirement(
    requirement: Requirement,
    market: MarketView,
    recipe: Recipe,
    gpus: GpuTable,
    *,
    all_recipes: Collection[Recipe] = (),
    currencies: tuple[Currency, ...] = DEFAULT_CURRENCIES,
) -> PlanReport:
    """Pure: the same inputs give the same answer.

    `currencies` may be paid in, the preferred first. `all_recipes` are looked at when `recipe` has no plan.
    """
    refusals = _Refusals()
    shapes: dict[Hardware, tuple[tuple[_Candidate, ...], tuple[Fit, ...]]] = {}
    plans: list[Plan] = []
    over: list[Plan] = []
    for offer in sorted(market.offers, key=lambda each: each.server_id):
        refused = _refused_by_filters(offer, requirement)
        if refused is not None:
            refusals.add(*refused, offer)
            continue
        hardware = hardware_of_offer(offer, gpus)
        if hardware is None:
            refusals.add("gpu_unknown", "a GPU that is not in the table", offer)
            continue
        shape = without_room(hardware)
        if shape not in shapes:
            shapes[shape] = _candidates(requirement, recipe, shape)
        candidates, misses = _in_room(*shapes[shape], hardware)
        if not candidates:
            _refuse_fit(refusals, offer, max(misses, key=_nearness, default=None))
            continue
        in_time = [each for each in candidates if start_up_of(offer, each.setup).download_s <= DOWNLOAD_MAX_S]
        if not in_time:
            refusals.add("network", f"the download would take more than {DOWNLOAD_MAX_S / 3600:g} h", offer)
            continue
        chosen = _preferred(offer, in_time, requirement.objective, recipe)
        best = _best_plan(offer, chosen, requirement, market, currencies)
        if best is None:
            refusals.add("no_price", "no price in a currency that can be paid", offer)
        elif _is_over(best, requirement):
            over.append(best)
            refusals.add("over_budget", f"above the budget of {requirement.budget}", offer)
        else:
            plans.append(best)
    plans.sort(key=lambda plan: _order(plan, requirement.objective))
    over.sort(key=lambda plan: (plan.price.first_day_usd, plan.offer.server_id))
    reachable = market if plans else _within_reach(market, requirement)

    def best_of(other: Recipe) -> Plan | None:
        wish = replace(requirement, model=other.name)
        found = plan_requirement(wish, reachable, other, gpus, currencies=currencies).plans
        return found[0] if found else None

    front = _pareto(plans)
    kept = tuple(
        _with_reasons(plan, rank, plans)
        for rank, plan in enumerate(plans)
        if rank < PLANS_MAX or plan.key in front
    )
    return PlanReport(
        requirement=requirement,
        plans=kept,
        over_budget=tuple(over[:OVER_BUDGET_MAX]),
        refusals=refusals.listed(),
        offers_seen=len(market.offers),
        pareto=front,
        advice=() if plans else advise(requirement, recipe, over, others=all_recipes, best_plan=best_of),
    )


# -- one offer


def _refused_by_filters(offer: Offer, requirement: Requirement) -> tuple[str, str] | None:
    if offer.server_id in requirement.excluded_servers:
        return "excluded", "left out by you or by its record"
    if offer.is_rented:
        return "rented", "rented by others now"
    hard = [flag for flag in offer.flags if flag.code not in SOFT_FLAGS]
    if hard:
        return "flagged", f"not to be trusted, for instance: {hard[0].text}"
    if requirement.gpu and requirement.gpu.lower() not in offer.gpu_summary.lower():
        return "gpu", f"no {requirement.gpu}"
    if requirement.countries and offer.country not in requirement.countries:
        return "country", f"not in {', '.join(requirement.countries)}"
    least = requirement.min_reliability if requirement.min_reliability is not None else MIN_RELIABILITY
    if offer.reliability is None or offer.reliability < least:
        return "reliability", f"reliability below {least}"
    return None


def _within_reach(market: MarketView, requirement: Requirement) -> MarketView:
    """Only offers that the filters and the budget leave: another model's plan can be on no other."""
    budget = requirement.budget

    def is_payable(offer: Offer) -> bool:
        if budget is None:
            return True
        rates = (*offer.on_demand, *(offer.spot if requirement.spot else ()))
        prices = [market.rates.to_usd(rate) for rate in rates]
        return any(price is not None and price <= budget.per_day for price in prices)

    left = [each for each in market.offers if is_payable(each) and not _refused_by_filters(each, requirement)]
    return replace(market, offers=tuple(left))


def _candidates(
    requirement: Requirement, recipe: Recipe, hardware: Hardware
) -> tuple[tuple[_Candidate, ...], tuple[Fit, ...]]:
    """Setups that fit and keep the floors, and the verdicts on all others."""
    wanted = requirement.precisions or default_precisions(recipe)
    context = requirement.min_context_tokens or recipe.floors.context_tokens
    least_speed = requirement.min_decode_tokens_per_s or recipe.floors.decode_tokens_per_s
    found: list[_Candidate] = []
    misses: list[Fit] = []
    for setup, fit in setups(recipe, hardware, context_tokens=context, precisions=wanted):
        if context > recipe.max_context_tokens:
            misses.append(_too_much_context(fit, recipe))
            continue
        if not fit.fits:
            misses.append(fit)
            continue
        speed = predict(setup, recipe, hardware)
        if speed.decode_tokens_per_s < least_speed:
            misses.append(_too_slow(fit, speed, least_speed))
            continue
        found.append(_Candidate(setup, fit, speed))
    return tuple(found), tuple(misses)


def _in_room(
    candidates: tuple[_Candidate, ...], misses: tuple[Fit, ...], hardware: Hardware
) -> tuple[list[_Candidate], list[Fit]]:
    """The same for a server with this RAM and disk."""
    roomy = [replace(each, fit=in_room(each.fit, hardware)) for each in candidates]
    lacking = [each.fit for each in roomy if not each.fit.fits]
    return [each for each in roomy if each.fit.fits], [*misses, *lacking]


_ALMOST = ("speed", "context")
_MEMORY = ("vram", "ram", "disk")


def _nearness(fit: Fit) -> tuple[int, int, str]:
    """How near a miss was: fits but is slow, lacks memory (the less the nearer), cannot run at all."""
    kind = 2 if fit.binding in _ALMOST else 1 if fit.binding in _MEMORY else 0
    return kind, fit.margin_bytes, fit.binding


def _too_slow(fit: Fit, speed: Speed, least: float) -> Fit:
    text = f"about {speed.decode_tokens_per_s:.1f} tok/s predicted, {least:g} wanted"
    return Fit(
        False, fit.memory_per_gpu, fit.ram, fit.disk, 0, "speed", text, "--min-speed, or faster memory"
    )


def _too_much_context(fit: Fit, recipe: Recipe) -> Fit:
    text = f"the model has {recipe.max_context_tokens:,} tokens of context at most"
    return Fit(False, fit.memory_per_gpu, fit.ram, fit.disk, 0, "context", text, "a smaller --context")


_WORDS = {
    "vram": "too little GPU memory; the nearest lacks {}",
    "ram": "too little RAM; the nearest lacks {}",
    "disk": "too little free disk; the nearest lacks {}",
    "speed": "too slow: {}",
}


def _refuse_fit(refusals: _Refusals, offer: Offer, nearest: Fit | None) -> None:
    if nearest is None:
        refusals.add("precision", "no checkpoint of the wanted precision", offer)
        return
    text = _WORDS.get(nearest.binding, "{}").format(nearest.shortfall)
    cure = f" (cure: {nearest.cure})" if nearest.cure else ""
    refusals.add(nearest.binding, text + cure, offer, -nearest.margin_bytes)


def _preferred(
    offer: Offer, candidates: Iterable[_Candidate], objective: Objective, recipe: Recipe
) -> _Candidate:
    """The offer's best setup. Its price has no part in this, so a falling price never changes the setup."""
    order = {checkpoint.key: index for index, checkpoint in enumerate(recipe.checkpoints)}
    entries = [(1 + start_up_of(offer, each.setup).total_s / 86_400, each) for each in candidates]
    if objective is Objective.COST:
        limit = min(share for share, _ in entries) * (1 + SAME_PRICE_SHARE)
        entries = [entry for entry in entries if entry[0] <= limit]
    return min(entries, key=lambda entry: _preference(entry[0], entry[1], objective, order))[1]


def _preference(
    share: float, candidate: _Candidate, objective: Objective, order: dict[str, int]
) -> tuple[float | int | str, ...]:
    """Smaller is better. `share` is what a day costs here, start-up included, as a multiple of its rate."""
    setup = candidate.setup
    speed, quality = -candidate.speed.decode_tokens_per_s, QUALITY.index(setup.precision)
    last = (order[setup.checkpoint], setup.engine, setup.tensor_parallel)
    match objective:
        case Objective.COST if setup.precision in (Precision.BF16, Precision.FP8):
            # Both are the model as its maker serves it: the faster one.
            return (-1, 0, speed, share, *last)
        case Objective.COST:
            # Of a model's quantisations in one class, the recipe names its choice first.
            return (quality, order[setup.checkpoint], speed, share, *last)
        case Objective.SPEED:
            return (speed, share, quality, *last)
        case Objective.QUALITY:
            return (quality, share, speed, *last)
        case Objective.VALUE:
            together = candidate.speed.throughput_tokens_per_s or candidate.speed.decode_tokens_per_s
            return (share / together, quality, speed, *last)


def _best_plan(
    offer: Offer,
    chosen: _Candidate,
    requirement: Requirement,
    market: MarketView,
    currencies: tuple[Currency, ...],
) -> Plan | None:
    """`chosen`, rented in the better way; None when it cannot be paid."""
    # The market refuses spot orders for servers on gigaspot: `machine-is-on-gigaspot`.
    has_spot = requirement.spot and not any(flag.code == "gigaspot" for flag in offer.flags)
    plans = []
    for is_spot in (False, True) if has_spot else (False,):
        price = price_of(offer, chosen.setup, chosen.speed, market, is_spot=is_spot, currencies=currencies)
        if price is not None:
            plans.append(Plan(offer, chosen.setup, chosen.fit, chosen.speed, price))
    return min(plans, key=lambda plan: _order(plan, requirement.objective), default=None)


def _is_over(plan: Plan, requirement: Requirement) -> bool:
    budget = requirement.budget
    return budget is not None and plan.price.first_day_usd > budget.per_day.amount


# -- all of them


def _order(plan: Plan, objective: Objective) -> tuple[Decimal | float | int | str, ...]:
    """Smaller is better. The last parts make the order total."""
    cost = plan.price.all_in_usd_per_day.amount
    speed = -plan.speed.decode_tokens_per_s
    quality = QUALITY.index(plan.setup.precision)
    last = (plan.offer.server_id, plan.setup.checkpoint, plan.setup.engine)
    match objective:
        case Objective.COST:
            return (cost, quality, speed, *last)
        case Objective.SPEED:
            return (speed, cost, quality, *last)
        case Objective.QUALITY:
            return (quality, cost, speed, *last)
        case Objective.VALUE:
            value = plan.price.usd_per_million_tokens
            return (Decimal("Infinity") if value is None else value, cost, quality, *last)


def _pareto(plans: Iterable[Plan]) -> tuple[str, ...]:
    """Keys of plans that no other beats on both price and speed, cheapest first."""
    front: list[str] = []
    fastest = -1.0
    for plan in sorted(plans, key=lambda each: _order(each, Objective.COST)):
        if plan.speed.decode_tokens_per_s > fastest:
            fastest = plan.speed.decode_tokens_per_s
            front.append(plan.key)
    return tuple(front)


def _with_reasons(plan: Plan, rank: int, plans: list[Plan]) -> Plan:
    """Why this one stands where it stands, against its neighbour."""
    if rank + 1 >= len(plans):
        return plan
    following = plans[rank + 1]
    dearer = following.price.all_in_usd_per_day.amount - plan.price.all_in_usd_per_day.amount
    slower = plan.speed.decode_tokens_per_s - following.speed.decode_tokens_per_s
    reason = (
        f"against server {following.offer.server_id}: "
        f"${format_usd(abs(dearer))}/day {'less' if dearer >= 0 else 'more'}, "
        f"{abs(slower):.1f} tok/s {'faster' if slower >= 0 else 'slower'}"
    )
    return Plan(plan.offer, plan.setup, plan.fit, plan.speed, plan.price, (reason,))

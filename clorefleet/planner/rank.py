"""From a reading of the market to ranked plans and counted refusals.

Setups are searched once per hardware shape (`shapes`); each offer's own RAM, disk, line and price decide
after. The order of the offers changes nothing, and equal plans are told apart by the server's number.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from decimal import Decimal

from clorefleet.domain.money import Currency
from clorefleet.domain.offer import MarketView, Offer
from clorefleet.domain.offer_columns import BulkOffers
from clorefleet.domain.plan import Plan, PlanReport, Requirement
from clorefleet.domain.recipe import Recipe
from clorefleet.planner.advice import advise
from clorefleet.planner.calibration import UNCALIBRATED, Calibration
from clorefleet.planner.cost import CURRENCIES, StartUp, billings_of, price_of, start_up_of
from clorefleet.planner.exclusions import not_excluded
from clorefleet.planner.gpus import GpuTable
from clorefleet.planner.hardware import Hardware, hardware_of_models
from clorefleet.planner.preference import pareto, plan_key, preferred, with_reason
from clorefleet.planner.refusals import Refusals, words_of
from clorefleet.planner.shapes import Candidate, ShapeMemo, ShapeTable, in_its_room, nearest_miss
from clorefleet.planner.sieve import SIEVED_FROM, SieveLimits, sieve

PLANS_MAX = 50
OVER_BUDGET_MAX = 20
MIN_RELIABILITY = Decimal("0.9")
"""Unless the user asks for another: a host that is away a tenth of the time serves nobody."""
DOWNLOAD_MAX_S = 3.5 * 3600
"""Of image and weights. The fleet gives a server back whose weights take four hours: a plan that must fail is
not offered, and nor is one of a small model whose image alone would take that long."""
SOFT_FLAGS = frozenset({"prices_disagree", "gigaspot", "cuda_unknown"})
"""Oddities of an offer that do not make its on-demand price or hardware untrustworthy."""


def plan_requirement(
    requirement: Requirement,
    market: MarketView,
    recipe: Recipe,
    gpus: GpuTable,
    *,
    all_recipes: Collection[Recipe] = (),
    currencies: tuple[Currency, ...] = CURRENCIES,
    memo: ShapeMemo | None = None,
    calibration: Calibration = UNCALIBRATED,
) -> PlanReport:
    """Pure: the same inputs give the same answer.

    Only `currencies` may be paid in. `all_recipes` are looked at when `recipe` has no plan. `memo` keeps
    shapes from one plan to the next; it changes how soon the answer is there, never the answer. `calibration`
    corrects predicted speeds by measured ones.
    """
    memo = memo or ShapeMemo()
    report = _plan(requirement, market, recipe, gpus, currencies, memo, calibration)
    if report.plans:
        return report
    reachable = market if isinstance(market.offers, BulkOffers) else _within_reach(market, requirement)

    def best_plan(wish: Requirement, other: Recipe) -> Plan | None:
        # Without advice of its own, which would ask for advice in turn.
        found = _plan(wish, reachable, other, gpus, currencies, memo, calibration).plans
        return found[0] if found else None

    advice = advise(requirement, recipe, report.over_budget, others=all_recipes, best_plan=best_plan)
    return replace(report, advice=advice)


def _plan(
    requirement: Requirement,
    market: MarketView,
    recipe: Recipe,
    gpus: GpuTable,
    currencies: tuple[Currency, ...],
    memo: ShapeMemo,
    calibration: Calibration,
) -> PlanReport:
    objective, table = requirement.objective, memo.table(requirement, recipe, calibration)
    judge = _Judge(requirement, market, recipe, gpus, currencies, table)
    bulk = market.offers
    if isinstance(bulk, BulkOffers) and len(bulk) >= SIEVED_FROM:
        limits = SieveLimits(
            PLANS_MAX, OVER_BUDGET_MAX, float(least_reliability(requirement)), DOWNLOAD_MAX_S
        )
        sieved = sieve(bulk, requirement, market, gpus, table, currencies, limits)
        for position in sieved.positions:
            judge.look_at(bulk[position])
        judge.refusals.add_counts(sieved.counts)
    else:
        for offer in market.offers:
            judge.look_at(offer)
    plans = sorted(judge.plans, key=lambda plan: plan_key(plan, objective))
    over = sorted(judge.over, key=lambda plan: (plan.price.first_day_usd, plan.offer.server_id))
    front = pareto(plans)
    kept = tuple(
        with_reason(plan, plans[rank + 1] if rank < min(PLANS_MAX, len(plans) - 1) else None, objective)
        for rank, plan in enumerate(plans)
        if rank < PLANS_MAX or plan.key in front
    )
    return PlanReport(
        requirement=requirement,
        plans=kept,
        over_budget=tuple(over[:OVER_BUDGET_MAX]),
        refusals=judge.refusals.listed(),
        offers_seen=len(market.offers),
        pareto=front,
    )


class _Judge:
    """Sorts offers into plans, plans above the budget, and refusals."""

    def __init__(
        self,
        requirement: Requirement,
        market: MarketView,
        recipe: Recipe,
        gpus: GpuTable,
        currencies: tuple[Currency, ...],
        shapes: ShapeTable,
    ) -> None:
        self._requirement, self._recipe = requirement, recipe
        self._gpus, self._shapes = gpus, shapes
        self._billings = [billings_of(market, currencies, is_spot=is_spot) for is_spot in (False, True)]
        self._cuda = {each.server_id: each.version for each in requirement.cuda_found}
        self.plans: list[Plan] = []
        self.over: list[Plan] = []
        self.refusals = Refusals()

    def look_at(self, offer: Offer) -> None:
        if offer.server_id in self._cuda:
            offer = replace(offer, cuda_version=self._cuda[offer.server_id])
        refused = refused_by_filters(offer, self._requirement)
        if refused is not None:
            self.refusals.add(*refused, offer)
            return
        models = self._shapes.models.models(offer.gpus, self._gpus)
        if models is None:
            self.refusals.add("gpu_unknown", "a GPU that is not in the table", offer)
            return
        hardware = hardware_of_models(models, offer)
        driver = self._shapes.cuda_class(hardware.cuda_version)
        shape = self._shapes.shape_with(models, driver, hardware.ram_bandwidth_gb_s)
        roomy = in_its_room(shape, hardware)
        candidates = not_excluded(roomy, self._requirement.exclusions, offer, self._recipe)
        if roomy and not candidates:
            self.refusals.add("failed_before", "what fits here failed on a server like it", offer)
            return
        if not candidates:
            miss = nearest_miss(shape, hardware)
            if miss is None:
                self.refusals.add("precision", words_of(None), offer)
                return
            self.refusals.add(
                miss.binding,
                lambda: words_of(self._shapes.nearest_miss_on(hardware)),
                offer,
                -miss.margin_bytes,
            )
            return
        starts = [(start_up_of(offer, each.setup), each) for each in candidates]
        in_time = [(start, each) for start, each in starts if start.brought_s <= DOWNLOAD_MAX_S]
        if not in_time:
            text = f"image and weights would take more than {DOWNLOAD_MAX_S / 3600:g} h to download"
            self.refusals.add("network", text, offer)
            return
        longest = offer.max_rental_s
        served = [each for each in in_time if longest is None or each[0].total_s < longest]
        if not served:
            self.refusals.add("max_rental", "the market would end the order before it serves", offer)
            return
        start, chosen = preferred(served, self._requirement.objective, self._recipe)
        self._price(offer, hardware, start, chosen)

    def _price(self, offer: Offer, hardware: Hardware, start: StartUp, chosen: Candidate) -> None:
        """`chosen`, rented in the better way, or why it cannot be."""
        requirement, fit = self._requirement, chosen.fit_in(hardware)
        speed = self._shapes.explained_speed(chosen.setup, hardware)
        plans = []
        for is_spot in kinds_of_order(offer, requirement):
            price = price_of(
                offer,
                start,
                speed,
                self._billings[is_spot],
                budget_usd_per_day=None if requirement.budget is None else requirement.budget.per_day.amount,
                load_tokens_per_day=requirement.load_tokens_per_day,
                hosted=self._recipe.hosted_price,
            )
            if price is not None:
                floor = self._shapes.floors.decode_tokens_per_s
                plans.append(Plan(offer, chosen.setup, fit, speed, price, min_tokens_per_s=floor))
        affordable = [plan for plan in plans if not _is_over(plan, requirement)]
        best = min(affordable or plans, key=lambda plan: plan_key(plan, requirement.objective), default=None)
        if best is None:
            self.refusals.add("no_price", "no price in a currency that can be paid", offer)
        elif affordable:
            self.plans.append(best)
        else:
            self.over.append(best)
            self.refusals.add("over_budget", f"above the budget of {requirement.budget}", offer)


def kinds_of_order(offer: Offer, requirement: Requirement) -> tuple[bool, ...]:
    """On demand, spot, or both, as `is_spot`."""
    if not requirement.spot or any(flag.code == "gigaspot" for flag in offer.flags):
        # The market refuses spot orders for servers on gigaspot: `machine-is-on-gigaspot`.
        return () if requirement.spot and requirement.spot_only else (False,)
    return (True,) if requirement.spot_only else (False, True)


def refused_by_filters(offer: Offer, requirement: Requirement) -> tuple[str, str] | None:
    if offer.server_id in requirement.excluded_servers:
        return "excluded", "left out by you or by their record (`clorefleet hosts list`)"
    if offer.is_rented:
        return "rented", "rented by others now"
    hard = [flag for flag in offer.flags if flag.code not in SOFT_FLAGS]
    if hard:
        return "flagged", f"not to be trusted, for instance: {hard[0].text}"
    if requirement.gpu and requirement.gpu.lower() not in offer.gpu_summary.lower():
        return "gpu", f"no {requirement.gpu}"
    if requirement.countries and offer.country not in requirement.countries:
        return "country", f"not in {', '.join(requirement.countries)}"
    least = least_reliability(requirement)
    if offer.reliability is None or offer.reliability < least:
        return "reliability", f"reliability below {least}"
    return None


def least_reliability(requirement: Requirement) -> Decimal:
    return MIN_RELIABILITY if requirement.min_reliability is None else requirement.min_reliability


def _within_reach(market: MarketView, requirement: Requirement) -> MarketView:
    """Only offers that the filters and the budget leave: another model's plan can be on no other."""
    budget = requirement.budget

    def is_payable(offer: Offer) -> bool:
        if budget is None:
            return True
        rates = (*offer.on_demand, *(offer.spot if requirement.spot else ()))
        prices = [market.rates.to_usd(rate) for rate in rates]
        return any(price is not None and price <= budget.per_day for price in prices)

    left = [each for each in market.offers if is_payable(each) and not refused_by_filters(each, requirement)]
    return replace(market, offers=tuple(left))


def _is_over(plan: Plan, requirement: Requirement) -> bool:
    budget = requirement.budget
    return budget is not None and plan.price.first_day_usd > budget.per_day.amount

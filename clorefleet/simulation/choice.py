"""The simulated planner: every free server that has a price and a rate, cheapest first. No models."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from clorefleet.domain.money import Currency, Rate
from clorefleet.domain.offer import MarketView, Offer, RenterFees
from clorefleet.domain.plan import Fit, Plan, PlanReport, Price, Requirement, Speed
from clorefleet.domain.recipe import EngineName, Precision, WeightsLayout
from clorefleet.domain.setup import Setup

IMAGE = "simulated/engine:1"
_FITS = Fit(True, (), (), (), 1)
_SPEED = Speed(30.0, ())
_SETUP = Setup(
    model="simulated",
    checkpoint="q4",
    precision=Precision.Q4,
    layout=WeightsLayout.GGUF,
    repo="simulated/model",
    revision="main",
    files=("*.gguf",),
    checkpoint_bytes=1 << 30,
    engine=EngineName.LLAMACPP,
    image=IMAGE,
    tensor_parallel=1,
    context_tokens=4096,
    concurrency=1,
    kv_dtype="bf16",
)


@dataclass(frozen=True, slots=True)
class _Known:
    offer: Offer
    billed: Rate
    fees: RenterFees
    usd_per_unit: Decimal | None
    plan: Plan
    rank: tuple[Decimal, str]
    """The cheapest first."""


class Chooser:
    """The planner of one life. A market shows the same offers again and again: each is planned once."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, bool], _Known] = {}

    def __call__(self, requirement: Requirement, market: MarketView) -> PlanReport:
        found = [
            known
            for offer in market.offers
            if not offer.is_rented
            for is_spot in ((False, True) if requirement.spot else (False,))
            for price in (offer.spot if is_spot else offer.on_demand)
            if (known := self._planned(offer, price, market, is_spot=is_spot)) is not None
        ]
        found.sort(key=lambda known: known.rank)
        return PlanReport(requirement, tuple(known.plan for known in found), (), (), len(market.offers))

    def _planned(self, offer: Offer, billed: Rate, market: MarketView, *, is_spot: bool) -> _Known | None:
        rate = market.rates.of_currency(billed.currency)
        usd_per_unit = None if rate is None else rate.usd_per_unit
        key = (offer.server_id, is_spot)
        known = self._known.get(key)
        if (
            known is not None
            and known.offer is offer
            and known.billed is billed
            and known.fees is market.fees
            and known.usd_per_unit == usd_per_unit
        ):
            return known
        plan = _plan(offer, billed, market, is_spot=is_spot)
        if plan is None:
            return None
        rank = (plan.price.running_usd_per_day, plan.key)
        self._known[key] = _Known(offer, billed, market.fees, usd_per_unit, plan, rank)
        return self._known[key]


def _plan(offer: Offer, billed: Rate, market: MarketView, *, is_spot: bool) -> Plan | None:
    in_usd = market.rates.to_usd(billed)
    if in_usd is None:
        return None
    rate = market.rates.of_currency(billed.currency)
    return Plan(
        offer=offer,
        setup=_SETUP,
        fit=_FITS,
        speed=_SPEED,
        price=Price(
            billed=billed,
            is_spot=is_spot,
            all_in_usd_per_day=Rate.per_day(in_usd.amount, Currency.USD),
            terms=(),
            fee_percent=market.fees.percent(billed.currency, is_spot=is_spot),
            creation_fee=market.fees.creation(billed.currency),
            usd_per_unit=in_usd.amount / billed.amount if rate is None else rate.usd_per_unit,
            rate_source="simulated market",
        ),
    )

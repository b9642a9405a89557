"""Price: parts that sum to the total, money exact, paid in what the wallet holds."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clorefleet.cli.plan import nothing_fits
from clorefleet.domain.money import Currency, ExchangeRate, Money, Rate, parse_budget
from clorefleet.domain.offer import MarketRates, MarketView
from clorefleet.domain.order import Wallet
from clorefleet.domain.plan import Objective
from clorefleet.fleet import budget
from clorefleet.planner import plan_requirement
from clorefleet.planner.cost import FIRST_HOURS, INPUT_PER_OUTPUT, start_up_of
from tests.fleet import builders
from tests.fleet.builders import NOW
from tests.planner.machines import GPUS, RECIPES, machine, market, wish

TINY, GLM = RECIPES["smollm2-135m"], RECIPES["glm-5.1"]
CARD = machine("RTX 3090", 1, 24, ram_gib=64, on_demand=(Rate.per_day("2"),), spot=(Rate.per_day("1"),))
RATES = MarketRates.of(
    ExchangeRate(currency, Decimal(rate), datetime(2026, 11, 24, tzinfo=UTC), "test")
    for currency, rate in ((Currency.CLORE, "0.01"), (Currency.BITCOIN, "100000"))
)


def planned(view: MarketView, recipe=TINY, **changes):
    return plan_requirement(wish(recipe.name, **changes), view, recipe, GPUS).plans


def holding(view: MarketView, **balances: str) -> MarketView:
    wallets = tuple(
        Wallet(Currency[name], Money(Decimal(held), Currency[name])) for name, held in balances.items()
    )
    return replace(view, rates=RATES, wallets=wallets)


def term(plan, beginning: str) -> Decimal:
    return next(term.value for term in plan.price.terms if term.name.startswith(beginning))


prices = st.decimals("0.00000001", "100000", places=8)


@given(
    price=prices,
    reliability=st.decimals("0.9", "1", places=4),
    spot=st.booleans(),
    longest=st.one_of(st.none(), st.integers(3600, 3000 * 3600)),
)
@settings(max_examples=60, deadline=None)
def test_the_parts_sum_exactly_to_the_total_and_never_below_the_truth(price, reliability, spot, longest):
    rates = (Rate.per_day(price),)
    offer = replace(CARD, on_demand=rates, spot=rates, reliability=reliability, max_rental_s=longest)
    [plan] = planned(market(offer), spot=spot, spot_only=spot)
    terms = plan.price.terms
    assert sum(each.value for each in terms) == plan.price.all_in_usd_per_day.amount
    assert all(type(each.value) is Decimal and each.value >= 0 and each.source for each in terms)
    assert plan.price.all_in_usd_per_day.amount >= plan.price.running_usd_per_day
    assert plan.price.is_spot is spot


def test_a_spot_server_costs_a_new_start_for_each_interruption():
    [plan] = planned(market(CARD), spot=True, spot_only=True)
    start_s = start_up_of(CARD, plan.setup).total_s
    expected = Decimal("1.0125") * int(start_s + 1) / 86_400 + Decimal("0.1")
    assert term(plan, "expected interruptions") == pytest.approx(expected, rel=Decimal("0.001"))


def test_what_the_market_ends_sooner_spreads_its_start_over_less():
    [day], [half] = (planned(market(replace(CARD, max_rental_s=hours * 3600))) for hours in (72, 12))
    assert term(half, "creation fee") == 2 * term(day, "creation fee")
    assert "12 h at most" in half.price.terms[2].name


def test_what_the_wallet_holds_is_paid_with_though_another_coin_is_cheaper():
    both = replace(CARD, on_demand=(Rate.per_day("2"), Rate.per_day("150", Currency.CLORE)))
    assert planned(replace(market(both), rates=RATES))[0].price.billed.currency is Currency.CLORE
    for view, paid in (
        (holding(market(both), USD="10", CLORE="10000"), Currency.CLORE),
        (holding(market(both), USD="10", CLORE="1"), Currency.USD),
    ):
        [plan] = planned(view)
        assert plan.price.billed.currency is paid and plan.price.lacking is None


def test_a_plan_that_the_wallet_cannot_pay_comes_last_and_says_what_is_lacking():
    cheap = replace(CARD, server_id=1, on_demand=(Rate.per_day("100", Currency.CLORE),))
    first, last = planned(holding(market(CARD, cheap), USD="5", CLORE="0.5"))
    assert (first.offer.server_id, last.offer.server_id) == (CARD.server_id, 1)
    need = Decimal(100) * Decimal("1.05") * FIRST_HOURS / 24
    assert last.price.lacking == Money(need - Decimal("0.5"), Currency.CLORE)
    assert "the wallet can pay it" in first.reasons[0]


def first_within(text: str, *offers):
    """What is found under a budget, the first plan, and why the fleet may not rent it, at `RATES`."""
    view = replace(market(*offers), rates=RATES)
    found = plan_requirement(wish(TINY.name, budget=parse_budget(text)), view, TINY, GPUS)
    if not found.plans:
        return found, None, None
    return found, found.plans[0], budget.refusal(
        builders.deployment(budget=text), found.plans[0],
        open_leases=(), spent_today_usd=Decimal(0), now=NOW,
    )  # fmt: skip


@pytest.mark.parametrize("coin, price", [(Currency.CLORE, "1000"), (Currency.USD, "10")])
def test_the_budget_that_would_do_does(coin, price):
    """A coin's price was held at its present rate by the plan, and 5 % above it by the fleet, for good."""
    card = replace(CARD, on_demand=(Rate.per_day(price, coin),))
    report, _, _ = first_within("5/day", card)
    told = re.search(r"A budget from \$([0-9.,]+/day) would do", nothing_fits(report).remedy)[1]
    _, plan, refused = first_within(told, card)
    assert plan is not None and refused is None
    a_cent_less = f"{Decimal(told.removesuffix('/day')) - Decimal('0.01')}/day"
    assert not first_within(a_cent_less, card)[0].plans


def test_a_coin_is_not_paid_with_where_only_the_price_in_usd_is_within_the_budget():
    both = replace(CARD, on_demand=(Rate.per_day("9.40"), Rate.per_day("930", Currency.CLORE)))
    for text, paid in (("10/day", Currency.USD), ("11/day", Currency.CLORE)):
        _, plan, refused = first_within(text, both)
        assert plan.price.billed.currency is paid and refused is None


def test_without_a_look_at_the_wallets_nothing_is_said_to_be_lacking():
    assert planned(market(CARD))[0].price.lacking is None
    assert planned(holding(market(CARD)))[0].price.lacking is not None


@given(
    dollars=st.one_of(st.none(), prices), coins=st.one_of(st.none(), prices),
    held_usd=prices, held_clore=prices, cut=st.decimals("0.01", "1", places=2),
)  # fmt: skip
@settings(max_examples=80, deadline=None)
def test_a_falling_price_never_costs_more_and_stays_payable(dollars, coins, held_usd, held_clore, cut):
    def price(factor):
        rates = [(dollars, Currency.USD), (coins, Currency.CLORE)]
        listed = tuple(Rate.per_day(amount * factor, coin) for amount, coin in rates if amount is not None)
        view = holding(market(replace(CARD, on_demand=listed)), USD=str(held_usd), CLORE=str(held_clore))
        return next((plan.price for plan in planned(view)), None)

    before, after = price(Decimal(1)), price(cut)
    assert (before is None) == (after is None)
    if before is not None and (before.lacking is None or after.lacking is not None):
        assert after.all_in_usd_per_day <= before.all_in_usd_per_day
        assert after.lacking is None or before.lacking is not None


def test_a_stated_load_is_paid_for_by_as_many_servers_as_it_takes():
    [free] = planned(market(CARD))
    capacity = int(free.speed.throughput_tokens_per_s * 86_400)
    [idle] = planned(market(CARD), load_tokens_per_day=capacity // 10)
    [busy] = planned(market(CARD), load_tokens_per_day=capacity * 5 // 2)
    assert idle.price.copies_for_load == 1 and busy.price.copies_for_load == 3
    assert idle.price.usd_per_million_tokens == pytest.approx(
        free.price.usd_per_million_tokens * 10, rel=Decimal("0.001")
    )
    assert busy.price.usd_per_million_tokens == pytest.approx(
        free.price.usd_per_million_tokens * 3 / Decimal("2.5"), rel=Decimal("0.001")
    )


def test_under_a_small_load_value_prefers_the_cheaper_server_and_under_a_large_one_the_faster():
    slow = machine("RTX 3060", 1, 12, ram_gib=64, on_demand=(Rate.per_day("1"),), server_id=1)
    fast = machine("H100", 1, 80, ram_gib=64, on_demand=(Rate.per_day("1.2"),), server_id=2)
    for load, best in ((1_000_000, 1), (None, 2)):
        plans = planned(market(slow, fast), objective=Objective.VALUE, load_tokens_per_day=load)
        assert plans[0].offer.server_id == best


def test_the_break_even_load_costs_as_much_at_the_hosted_api():
    rig = machine("H200", 8, 141, on_demand=(Rate.per_day("500"),))
    [plan] = planned(market(rig), GLM)
    hosted, tokens = GLM.hosted_price, plan.price.break_even_tokens_per_day
    at_the_api = (
        tokens * (hosted.usd_per_million_output + INPUT_PER_OUTPUT * hosted.usd_per_million_input) / 10**6
    )
    assert at_the_api == pytest.approx(plan.price.all_in_usd_per_day.amount, rel=Decimal("0.0001"))
    assert plan.price.is_break_even_in_reach == (tokens <= plan.speed.throughput_tokens_per_s * 86_400)
    assert planned(market(CARD))[0].price.break_even_tokens_per_day is None

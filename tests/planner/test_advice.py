"""When there is no plan, what is named instead would truly run under the same constraints."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

from clorefleet.domain.money import Currency, ExchangeRate, Rate, parse_budget
from clorefleet.domain.offer import MarketRates
from clorefleet.planner import plan_requirement
from clorefleet.planner.advice import MODELS_NAMED_MAX, MODELS_TRIED_MAX, advise
from tests.planner.machines import GPUS, READ_AT, RECIPES, machine, market, wish

GLM = RECIPES["glm-5.1"]
RIG = machine("RTX 3090", 4, 24, ram_gib=512, on_demand=(Rate.per_day("12.4"),))
SMALL = machine("RTX 3090", 2, 24, ram_gib=128, on_demand=(Rate.per_day("2.5"),), server_id=9, country="DE")


ALL = tuple(RECIPES.values())


def report(requirement, *offers, others=ALL):
    return plan_requirement(requirement, market(*offers), GLM, GPUS, all_recipes=others)


def named(advice: tuple[str, ...]) -> list[str]:
    return [text.split(" would run", 1)[0] for text in advice if " would run" in text]


def test_smaller_models_are_named_that_have_a_plan_within_the_same_budget():
    requirement = wish(budget=parse_budget("5/day"))
    names = named(report(requirement, RIG, SMALL).advice)
    assert 1 <= len(names) <= MODELS_NAMED_MAX
    for name in names:
        assert RECIPES[name].parameters.total < GLM.parameters.total
        again = plan_requirement(
            wish(name, budget=parse_budget("5/day")), market(RIG, SMALL), RECIPES[name], GPUS
        )
        assert again.plans and again.plans[0].price.first_day_usd <= 5


def test_advice_keeps_the_users_filters():
    assert named(report(wish(budget=parse_budget("5/day"), countries=("DE",)), RIG, SMALL).advice)
    assert not named(report(wish(budget=parse_budget("5/day"), countries=("FR",)), RIG, SMALL).advice)


def test_the_hours_that_a_budget_buys_do_not_pass_it():
    requirement = wish(budget=parse_budget("5/day"))
    [text] = report(requirement, RIG, others=()).advice
    hours = Decimal(text.split("about ")[1].split(" hours")[0])
    [nearest] = report(requirement, RIG, others=()).over_budget
    spent = hours / 24 * nearest.price.running_usd_per_day + nearest.price.creation_fee
    assert Decimal("4.8") < spent < Decimal("5.03")  # the hours are shown to a tenth


def test_the_hours_that_a_budget_buys_of_a_coin_do_not_pass_it_when_the_coin_rises():
    rate = ExchangeRate(Currency.CLORE, Decimal("0.01"), READ_AT, "test")
    coin = replace(RIG, on_demand=(Rate.per_day("1000", Currency.CLORE),))
    view = replace(market(coin), rates=MarketRates.of([rate]))
    found = plan_requirement(wish(budget=parse_budget("10.6/day")), view, GLM, GPUS)
    assert found.plans == () and found.over_budget[0].price.running_usd_per_day < Decimal("10.6")
    hours = Decimal(found.advice[0].split("about ")[1].split(" hours")[0])
    assert hours < 24


def test_a_budget_below_the_creation_fee_buys_no_hours():
    assert report(wish(budget=parse_budget("0.05/day")), RIG, others=()).advice == ()


def test_there_is_no_advice_where_there_is_a_plan():
    assert report(wish(), RIG, SMALL).advice == ()


def test_the_search_for_another_model_is_bounded_and_takes_the_largest_first():
    tried: list[str] = []

    def nothing(_, recipe):
        if recipe is not GLM:
            tried.append(recipe.name)

    many = [replace(each, name=f"{each.name}-{copy}") for each in ALL for copy in range(MODELS_TRIED_MAX)]
    assert advise(wish(), GLM, (), others=many, best_plan=nothing) == ()
    assert len(tried) == MODELS_TRIED_MAX
    totals = [next(each for each in many if each.name == name).parameters.total for name in tried]
    assert totals == sorted(totals, reverse=True) and max(totals) < GLM.parameters.total


def test_less_context_is_named_where_that_is_what_was_too_much():
    requirement = wish(min_context_tokens=10**9)
    assert report(requirement, RIG).plans == ()
    [text] = [each for each in report(requirement, RIG).advice if each.startswith("--context")]
    tokens = int(text.split()[1])
    assert report(wish(min_context_tokens=tokens), RIG).plans != ()


def test_advice_asks_for_no_advice():
    """Each of some 20 contexts and models is planned once, not each under each."""
    asked: list[tuple[str, int | None]] = []

    def nothing(requirement, recipe):
        asked.append((recipe.name, requirement.min_context_tokens))

    advise(wish(min_context_tokens=10**9), GLM, (), others=ALL, best_plan=nothing)
    assert len(asked) == len(set(asked)) < 8 + len(ALL)

"""Sorting out in columns changes no answer, whatever the market, the wish, the wallets; and never raises."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clorefleet.domain.host import CudaFound
from clorefleet.domain.identity import ServerId
from clorefleet.domain.money import Currency, Money, parse_budget
from clorefleet.domain.offer import DOCUMENTED_FEES, MarketView
from clorefleet.domain.order import Wallet
from clorefleet.domain.plan import Objective
from clorefleet.domain.recipe import EngineName, Precision
from clorefleet.market.bulk import table_of_answer
from clorefleet.planner import plan_requirement
from clorefleet.planner.rank import OVER_BUDGET_MAX, PLANS_MAX
from clorefleet.planner.shapes import ShapeMemo
from clorefleet.planner.software import parse_version
from tests.market.odd_answers import bent, plain_answer
from tests.planner.machines import GPUS, RECIPES, wish

READ_AT = datetime(2026, 11, 24, tzinfo=UTC)
MEMO = ShapeMemo()
ANSWERS = {seed: json.dumps(plain_answer(seed, 240)) for seed in range(3)}

wishes = st.fixed_dictionaries(
    {
        "model": st.sampled_from(["glm-5.1", "glm-4.7-flash", "smollm2-135m"]),
        "objective": st.sampled_from(list(Objective)),
        "budget": st.sampled_from([None, "0.3/day", "3/day", "16/day", "600/day"]).map(
            lambda text: None if text is None else parse_budget(text)
        ),
        "spot": st.booleans(),
        "spot_only": st.booleans(),
        "countries": st.sampled_from([(), ("DE", "US"), ("ZZ",)]),
        "gpu": st.sampled_from(["", "", "4090", "h200"]),
        "min_reliability": st.sampled_from([None, Decimal("0"), Decimal("0.98"), Decimal("0.9957")]),
        "min_context_tokens": st.sampled_from([None, 4096, 32_768, 10**9]),
        "min_decode_tokens_per_s": st.sampled_from([None, 0.5, 20.0]),
        "precisions": st.sampled_from(
            [(), (Precision.Q4,), (Precision.BF16, Precision.FP8), (Precision.Q2,)]
        ),
        "load_tokens_per_day": st.sampled_from([None, 50_000, 10**9]),
        "excluded_servers": st.sampled_from([(), (20_014, 20_020), (10**30,)]),
    }
)
balances = st.one_of(
    st.none(), st.lists(st.sampled_from(["0", "0.001", "0.5", "40", "9999"]), min_size=3, max_size=3)
)


def views(body: bytes, held: list[str] | None) -> tuple[MarketView, MarketView]:
    table = table_of_answer(body, read_at=READ_AT)
    assert table is not None
    wallets = None
    if held is not None:
        wallets = tuple(Wallet(coin, Money(Decimal(h), coin)) for coin, h in zip(Currency, held, strict=True))
    return tuple(
        MarketView(offers, table.rates, DOCUMENTED_FEES, READ_AT, wallets) for offers in (table, tuple(table))
    )


@given(seed=st.integers(0, 10**6), bends=st.sampled_from([0, 0, 40, 400]), asked=wishes, held=balances)
@settings(max_examples=30, deadline=None)
def test_the_sieve_changes_no_answer(seed, bends, asked, held):
    answer = bent(json.loads(ANSWERS[seed % 3]), random.Random(seed), bends)
    requirement = wish(**asked)
    recipe = RECIPES[requirement.model]
    sieved, plain = (
        plan_requirement(requirement, view, recipe, GPUS, memo=MEMO)
        for view in views(json.dumps(answer).encode(), held)
    )
    assert sieved == plain


def test_a_measured_cuda_is_believed_before_the_offers_with_and_without_the_sieve():
    """All servers claim a new driver; some were found to have an old one."""
    answer = json.loads(ANSWERS[0])
    for each in answer["servers"]:
        each["cuda_version"] = "13.0"
    found = tuple(CudaFound(ServerId(each["id"]), (12, 4)) for each in answer["servers"][::2])
    requirement = wish("glm-4.5-air", cuda_found=found, engines=(EngineName.SGLANG,))
    recipe = RECIPES[requirement.model]
    sieved, plain = (
        plan_requirement(requirement, view, recipe, GPUS) for view in views(json.dumps(answer).encode(), None)
    )
    assert sieved == plain and plain.plans
    believed = plan_requirement(
        replace(requirement, cuda_found=()), views(json.dumps(answer).encode(), None)[1], recipe, GPUS
    )
    old = {each.server_id for each in found}
    assert {plan.offer.server_id for plan in believed.plans} & old
    for plan in plain.plans:
        version = (12, 4) if plan.offer.server_id in old else (13, 0)
        assert plan.offer.cuda_version == version
        assert version >= parse_version(recipe.engine(EngineName.SGLANG).min_cuda_of(plan.setup.image))


def test_offers_of_equal_price_are_told_apart_as_without_the_sieve():
    """A thousand servers that differ in nothing but the number, in an order that says nothing of it."""
    answer = json.loads(ANSWERS[0])
    [first] = [each for each in answer["servers"] if each["specs"]["gpu"] == "1x NVIDIA GeForce RTX 4090"][:1]
    numbers = random.Random(5).sample(range(10_000, 90_000), 1000)
    answer["servers"] = [first | {"id": number, "rented": False, "reliability": 0.99} for number in numbers]
    for objective in Objective:
        requirement = wish("smollm2-135m", objective=objective)
        recipe = RECIPES["smollm2-135m"]
        sieved, plain = (
            plan_requirement(requirement, view, recipe, GPUS)
            for view in views(json.dumps(answer).encode(), None)
        )
        assert sieved == plain
        assert [plan.offer.server_id for plan in sieved.plans] == sorted(numbers)[:PLANS_MAX]
        assert "only by its smaller number" in sieved.plans[0].reasons[0]


def a_free_card(answer):
    """A server with one RTX 4090, for rent and reliable."""
    card = next(each for each in answer["servers"] if each["specs"]["gpu"] == "1x NVIDIA GeForce RTX 4090")
    card |= {"rented": False, "reliability": 0.99, "gigaspot": None}
    return card


def both_ways(answer, requirement):
    """Planned with the sieve, and without."""
    recipe = RECIPES[requirement.model]
    return [
        plan_requirement(requirement, view, recipe, GPUS) for view in views(json.dumps(answer).encode(), None)
    ]


@pytest.mark.parametrize("model", ["smollm2-135m", "glm-4.7-flash", "glm-5.1"])
@pytest.mark.parametrize("gib", [1e-20, 0.0005, 0.001, 0.3])
def test_a_card_without_memory_ends_no_plan(model, gib):
    answer = json.loads(ANSWERS[0])
    card = a_free_card(answer)
    card["specs"]["gpuram"] = gib
    card["specs"].pop("gpus", None)
    sieved, plain = both_ways(answer, wish(model))
    assert sieved == plain and plain.plans
    assert card["id"] not in {plan.offer.server_id for plan in plain.plans}


@pytest.mark.parametrize("objective", list(Objective))
@pytest.mark.parametrize("bid", [1e-29, 0.5, 1e8, 1.000000001e8, 9e15, 9e17])
@pytest.mark.parametrize("coin", ["bitcoin", "CLORE-Blockchain"])
def test_a_least_bid_beyond_all_prices_ends_no_plan(coin, bid, objective):
    answer = json.loads(ANSWERS[0])
    card = a_free_card(answer)
    card["price"]["spot"] = {coin: bid}
    card["allowed_coins"] = ["USD-Blockchain", "CLORE-Blockchain", "bitcoin"]
    for only in (True, False):
        sieved, plain = both_ways(
            answer, wish("smollm2-135m", spot=True, spot_only=only, objective=objective)
        )
        assert sieved == plain and plain.plans


def test_a_trace_of_ram_is_refused_alike():
    answer = json.loads(ANSWERS[0])
    a_free_card(answer)["specs"]["ram"] = 1e-12
    sieved, plain = both_ways(answer, wish("glm-4.7-flash"))
    assert sieved == plain


def test_a_coin_without_a_rate_hides_no_plan_from_the_sieve():
    """The CLORE wallet is full, and nobody says what a CLORE is worth; USD can be paid with, and lacks."""
    answer = json.loads(ANSWERS[0])
    for server in answer["servers"]:
        for shown in ("usd", "original_usd"):
            server["price"].pop(shown, None)
        server["price"]["on_demand"] |= {"CLORE-Blockchain": 100, "USD-Blockchain": 1.5}
        server["allowed_coins"] = ["CLORE-Blockchain", "USD-Blockchain"]
    # In the order of `Currency`: USD, CLORE, BTC.
    sieved, plain = (
        plan_requirement(wish("glm-4.7-flash"), view, RECIPES["glm-4.7-flash"], GPUS)
        for view in views(json.dumps(answer).encode(), ["0", "1000000", "0"])
    )
    assert sieved == plain and plain.plans and plain.plans[0].price.lacking is not None


@given(seed=st.integers(0, 10**6), asked=wishes)
@settings(max_examples=20, deadline=None)
def test_short_rentals_and_slow_lines_are_refused_alike(seed, asked):
    answer, rng = json.loads(ANSWERS[seed % 3]), random.Random(seed)
    for server in answer["servers"]:
        server["mrl"] = rng.choice([0, 0.0001, 0.05, 0.1, 0.2, 0.4, 0.75, 1.5, 2.4999999, 6, 24])
        server["specs"]["net"]["down"] = rng.choice([0.15, 4, 5, 6, 20, 150, 900, 5000])
    sieved, plain = both_ways(answer, wish(**asked))
    assert sieved == plain


def test_the_sieve_passes_over_nearly_all():
    table = table_of_answer(json.dumps(plain_answer(1, 3000)).encode(), read_at=READ_AT)
    view = MarketView(table, table.rates, DOCUMENTED_FEES, READ_AT)
    report = plan_requirement(wish(), view, RECIPES["glm-5.1"], GPUS)
    assert report.offers_seen >= 3000 and report.plans
    assert len(table._exact) < PLANS_MAX + OVER_BUDGET_MAX + 150


@pytest.mark.parametrize("servers", [0, 1, 199, 200, 201])
def test_small_markets_are_planned_too(servers):
    answer = json.loads(ANSWERS[0])
    answer["servers"] = answer["servers"][:servers]
    for requirement in (wish(), wish("smollm2-135m", budget=parse_budget("1/day"))):
        recipe = RECIPES[requirement.model]
        sieved, plain = (
            plan_requirement(requirement, view, recipe, GPUS)
            for view in views(json.dumps(answer).encode(), None)
        )
        assert sieved == plain and sieved.offers_seen == servers

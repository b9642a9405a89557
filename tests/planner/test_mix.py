"""The cheapest set of servers that carries a load, against trying every set."""

from __future__ import annotations

import builtins
from dataclasses import replace
from decimal import Decimal
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clorefleet.domain.identity import OwnerId
from clorefleet.domain.money import Rate
from clorefleet.domain.plan import Plan, Speed
from clorefleet.planner.mix import Method, choose_mix
from tests.fleet import builders


def plan(server_id: int, usd: str, tokens: float, owner: int | None = None) -> Plan:
    made = builders.plan(server_id, usd, all_in_usd_per_day=Rate.per_day(usd), fee_percent=Decimal(0))
    owned = replace(made.offer, owner_id=None if owner is None else OwnerId(owner))
    return replace(made, offer=owned, speed=Speed(tokens, (), throughput_tokens_per_s=tokens))


def servers(mix: object) -> list[int]:
    return sorted(each.offer.server_id for each in mix.plans)  # type: ignore[attr-defined]


def test_two_small_ones_where_they_are_cheaper_than_the_large_one():
    mix = choose_mix([plan(1, "9", 300), plan(2, "4", 160), plan(3, "4", 160)], 300, replicas_max=4)
    assert servers(mix) == [2, 3] and mix.method is Method.OPTIMAL and mix.usd_per_day == 8


def test_greed_would_pay_more():
    """By price per token the first is best, and then needs a second; the exact answer takes one other."""
    plans = [plan(1, "5", 100), plan(2, "6", 110), plan(3, "5.5", 60)]
    assert servers(choose_mix(plans, 110, replicas_max=3)) == [2]


def test_the_budget_holds_and_the_shortfall_is_told():
    mix = choose_mix(
        [plan(1, "5", 100), plan(2, "5", 100)], 200, replicas_max=3, budget_usd_per_day=Decimal(9)
    )
    assert len(mix.plans) == 1 and mix.shortfall_tokens_per_s == 100
    assert mix.reason == "no allowed set carries the load"


def test_no_owner_has_more_than_allowed():
    plans = [plan(1, "1", 100, 7), plan(2, "1", 100, 7), plan(3, "2", 100, 8)]
    assert servers(choose_mix(plans, 200, replicas_max=3, per_owner=1)) == [1, 3]


def test_an_owner_without_a_name_is_one_owner():
    plans = [plan(1, "1", 100), plan(2, "1", 100), plan(3, "9", 100, 8)]
    assert servers(choose_mix(plans, 200, replicas_max=3, per_owner=1)) == [1, 3]


def test_without_a_solver_it_is_greedy_and_says_so(monkeypatch: pytest.MonkeyPatch):
    real = builtins.__import__

    def without(name: str, *args: object, **kwargs: object) -> object:
        if name == "highspy":
            raise ImportError(name)
        return real(name, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without)
    mix = choose_mix([plan(1, "1", 100), plan(2, "2", 100)], 150, replicas_max=2)
    assert mix.method is Method.GREEDY and mix.reason == "the solver is not installed"
    assert servers(mix) == [1, 2]


def test_nothing_to_take():
    assert choose_mix([], 10, replicas_max=2).shortfall_tokens_per_s == 10


_PLANS = st.lists(
    st.tuples(st.integers(1, 40), st.integers(10, 400), st.integers(1, 3)), min_size=1, max_size=7
)


@settings(deadline=None, max_examples=60)
@given(_PLANS, st.integers(1, 1200), st.integers(1, 4), st.integers(5, 120), st.integers(1, 3))
def test_it_is_never_dearer_than_the_best_of_all_sets(
    rows: list[tuple[int, int, int]], needed: int, most: int, budget: int, per_owner: int
):
    plans = [plan(i, str(usd), float(tokens), owner) for i, (usd, tokens, owner) in enumerate(rows, 1)]
    best: Decimal | None = None
    for chosen in product((0, 1), repeat=len(plans)):
        taken = [row for row, n in zip(rows, chosen, strict=True) if n]
        owners = [owner for _, _, owner in taken]
        if not 1 <= len(taken) <= most or any(owners.count(each) > per_owner for each in owners):
            continue
        cost = Decimal(sum(usd for usd, _, _ in taken))
        if sum(tokens for _, tokens, _ in taken) >= needed and cost <= budget:
            best = cost if best is None else min(best, cost)
    mix = choose_mix(
        plans, needed, replicas_max=most, budget_usd_per_day=Decimal(budget), per_owner=per_owner
    )
    owners = [each.offer.owner_id for each in mix.plans]
    assert len(mix.plans) <= most and mix.usd_per_day <= budget
    assert all(owners.count(each) <= per_owner for each in owners)
    if best is None:
        assert mix.shortfall_tokens_per_s > 0
    else:
        assert mix.method is Method.OPTIMAL and mix.usd_per_day == best and not mix.shortfall_tokens_per_s

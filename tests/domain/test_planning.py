"""Of a planning over a whole market, what somebody would ask about is kept, and no more."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

from clorefleet.domain.plan import Refusal
from clorefleet.domain.planning import BEST_KEPT, FRONT_KEPT, OVER_BUDGET_KEPT, planning_of
from tests.fleet.builders import NOW, plan, report


def test_the_best_come_first_with_their_rank_and_the_front_by_price():
    plans = (plan(7, "2.0"), plan(8, "3.0"), plan(9, "1.0"))
    found = replace(report(*plans), pareto=(plans[0].key, plans[2].key))
    kept = planning_of(found, now=NOW)
    assert [(each.server_id, each.rank) for each in kept.options] == [(7, 1), (8, 2), (9, 3)]
    assert [each.server_id for each in kept.front] == [9, 7]
    assert kept.options[0].all_in_usd_per_day == Decimal("2.1")


def test_a_thousand_plans_are_kept_bounded_with_both_ends_of_the_front():
    plans = tuple(plan(each, str(each)) for each in range(1, 1001))
    front = tuple(each.key for each in plans[500:])
    kept = planning_of(replace(report(*plans), pareto=front, over_budget=plans), now=NOW)
    assert kept.plans_found == 1000
    assert len(kept.options) == BEST_KEPT + FRONT_KEPT + OVER_BUDGET_KEPT
    assert [kept.front[0].server_id, kept.front[-1].server_id] == [501, 1000]
    assert [each.rank for each in kept.options[-OVER_BUDGET_KEPT:]] == [None] * OVER_BUDGET_KEPT


def test_what_is_above_the_budget_is_never_on_the_front():
    dear = plan(7, "90")
    kept = planning_of(replace(report(), over_budget=(dear,), pareto=(dear.key,)), now=NOW)
    assert [each.is_on_front for each in kept.options] == [False]


def test_why_the_rest_were_refused_is_kept():
    why = Refusal("vram", "8 GiB are missing", 40, "server 12")
    kept = planning_of(replace(report(), refusals=(why,), advice=("Ask for less.",)), now=NOW)
    assert kept.refusals == (why,) and kept.advice == ("Ask for less.",)

"""Replicas go to different owners where that costs little, and never further than that."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from clorefleet.domain.identity import OwnerId
from clorefleet.domain.money import Rate
from clorefleet.planner.owners import EXTRA_COST, prefer_other_owners, spread
from tests.fleet.builders import plan


def owned(server_id: int, usd: str, owner: int | None):
    base = plan(server_id, usd)
    return replace(base, offer=replace(base.offer, owner_id=None if owner is None else OwnerId(owner)))


def servers(plans) -> list[int]:
    return [each.offer.server_id for each in plans]


def test_the_second_replica_goes_to_another_owner_for_a_tenth_more():
    assert servers(spread([owned(1, "2.00", 7), owned(2, "2.01", 7), owned(3, "2.19", 8)], 2)) == [1, 3]


def test_and_stays_with_the_same_owner_where_others_cost_more():
    assert servers(spread([owned(1, "2.00", 7), owned(2, "2.01", 7), owned(3, "2.30", 8)], 2)) == [1, 2]


def test_a_slower_server_is_not_taken_for_its_owner():
    slow = replace(owned(3, "2.00", 8), speed=replace(plan().speed, decode_tokens_per_s=1.0))
    assert servers(spread([owned(1, "2.00", 7), owned(2, "2.01", 7), slow], 2)) == [1, 2]


def test_an_owner_that_is_not_named_is_nobody_else():
    assert servers(spread([owned(1, "2.00", 7), owned(2, "2.01", 7), owned(3, "2.02", None)], 2)) == [1, 2]
    assert servers(spread([owned(1, "2.00", None), owned(2, "2.01", None), owned(3, "2.02", 9)], 2)) == [1, 3]


rows = st.lists(
    st.tuples(st.decimals("1", "3", places=2), st.one_of(st.none(), st.integers(1, 4))), max_size=9
)


@given(rows=rows, held=st.sets(st.integers(1, 4)))
def test_every_plan_is_offered_once_and_none_far_above_the_next_in_rank(rows, held):
    plans = [
        owned(i + 1, str(usd), owner) for i, (usd, owner) in enumerate(sorted(rows, key=lambda row: row[0]))
    ]
    found = list(prefer_other_owners(plans, held))
    assert sorted(servers(found)) == sorted(servers(plans))
    left = list(plans)
    for each in found:
        assert each.price.all_in_usd_per_day <= Rate.per_day(
            left[0].price.all_in_usd_per_day.amount * Decimal(EXTRA_COST)
        )
        left.remove(each)


@given(rows=rows, replicas=st.integers(1, 5))
def test_each_replica_has_a_server_of_its_own(rows, replicas):
    plans = [owned(i + 1, str(usd), owner) for i, (usd, owner) in enumerate(rows)]
    found = servers(spread(plans, replicas))
    assert len(found) == len(set(found)) == min(replicas, len(plans))

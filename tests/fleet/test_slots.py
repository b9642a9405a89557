"""Which replica is kept when fewer are wanted: one that serves, answers, and costs least for what it does."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest

from clorefleet.domain.lease import Lease, Phase
from clorefleet.domain.money import Currency, Rate
from clorefleet.fleet.slots import held, surplus
from tests.fleet.builders import NOW, lease, plan


def replica(slot: int, usd_per_day: str = "2.0", phase: Phase = Phase.SERVING, **changes: object) -> Lease:
    return lease(phase=phase, lease_id=f"l{slot}", slot=slot, plan=plan(slot + 7, usd_per_day), **changes)


@pytest.mark.parametrize(
    "first, second, given_back",
    [
        (replica(0, "3.0"), replica(1, "2.0"), 0),
        (replica(0, "2.0"), replica(1, "2.0"), 1),
        (replica(0, "1.0", unhealthy_since=NOW), replica(1, "3.0"), 0),
        (replica(0, "1.0", Phase.SYNCING), replica(1, "3.0"), 0),
        (replica(0, "2.0", measured_tokens_per_s=10.0), replica(1, "3.0", measured_tokens_per_s=90.0), 0),
    ],
    ids=["dearer", "the later of equals", "silent", "still starts", "dearer for what it does"],
)
def test_of_two_the_worse_one_goes(first: Lease, second: Lease, given_back: int):
    assert [each.slot for each in surplus([first, second], 1)] == [given_back]
    assert len(held([first, second])) == 2


def test_two_servers_of_one_slot_go_together():
    pair = [replica(0, "1.0"), replica(0, "1.1"), replica(1, "5.0")]
    assert [each.slot for each in surplus(pair, 1)] == [1]
    assert Decimal(pair[0].plan.price.billed.amount) == 1


def test_of_two_the_one_goes_that_costs_more_at_the_present_rate_of_its_coin():
    """It was the cheaper one when it was rented."""
    coin, usd = replica(0, "1.0"), replica(1, "2.0")
    billed = Rate.per_day("100", Currency.CLORE)
    price = replace(coin.plan.price, billed=billed, usd_per_unit=Decimal("0.01"))
    coin = replace(coin, plan=replace(coin.plan, price=price), price=billed)
    assert surplus([coin, usd], 1) == (usd,)
    assert surplus([coin, usd], 1, {Currency.CLORE: Decimal("0.03")}) == (coin,)

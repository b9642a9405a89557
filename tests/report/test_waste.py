"""What bought nothing is named once, with the step that would save it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, timedelta
from decimal import Decimal

from hypothesis import given

from clorefleet.domain.deployment import IdlePolicy
from clorefleet.domain.host import HostFault
from clorefleet.domain.identity import ServerId
from clorefleet.domain.lease import LeaseState, Phase
from clorefleet.report.charges import charges, exact_sum
from clorefleet.report.waste import WasteKind, waste
from tests.fleet.builders import deployment
from tests.report.builders import at, books, entered, held, segment, used
from tests.report.test_cost import some_books


def waste_of(given_books, now_h: float = 10):
    return waste(charges(given_books, now=at(now_h), zone=UTC), given_books)


SERVES = (entered(Phase.RENTING, 0), entered(Phase.SERVING, 1))
FAILED = {"state": LeaseState.ENDED, "phase": Phase.ENDED, "reason": "no SSH in 20 min"}


def test_idle_hours_without_a_rule_are_answered_with_the_rule():
    [idle] = waste_of(books([segment(0, None)], held(), phases=SERVES, usage=(used(1), used(2))))
    assert (idle.kind, idle.subject, idle.usd, idle.lasted) == (
        WasteKind.IDLE, "tiny", 7, timedelta(hours=7)
    )  # fmt: skip
    assert "70 %" in idle.what and "[deployments.tiny.idle]" in idle.advice


def test_idle_hours_beside_a_rule_are_answered_with_its_terms():
    def advice(rule: IdlePolicy) -> str:
        wish = replace(deployment(), idle=rule)
        [found] = waste_of(books([segment(0, None)], held(), phases=SERVES, deployments=(wish,)))
        return found.advice

    assert "floor of 0" in advice(IdlePolicy(timedelta(hours=3), floor=1))
    assert "waits 3.0 h" in advice(IdlePolicy(timedelta(hours=3)))


def test_the_creation_fee_is_paid_for_a_start_and_is_not_idle():
    """18 minutes of a server that was ready after one: the fee falls due in minute ten, while it is idle."""
    order = segment(0, 0.3, per_day="14.4", creation_fee=Decimal("0.1"))
    phases = (entered(Phase.RENTING, 0), entered(Phase.SERVING, 1 / 60), entered(Phase.ENDED, 0.3))
    found = waste_of(books([order], held(), phases=phases))
    [idle] = [each for each in found if each.kind is WasteKind.IDLE]
    assert (idle.usd, idle.lasted) == (Decimal("0.17"), timedelta(minutes=17))
    [start] = [each for each in found if each.kind is WasteKind.START_UP]
    assert (start.usd, start.lasted) == (Decimal("0.11"), timedelta(minutes=1))


def test_an_idle_rule_is_advised_only_where_it_would_have_saved_something():
    def advice(idle_h: float, begin_h: float = 0, **changes) -> str:
        phases = (entered(Phase.RENTING, begin_h), entered(Phase.SERVING, begin_h),
                  entered(Phase.DRAINING, begin_h + idle_h))  # fmt: skip
        cut = begin_h + 0.2  # a price that changes ends no stretch, and neither does midnight
        orders = [segment(begin_h, cut), segment(cut, begin_h + idle_h)]
        [found] = waste_of(books(orders, held(), phases=phases, **changes), begin_h + idle_h)
        return found.advice

    assert "[deployments.tiny.idle]" in advice(0.6) and "[deployments.tiny.idle]" in advice(0.6, 23.7)
    short = advice(0.3)
    assert "18 min at a time, at most" in short and "an idle rule of 30 min would have saved nothing" in short
    floored = replace(deployment(), idle=IdlePolicy(timedelta(hours=1), floor=1))
    assert "an idle rule of 60 min would have saved nothing" in advice(0.6, deployments=(floored,))


def test_a_server_that_failed_before_serving_is_named_with_the_command_that_blocks_it():
    failed = held(blocks_host=True, server_id=77, **FAILED)
    phases = (entered(Phase.RENTING, 0), entered(Phase.DRAINING, 1), entered(Phase.ENDED, 2))
    [found] = waste_of(books([segment(0, 2)], failed, phases=phases))
    assert (found.kind, found.subject, found.usd) == (WasteKind.HOST_FAILED, "77", 2)
    assert "no SSH in 20 min" in found.what and "clorefleet hosts block 77" in found.advice


def test_a_server_that_fails_again_is_said_to():
    failed = held(blocks_host=True, server_id=77, **FAILED)
    faults = tuple(HostFault(ServerId(77), at(hour), "x", Decimal(1)) for hour in (0, 1))
    phases = (entered(Phase.RENTING, 0), entered(Phase.ENDED, 2))
    [found] = waste_of(books([segment(0, 2)], failed, phases=phases, faults=faults))
    assert "more than once" in found.advice


def test_a_start_that_never_served_is_waste_and_one_that_is_under_way_is_not():
    phases = (entered(Phase.RENTING, 0), entered(Phase.SYNCING, 1))
    [found] = waste_of(books([segment(0, 2)], held(**FAILED), phases=phases))
    assert (found.kind, found.usd) == (WasteKind.NEVER_SERVED, 2)
    assert waste_of(books([segment(0, None)], held(phase=Phase.SYNCING), phases=phases)) == ()


def test_paid_start_ups_are_named_where_they_are_a_large_part():
    hours = tuple(used(hour) for hour in range(24))
    long = books([segment(0, None)], held(), phases=SERVES, usage=hours)
    assert waste_of(long, 20) == ()
    [found] = waste_of(long, 3)
    assert (found.kind, found.usd) == (WasteKind.START_UP, 1)


def test_what_was_not_recorded_is_not_called_waste():
    assert waste_of(books([segment(0, 5)], held(**FAILED))) == ()


def test_cents_are_not_worth_a_sentence():
    assert waste_of(books([segment(0, None, per_day="0.02")], held(), phases=SERVES)) == ()


def test_control_characters_in_a_reason_do_not_get_through():
    failed = held(**(FAILED | {"reason": "\x1b[31mred\nline"}))
    [found] = waste_of(books([segment(0, 2)], failed, phases=(entered(Phase.RENTING, 0),)))
    assert "\x1b" not in found.what and "\n" not in found.what


@given(some_books())
def test_waste_is_never_more_than_was_spent(given_books):
    found = charges(given_books, now=at(90), zone=UTC)
    assert exact_sum(each.usd for each in waste(found, given_books)) <= exact_sum(each.usd for each in found)

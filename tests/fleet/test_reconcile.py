"""What a tick decides, one situation a test. Fault ids are those of docs/failure-model.md."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest

from clorefleet.domain.deployment import Desired
from clorefleet.domain.failure import Cause
from clorefleet.domain.identity import DeploymentId, IntentId, LeaseId, OrderId, ServerId
from clorefleet.domain.intent import Effect, Intent, IntentState
from clorefleet.domain.lease import NO_ORDER, Lease, LeaseState, Phase
from clorefleet.domain.ledger import OpenBill
from clorefleet.domain.money import Money, Rate
from clorefleet.domain.node import Discrepancy, JobReport, JobState, NodeView
from clorefleet.domain.plan import PlanReport
from clorefleet.fleet.action import (
    Adopt,
    Advance,
    Cancel,
    Disown,
    DropRent,
    End,
    Explain,
    GiveBack,
    NoteAbsence,
    NoteHealth,
    NoteProgress,
    Rent,
    Reopen,
    ReportForeign,
    Settle,
    StartWork,
)
from clorefleet.fleet.reconcile import reconcile
from tests.fleet.builders import (
    FACTS,
    NOW,
    deployment,
    lease,
    minutes,
    order,
    orders,
    plan,
    report,
    snapshot,
)

TINY = DeploymentId("tiny")
L1 = LeaseId("l1")


def decided(kind: type, **changes: object) -> list:
    return [action for action in reconcile(snapshot(**changes)) if isinstance(action, kind)]


# -- filling slots


def test_an_empty_slot_rents_the_best_plan():
    best, second = plan(1, "1.0"), plan(2, "2.0")
    assert decided(Rent, plans={TINY: report(best, second)}) == [Rent(TINY, 0, best, "slot 0 has no server")]


def test_two_deployments_never_ask_for_one_server_in_the_same_tick():
    """S2: were both in doubt, the order that shows up there would be either's."""
    other = DeploymentId("other")
    best, second = plan(1, "1.0"), plan(2, "2.0")
    rents = decided(
        Rent,
        deployments=(deployment(), deployment("other")),
        plans={TINY: report(best, second), other: report(best, second)},
    )
    assert [(each.deployment_id, each.plan) for each in rents] == [(TINY, best), (other, second)]


def test_an_order_is_adopted_by_one_lease_however_many_may_have_asked_for_it():
    doubts = tuple(
        lease(LeaseState.INTENT, Phase.RENTING, lease_id=LeaseId(name), intent_id=IntentId(f"{name}-rent"))
        for name in ("l1", "l2")
    )
    assert [each.lease_id for each in decided(Adopt, leases=doubts, orders=orders(order()))] == [L1]


def test_nothing_is_rented_while_the_order_list_cannot_be_read():
    assert decided(Rent, plans={TINY: report(plan())}, orders=None) == []


def test_nothing_is_rented_for_a_stopped_deployment():
    stopped = deployment(desired=Desired.STOPPED)
    assert decided(Rent, deployments=(stopped,), plans={TINY: report(plan())}) == []


@pytest.mark.parametrize(
    "state, phase",
    [
        (LeaseState.INTENT, Phase.RENTING),
        (LeaseState.ORDERED, Phase.WAITING),
        (LeaseState.ORDERED, Phase.SERVING),
    ],
)
def test_a_slot_with_a_lease_is_not_rented_again(state: LeaseState, phase: Phase):
    held = lease(state, phase)
    listed = orders(order()) if held.order_id else orders()
    assert decided(Rent, leases=(held,), orders=listed, plans={TINY: report(plan(2))}) == []


def test_servers_that_failed_refused_or_are_ours_are_passed_over():
    plans = {TINY: report(plan(1), plan(2), plan(3))}
    rents = decided(
        Rent,
        plans=plans,
        faulty_servers=frozenset({ServerId(1)}),
        refused_servers={TINY: frozenset({ServerId(2)})},
    )
    assert [rent.plan.offer.server_id for rent in rents] == [3]


def test_a_plan_above_the_budget_is_passed_over_for_one_inside_it():
    plans = {TINY: report(plan(1, "15.9"), plan(2, "12.0"))}
    assert [rent.plan.offer.server_id for rent in decided(Rent, plans=plans)] == [2]


def test_a_replacement_waits_until_the_failed_order_is_gone_when_the_budget_cannot_carry_both():
    failing = lease(LeaseState.ENDING, Phase.DRAINING, plan=plan(7, "10"), cancel_asked_at=NOW)
    asked = {"leases": (failing,), "orders": orders(order(price=Rate.per_day("10")))}
    assert decided(Rent, plans={TINY: report(plan(8, "10"))}, **asked) == []
    [note] = decided(Explain, plans={TINY: report(plan(8, "10"))}, **asked)
    assert "not confirmed as ended" in note.text
    assert len(decided(Rent, plans={TINY: report(plan(8, "2"))}, **asked)) == 1


def test_a_budget_that_nothing_on_the_market_keeps_is_said_to_be_too_small():
    small = PlanReport(deployment(budget="0.3/day").requirement, (), (plan(8), plan(9)), (), 2)
    [note] = decided(Explain, deployments=(deployment(budget="0.3/day"),), plans={TINY: small})
    assert "Nothing runs smollm2-135m within its budget of $0.3/day" in note.text
    assert "a budget from $2.20/day would do now (server 8)" in note.text
    [note] = decided(Explain, plans={TINY: replace(small, over_budget=())})
    assert note.text.startswith("No server on the market fits")


def test_a_deployment_gives_up_after_its_attempts_and_says_so():
    [note] = decided(Explain, attempts={TINY: 5}, plans={TINY: report(plan())})
    assert note.is_final and "5 servers were tried" in note.text
    assert decided(Rent, attempts={TINY: 5}, plans={TINY: report(plan())}) == []


def test_at_most_one_rent_per_deployment_and_tick():
    three = deployment(replicas=3)
    assert len(decided(Rent, deployments=(three,), plans={TINY: report(plan(1), plan(2))})) == 1


# -- rents in doubt (A1, A2, A5, A9)


def in_doubt(**changes: object) -> Intent:
    base = Intent(
        intent_id=IntentId("l1-rent"),
        effect=Effect.RENT,
        lease_id=L1,
        deployment_id=TINY,
        state=IntentState.UNKNOWN,
        created_at=NOW - minutes(5),
        doubted_at=NOW - minutes(4),
    )
    return replace(base, **changes)  # type: ignore[arg-type]


DOUBTFUL = lease(LeaseState.INTENT, Phase.RENTING, absent_polls=5)


def test_a_rent_in_doubt_is_adopted_when_the_list_shows_its_order():
    [adoption] = decided(Adopt, leases=(DOUBTFUL,), intents=(in_doubt(),), orders=orders(order()))
    assert adoption.order.order_id == 900


@pytest.mark.parametrize(
    "why, change",
    [
        ("another server", {"server_id": ServerId(8)}),
        ("another image", {"image": "someone/else"}),
        ("a spot order", {"is_spot": True}),
    ],
)
def test_an_order_that_is_not_what_was_asked_for_is_foreign_not_adopted(why: str, change: dict):
    listed = orders(order(**change))
    situation = {"leases": (DOUBTFUL,), "intents": (in_doubt(),), "orders": listed}
    assert decided(Adopt, **situation) == []
    assert len(decided(ReportForeign, **situation)) == 1


def test_an_order_that_was_reported_as_foreign_before_is_not_adopted():
    listed = orders(order())
    situation = {"leases": (DOUBTFUL,), "intents": (in_doubt(),), "orders": listed}
    assert decided(Adopt, foreign=frozenset({(OrderId(900), ServerId(7))}), **situation) == []


@pytest.mark.parametrize("hours", [-25, 25])
def test_an_order_is_known_as_ours_although_our_clock_was_a_day_off(hours: int):
    """D1: without this the slot was rented anew, again and again, and each order billed on as foreign."""
    listed = orders(order(created_at=NOW + minutes(60 * hours)))
    assert len(decided(Adopt, leases=(DOUBTFUL,), intents=(in_doubt(),), orders=listed)) == 1


def test_nothing_is_rented_on_a_server_where_the_list_shows_an_order():
    listed = orders(order(server_id=ServerId(7)))
    assert decided(Rent, plans={TINY: report(plan(7))}, orders=listed) == []


def test_a_clock_set_back_does_not_lock_a_slot_in_doubt_for_a_day():
    """D1, L2: no time can be measured, so that many readings must do."""
    ahead = in_doubt(doubted_at=NOW + minutes(60 * 24))
    assert decided(DropRent, leases=(DOUBTFUL,), intents=(ahead,)) == []
    long_missed = replace(DOUBTFUL, absent_polls=60)
    assert len(decided(DropRent, leases=(long_missed,), intents=(ahead,))) == 1


def test_an_order_that_ended_before_any_list_showed_it_is_adopted_for_its_bill():
    """B1, S7: the wallet ran empty seconds after the rent; what those seconds cost is counted."""
    gone = order(is_expired=True, created_at=DOUBTFUL.created_at)
    assert len(decided(Adopt, leases=(DOUBTFUL,), intents=(in_doubt(),), orders=orders(gone))) == 1
    older = order(is_expired=True, created_at=NOW - minutes(60))
    assert decided(Adopt, leases=(DOUBTFUL,), intents=(in_doubt(),), orders=orders(older)) == []


@pytest.mark.parametrize("jump", [minutes(24 * 60), minutes(-24 * 60)])
def test_an_order_is_known_by_the_markets_own_time_where_our_clock_has_jumped(jump):
    """D1, S7, S9: by our clock the rent was a day from its order, and an order of a day ago was beside it."""
    asked_at = DOUBTFUL.created_at + jump
    rent = replace(DOUBTFUL, asked_at_market=asked_at)
    gone, older = order(is_expired=True, created_at=asked_at), order(is_expired=True)
    situation = {"leases": (rent,), "intents": (in_doubt(),)}
    assert len(decided(Adopt, orders=orders(gone), **situation)) == 1
    assert decided(Adopt, orders=orders(older), **situation) == []
    dropped = replace(rent, state=LeaseState.REFUSED, phase=Phase.ENDED, refusal=NO_ORDER)
    late = order(created_at=asked_at)
    assert len(decided(Reopen, closed_leases=(dropped,), orders=orders(late))) == 1
    assert decided(Reopen, closed_leases=(dropped,), orders=orders(order())) == []


def test_an_order_on_a_server_that_the_market_refused_us_is_not_ours():
    """C4, S9: another fleet of the account rented it a moment later, with the same image."""
    refused = lease(LeaseState.REFUSED, Phase.ENDED, ended_at=NOW, refusal="OutOfFunds")
    situation = {"closed_leases": (refused,), "orders": orders(order())}
    assert decided(Reopen, **situation) == []
    assert len(decided(ReportForeign, **situation)) == 1


def test_a_new_order_with_an_old_number_is_known_by_its_server():
    """A21: it was ended and reopened by turns, for ever, under the old lease."""
    ended = lease(LeaseState.ENDED, Phase.ENDED, lease_id=LeaseId("l0"), server_id=5)
    listed = orders(order(server_id=ServerId(5), is_expired=True), order())
    situation = {"leases": (DOUBTFUL,), "closed_leases": (ended,), "intents": (in_doubt(),)}
    assert len(decided(Adopt, orders=listed, **situation)) == 1
    assert decided(Reopen, orders=listed, **situation) == []
    held = lease()
    assert decided(End, leases=(held,), closed_leases=(ended,), orders=listed) == []


UNPROVEN = lease(LeaseState.ORDERED, Phase.WAITING, is_proven=False)


def test_an_order_whose_server_does_not_know_our_key_is_disowned_not_cancelled():
    """C4, B8, S9: two fleets chase the same server; one request is lost, the other's order is not ours."""
    stranger = NodeView(trouble="it does not know our key", is_hostile=True)
    situation = {"orders": orders(order()), "nodes": {L1: stranger}}
    assert len(decided(Disown, leases=(UNPROVEN,), **situation)) == 1
    assert decided(GiveBack, leases=(UNPROVEN,), **situation) == []
    known = replace(UNPROVEN, is_proven=True)
    assert decided(Disown, leases=(known,), **situation) == []
    assert len(decided(GiveBack, leases=(known,), **situation)) == 1


@pytest.mark.parametrize("changes", [{}, {"price": Rate.per_day("9")}], ids=["as approved", "too dear"])
def test_what_a_server_says_of_our_key_counts_also_after_the_time_of_waiting(changes: dict):
    """S9: a process that slept over the limit ended somebody else's order at its first look."""
    late = replace(UNPROVEN, phase_since=NOW - minutes(60))
    stranger = NodeView(trouble="it does not know our key", is_hostile=True)
    situation = {"leases": (late,), "orders": orders(order(**changes))}
    assert len(decided(Disown, nodes={L1: stranger}, **situation)) == 1
    assert decided(Cancel, nodes={L1: stranger}, **situation) == []
    assert len(decided(Advance, nodes={L1: NodeView(host_key="ssh-ed25519 AAAA")}, **situation)) == 1


def test_an_order_for_which_no_key_was_ever_made_is_disowned_not_cancelled():
    """C1, C4, S9: killed between the intent and the key, so that nothing was sent; another fleet rented that
    server, and its order was given back when the time of waiting was up."""
    keyless = NodeView(trouble="the key is gone", lacks_key=True)
    situation = {"orders": orders(order()), "nodes": {L1: keyless}}
    assert len(decided(Disown, leases=(UNPROVEN,), **situation)) == 1
    assert decided(Disown, leases=(replace(UNPROVEN, is_proven=True),), **situation) == []


ELSEWHERE = NodeView(trouble="its login key is on another machine", key_is_elsewhere=True, is_healthy=False)


def after_takeover(kind: type, held: Lease = UNPROVEN, **changes: object) -> list:
    return decided(kind, **{"leases": (held,), "orders": orders(order()), "nodes": {L1: ELSEWHERE}} | changes)


def test_a_doubtful_order_whose_key_another_machine_has_waits_for_it_and_is_ended_then():
    """C3, S9: it was reported as foreign at once, and billed until somebody ended it by hand."""
    for kind in (Disown, Cancel, GiveBack):
        assert after_takeover(kind) == []
    late = replace(UNPROVEN, phase_since=NOW - minutes(60))
    [given] = after_takeover(GiveBack, late)
    assert not given.blocks_host and given.cause is Cause.NO_KEY_HERE, "the host did nothing wrong"


@pytest.mark.parametrize(
    "unlike", [{"created_at": NOW - minutes(60)}, {"created_at": None}, {"price": Rate.per_day("9")}]
)
def test_an_order_that_is_not_what_another_machine_asked_for_is_disowned(unlike: dict):
    """B8, S9: the user rented that server by hand an hour later, say."""
    listed = orders(order(**unlike))
    assert len(after_takeover(Disown, orders=listed)) == 1
    late = replace(UNPROVEN, phase_since=NOW - minutes(19))
    assert len(after_takeover(Disown, late, orders=listed)) == 1
    assert after_takeover(GiveBack, late, orders=listed) == []


def test_a_late_order_of_a_dropped_rent_whose_key_is_elsewhere_is_told_and_not_ended():
    """C4, S9: since the rent was dropped its server was free for anybody: what can be read is not enough."""
    reopened = lease(LeaseState.ENDING, Phase.DRAINING, is_proven=False, order_id=OrderId(900))
    just_seen = replace(reopened, phase_since=NOW - minutes(19))
    assert after_takeover(Disown, just_seen) == [], "the other machine might be back with the key until then"
    late = replace(reopened, phase_since=NOW - minutes(21))
    [told] = after_takeover(Disown, late)
    assert "login key is on another machine, which was not back within 20 min" in told.reason
    assert after_takeover(Cancel, late) == []


@pytest.mark.parametrize("view", [ELSEWHERE, NodeView(trouble="the key is gone", lacks_key=True)])
@pytest.mark.parametrize("phase", [Phase.WAITING, Phase.SERVING])
def test_no_host_is_blamed_where_only_our_key_is_missing(view: NodeView, phase: Phase):
    """After a takeover each server counted as failed, and eight of them stopped all renting."""
    hour_ago = NOW - minutes(60)
    held = lease(LeaseState.ORDERED, phase, phase_since=hour_ago, unhealthy_since=hour_ago)
    [given] = after_takeover(GiveBack, held, nodes={L1: replace(view, is_healthy=False)})
    assert not given.blocks_host and given.cause is Cause.NO_KEY_HERE


def test_what_is_not_proven_to_be_ours_is_not_cancelled_before_its_time_is_up():
    """S9: not for its price, not for a stop; the limit of the phase ends the waiting."""
    dear = orders(order(price=Rate.per_day("9")))
    stopped = deployment(desired=Desired.STOPPED)
    assert decided(Cancel, leases=(UNPROVEN,), orders=dear) == []
    assert decided(GiveBack, leases=(UNPROVEN,), orders=orders(order()), deployments=(stopped,)) == []
    late = replace(UNPROVEN, phase_since=NOW - minutes(60))
    assert len(decided(GiveBack, leases=(late,), orders=orders(order()))) == 1


def test_a_disowned_order_is_reported_and_never_reopened():
    closed = lease(LeaseState.ENDED, Phase.ENDED)
    foreign = frozenset({(OrderId(900), ServerId(7))})
    situation = {"closed_leases": (closed,), "orders": orders(order()), "foreign": foreign}
    assert decided(Reopen, **situation) == []
    assert len(decided(ReportForeign, **situation)) == 1


def test_an_order_that_is_listed_twice_is_reopened_once():
    """A10: the second time was a step that no table lists, and each tick failed while the list was so."""
    closed = lease(LeaseState.ENDED, Phase.ENDED)
    assert len(decided(Reopen, closed_leases=(closed,), orders=orders(order(), order()))) == 1


def test_an_order_of_another_lease_is_not_adopted_twice():
    other = lease(lease_id=LeaseId("l0"), order_id=OrderId(900))
    assert decided(Adopt, leases=(other, DOUBTFUL), intents=(in_doubt(),), orders=orders(order())) == []


def test_a_rent_in_doubt_is_dropped_only_after_grace_and_several_readings():
    situation = {"leases": (DOUBTFUL,), "intents": (in_doubt(),)}
    assert len(decided(DropRent, **situation)) == 1
    young = in_doubt(doubted_at=NOW - minutes(0.5))
    assert decided(DropRent, leases=(DOUBTFUL,), intents=(young,)) == []
    rarely_read = replace(DOUBTFUL, absent_polls=0)
    assert decided(DropRent, leases=(rarely_read,), intents=(in_doubt(),)) == []


def test_the_grace_of_a_doubt_is_over_by_the_markets_own_clock_too():
    """D1, C7, S2: ours jumped, or the daemon that asked was on a machine whose clock is minutes behind."""
    asked = replace(DOUBTFUL, asked_at_market=NOW - minutes(1.5))
    situation = {"leases": (asked,), "intents": (in_doubt(),)}
    early = replace(orders(), told_at=NOW)
    assert decided(DropRent, **situation, orders=early) == []
    late = replace(orders(), told_at=NOW + minutes(0.5))
    assert len(decided(DropRent, **situation, orders=late)) == 1
    # A date that never changes, from a cache say, locks no slot for ever.
    often_missed = replace(asked, absent_polls=60)
    assert len(decided(DropRent, leases=(often_missed,), intents=(in_doubt(),), orders=early)) == 1


def test_an_accepted_rent_is_looked_for_longer_than_a_doubtful_one():
    """No open intent: the market had said yes, and lists have been seen a minute late."""
    assert decided(DropRent, leases=(DOUBTFUL,), intents=()) == []
    # From the market's answer on: a request that dripped for minutes began long before.
    slow = replace(DOUBTFUL, created_at=NOW - minutes(11), phase_since=NOW - minutes(9))
    assert decided(DropRent, leases=(slow,), intents=()) == []
    old = replace(slow, phase_since=NOW - minutes(11))
    assert len(decided(DropRent, leases=(old,), intents=())) == 1


# -- orders that end


def test_one_absence_is_noted_and_the_second_ends_the_lease():
    assert decided(NoteAbsence, leases=(lease(),)) == [NoteAbsence(L1, 1)]
    assert decided(End, leases=(lease(),)) == []
    [end] = decided(End, leases=(lease(absent_polls=1),))
    assert end.settled is None


def test_an_order_shown_as_expired_ends_the_lease_with_the_markets_bill():
    listed = orders(order(is_expired=True))
    [end] = decided(End, leases=(lease(),), orders=listed)
    assert end.settled == Decimal("0.01")


def test_an_order_back_in_the_list_clears_the_absence():
    assert NoteAbsence(L1, 0) in reconcile(snapshot(leases=(lease(absent_polls=1),), orders=orders(order())))


def test_an_order_missing_from_a_list_with_unreadable_records_is_not_taken_for_ended():
    """A8."""
    torn = replace(orders(), unreadable=1)
    assert decided(End, leases=(lease(absent_polls=5),), orders=torn) == []
    situation = {"leases": (DOUBTFUL,), "intents": (in_doubt(),), "orders": torn}
    assert decided(DropRent, **situation) == []


def test_nothing_about_orders_is_decided_without_a_reading():
    actions = reconcile(snapshot(leases=(lease(absent_polls=1),), orders=None))
    assert not [a for a in actions if isinstance(a, (End, NoteAbsence, Adopt, DropRent))]


def test_a_cancel_is_repeated_until_the_list_shows_the_order_gone():
    """A14: the market says ok and the order lives on."""
    ending = lease(LeaseState.ENDING, Phase.DRAINING, cancel_asked_at=NOW - minutes(1), reason="stop")
    assert decided(Cancel, leases=(ending,), orders=orders(order())) == [Cancel(L1, OrderId(900), "stop")]
    just_asked = replace(ending, cancel_asked_at=NOW)
    assert decided(Cancel, leases=(just_asked,), orders=orders(order())) == []


def test_cancels_go_out_even_when_the_order_list_cannot_be_read():
    ending = lease(LeaseState.ENDING, Phase.DRAINING)
    assert len(decided(Cancel, leases=(ending,), orders=None)) == 1


def test_a_closed_lease_whose_order_shows_up_again_is_reopened():
    closed = lease(LeaseState.ENDED, Phase.ENDED, ended_at=NOW - minutes(2))
    [reopened] = decided(Reopen, closed_leases=(closed,), orders=orders(order()))
    assert reopened.lease_id == L1


def test_a_dropped_rent_whose_order_comes_late_is_reopened_and_so_ended():
    dropped = lease(LeaseState.REFUSED, Phase.ENDED, ended_at=NOW, refusal=NO_ORDER)
    assert len(decided(Reopen, closed_leases=(dropped,), orders=orders(order()))) == 1


def bill(lease_id: str = "l1", server_id: int = 7, **changes: object) -> OpenBill:
    base = OpenBill(OrderId(900), LeaseId(lease_id), ServerId(server_id), NOW - minutes(5))
    return replace(base, **changes)


REOPENED = lease(LeaseState.ENDING, Phase.DRAINING, is_proven=False, reason="came late")


def about_reopened(kind: type, view: NodeView | None = None, **changes: object) -> list:
    nodes = {} if view is None else {L1: view}
    return decided(kind, **{"leases": (REOPENED,), "orders": orders(order()), "nodes": nodes} | changes)


def test_of_several_dropped_rents_of_a_server_the_late_order_is_that_of_its_time():
    """Found by the simulation: tried with another rent's key, our own order was reported as a stranger's."""
    dropped = lease(LeaseState.REFUSED, Phase.ENDED, ended_at=NOW, refusal=NO_ORDER)
    earlier = replace(
        dropped, lease_id=LeaseId("l0"), created_at=dropped.created_at - minutes(8), ended_at=NOW - minutes(5)
    )
    for closed in ((earlier, dropped), (dropped, earlier)):
        [reopened] = decided(Reopen, closed_leases=closed, orders=orders(order()))
        assert reopened.lease_id == dropped.lease_id


def test_a_late_order_is_not_cancelled_before_our_key_has_opened_its_server():
    """S9, C4: another fleet rented the server of a rent that was dropped; it was taken for the late order."""
    for changes in ({}, {"orders": None}, {"orders": orders()}):
        assert about_reopened(Cancel, **changes) == []
    assert about_reopened(Cancel, NodeView(trouble="connection refused")) == []
    opened = NodeView(host_key="ssh-ed25519 A")
    assert about_reopened(Cancel, opened) == [Cancel(L1, OrderId(900), "came late")]
    asked = replace(REOPENED, cancel_asked_at=NOW - minutes(1))
    assert len(about_reopened(Cancel, leases=(asked,))) == 1


def test_a_late_order_that_our_key_does_not_open_is_reported_and_left_alone():
    assert len(about_reopened(Disown, NodeView(trouble="another key", is_hostile=True))) == 1
    waited = {"leases": (replace(REOPENED, phase_since=NOW - minutes(60)),)}
    assert len(about_reopened(Disown, **waited)) == 1
    assert about_reopened(Cancel, **waited) == []


def test_an_order_is_settled_although_its_number_is_another_orders_by_now():
    """A21, S7."""
    mine, other = order(is_expired=True), order(900, 55)
    [settled] = decided(Settle, orders=orders(other, mine), unsettled=(bill(),))
    assert settled == Settle(L1, OrderId(900), mine.spend.amount)
    assert decided(Settle, orders=orders(other), unsettled=(bill(),)) == []
    ended = replace(other, is_expired=True)
    assert decided(Settle, orders=orders(ended), unsettled=(bill(),)) == []


@pytest.mark.parametrize("newer_server", [7, 55])
def test_of_two_bills_with_one_number_each_gets_its_own_orders_figure(newer_server: int):
    """A21, S7: neither was settled when the number was given anew; the older got the newer's figure."""
    older, newer = bill("l1", started_at=NOW - minutes(600)), bill("l2", newer_server)
    first = order(is_expired=True, created_at=older.started_at, spend=Money.usd("0.6"))
    second = order(900, newer_server, is_expired=True, spend=Money.usd("0.2"))
    of_older = Settle(older.lease_id, OrderId(900), Decimal("0.6"))
    of_newer = Settle(newer.lease_id, OrderId(900), Decimal("0.2"))
    bills = {"unsettled": (older, newer)}
    for listed in (orders(first, second), orders(second, first)):
        assert set(decided(Settle, orders=listed, **bills)) == {of_older, of_newer}
    assert decided(Settle, orders=orders(first), **bills) == [of_older]
    assert decided(Settle, orders=orders(second), **bills) == [of_newer]


def test_a_foreign_order_is_reported_and_nothing_else():
    """B8: an order that the user made by hand."""
    actions = reconcile(snapshot(deployments=(), orders=orders(order(5, 55))))
    assert actions == (ReportForeign(order(5, 55)),)


def test_final_bills_are_settled_from_the_completed_list():
    done = order(800, 3, is_expired=True)
    situation = {"unsettled": (bill(server_id=3, order_id=OrderId(800)),), "orders": orders(done)}
    assert decided(Settle, **situation) == [Settle(L1, OrderId(800), Decimal("0.01"))]


def test_a_live_order_settles_nothing():
    assert decided(Settle, unsettled=(bill(),), orders=orders(order())) == []


# -- price


@pytest.mark.parametrize("listed, is_cancelled", [("2.0", False), ("2.01", True), ("1.5", False)])
def test_an_order_above_the_approved_price_is_cancelled_at_once(listed: str, is_cancelled: bool):
    situation = {"leases": (lease(),), "orders": orders(order(price=Rate.per_day(listed)))}
    assert bool(decided(Cancel, **situation)) is is_cancelled


# -- stopping


def test_stopping_drains_first_and_cancels_when_no_request_is_under_way():
    stopped = deployment(desired=Desired.STOPPED)
    serving = lease(phase=Phase.SERVING)
    listed = {"deployments": (stopped,), "orders": orders(order())}
    assert decided(GiveBack, leases=(serving,), **listed) == [GiveBack(L1, "you asked to stop")]
    draining = lease(phase=Phase.DRAINING, phase_since=NOW - minutes(0.1))
    busy = {L1: NodeView(in_flight=2)}
    assert decided(Cancel, leases=(draining,), nodes=busy, **listed) == []
    assert len(decided(Cancel, leases=(draining,), nodes={L1: NodeView()}, **listed)) == 1
    patient = replace(draining, phase_since=NOW - minutes(2))
    assert len(decided(Cancel, leases=(patient,), nodes=busy, **listed)) == 1


def test_fewer_replicas_give_back_the_highest_slots():
    kept, extra = (
        lease(phase=Phase.SERVING),
        lease(phase=Phase.SERVING, lease_id=LeaseId("l2"), slot=1, order_id=OrderId(901), plan=plan(9)),
    )
    given = decided(GiveBack, leases=(kept, extra), orders=orders(order(), order(901, 9)))
    assert [action.lease_id for action in given] == ["l2"]


# -- phases on the node


LIE = Discrepancy("gpu_count", "8", "6", is_fatal=True)
OK_JOB = JobReport(JobState.SUCCEEDED, 0)
RUNNING = JobReport(JobState.RUNNING, progress_text="half", progress_done=1, progress_total=2)
FAILED = JobReport(JobState.FAILED, 1)
LOST = JobReport(JobState.LOST)

STEPS = [
    ("SSH answers", Phase.WAITING, NodeView(host_key="ssh-ed25519 A"), Phase.PROBING),
    ("honest server", Phase.PROBING, NodeView(facts=FACTS), Phase.INSTALLING),
    ("engine is there", Phase.INSTALLING, NodeView(engine_missing=""), Phase.SYNCING),
    ("weights verified", Phase.SYNCING, NodeView(job=OK_JOB), Phase.LAUNCHING),
    ("engine ready", Phase.LAUNCHING, NodeView(job=RUNNING, is_healthy=True), Phase.VERIFYING),
    ("it answered", Phase.VERIFYING, NodeView(job=RUNNING, answered=True), Phase.SERVING),
]


@pytest.mark.parametrize("name, phase, view, following", STEPS, ids=[step[0] for step in STEPS])
def test_a_replica_goes_on_when_its_phase_is_done(name: str, phase: Phase, view: NodeView, following: Phase):
    held = lease(phase=phase)
    [step] = decided(Advance, leases=(held,), orders=orders(order()), nodes={L1: view})
    assert step.phase is following


@pytest.mark.parametrize("phase", [step[1] for step in STEPS])
def test_a_phase_with_nothing_to_see_only_reports_progress(phase: Phase):
    actions = reconcile(
        snapshot(leases=(lease(phase=phase),), orders=orders(order()), nodes={L1: NodeView(trouble="slow")})
    )
    assert {type(action) for action in actions} == {NoteProgress}


@pytest.mark.parametrize(
    "name, phase, view",
    [
        ("changed host key", Phase.SYNCING, NodeView(trouble="key changed", is_hostile=True)),
        ("a lie about the GPUs", Phase.PROBING, NodeView(facts=FACTS, discrepancies=(LIE,))),
        ("no engine under a tag that moves", Phase.INSTALLING, NodeView(engine_missing="no llama-server")),
    ],
)
def test_a_bad_host_is_given_back_and_left_out_of_later_plans(name: str, phase: Phase, view: NodeView):
    [given] = decided(GiveBack, leases=(lease(phase=phase),), orders=orders(order()), nodes={L1: view})
    assert given.blocks_host


@pytest.mark.parametrize("phase", [Phase.SYNCING, Phase.LAUNCHING])
@pytest.mark.parametrize("ended", [FAILED, LOST])
def test_a_failed_job_is_started_again_while_attempts_are_left(phase: Phase, ended: JobReport):
    situation = {"orders": orders(order()), "nodes": {L1: NodeView(job=ended)}}
    [again] = decided(StartWork, leases=(lease(phase=phase, launches=1),), **situation)
    assert again.attempt == 2
    assert decided(StartWork, leases=(lease(phase=phase, launches=3),), **situation) == []
    assert len(decided(GiveBack, leases=(lease(phase=phase, launches=3),), **situation)) == 1


def test_an_absent_job_is_started_with_the_same_id_after_a_crash():
    """C1: killed between the intent and the start; the attempt number stays."""
    held = lease(phase=Phase.SYNCING, launches=1)
    view = NodeView(job=JobReport(JobState.ABSENT))
    [start] = decided(StartWork, leases=(held,), orders=orders(order()), nodes={L1: view})
    assert start.attempt == 1


def test_a_dead_engine_of_a_serving_replica_is_launched_again():
    held = lease(phase=Phase.SERVING, launches=1)
    actions = reconcile(snapshot(leases=(held,), orders=orders(order()), nodes={L1: NodeView(job=FAILED)}))
    assert [type(action) for action in actions] == [Advance, StartWork]


def test_a_silent_replica_is_noted_then_given_back():
    silent = {L1: NodeView(trouble="no route", is_healthy=False)}
    held = lease(phase=Phase.SERVING)
    assert len(decided(NoteHealth, leases=(held,), orders=orders(order()), nodes=silent)) == 1
    long_silent = replace(held, unhealthy_since=NOW - minutes(4))
    assert len(decided(GiveBack, leases=(long_silent,), orders=orders(order()), nodes=silent)) == 1


def test_a_clock_that_was_set_back_gives_a_silent_replica_no_more_time():
    """D1: what had been silent since "tomorrow" billed for as long as the clock needed to get there."""
    silent = {L1: NodeView(trouble="no route", is_healthy=False)}
    ahead = lease(
        LeaseState.ORDERED, Phase.SERVING, phase_since=NOW - minutes(60), unhealthy_since=NOW + minutes(600)
    )
    [noted] = decided(NoteHealth, leases=(ahead,), orders=orders(order()), nodes=silent)
    assert noted.unhealthy_since == NOW


@pytest.mark.parametrize(
    "phase", [Phase.WAITING, Phase.PROBING, Phase.INSTALLING, Phase.SYNCING, Phase.LAUNCHING, Phase.VERIFYING]
)
def test_every_bootstrap_phase_has_a_time_limit(phase: Phase):
    late = lease(phase=phase, phase_since=NOW - minutes(24 * 60))
    [given] = decided(GiveBack, leases=(late,), orders=orders(order()))
    assert "took longer" in given.reason and given.blocks_host


def test_a_serving_replica_has_no_time_limit():
    old = lease(phase=Phase.SERVING, phase_since=NOW - minutes(60 * 24 * 30))
    view = NodeView(job=RUNNING, is_healthy=True)
    assert decided(GiveBack, leases=(old,), orders=orders(order()), nodes={L1: view}) == []


@pytest.mark.parametrize(
    "waited, done, is_given_back",
    [(10, 1, False), (20, 1, True), (20, 30, False), (20, 0, True), (20, None, False), (239, 99, False)],
)
def test_weights_that_cannot_come_in_time_are_not_waited_for(
    waited: float, done: int | None, is_given_back: bool
):
    """Of a hundred parts, within the phase's four hours; before a quarter of an hour nothing is decided."""
    job = JobReport(JobState.RUNNING, progress_done=done, progress_total=None if done is None else 100)
    held = lease(phase=Phase.SYNCING, launches=1, phase_since=NOW - minutes(waited))
    back = decided(
        GiveBack,
        deployments=(deployment(),),
        leases=(held,),
        orders=orders(order()),
        nodes={held.lease_id: NodeView(job=job)},
    )
    assert bool(back) == is_given_back
    if back:
        assert back[0].blocks_host and "weights" in back[0].reason

"""What is told, and that it is told at most once, also when a process dies in the middle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal

import pytest

from clorefleet.domain.alert import Alert, AlertKind, Channel, Command, DeliveryState, NotifyPolicy
from clorefleet.domain.deployment import Desired
from clorefleet.domain.event import Event
from clorefleet.domain.identity import DeploymentId, LeaseId
from clorefleet.domain.lease import Phase
from clorefleet.domain.secret import Secret
from clorefleet.domain.wanted import Wanted
from clorefleet.fleet.alerts import of_budgets, of_standings
from clorefleet.notify.channels import NotSent, Outcome, Sent, Unclear
from clorefleet.notify.notifier import ATTEMPTS_MAX, FLOOD_MAX, SENDS_A_RUN_MAX, Notifier
from clorefleet.simulation.memory_store import MemoryStore
from clorefleet.store import leadership
from tests.fleet.builders import NOW, deployment, lease, minutes
from tests.fleet.world import VirtualClock

TINY = DeploymentId("tiny")
KEY = Secret("canary-api-key")


def channel(name: str = "tell", kinds: frozenset[AlertKind] = frozenset(AlertKind)) -> Channel:
    return Command(name, kinds, ("/bin/true",))


@dataclass
class Desk:
    """A store, a clock, and a way out that answers as it is told."""

    store: MemoryStore = field(default_factory=MemoryStore)
    clock: VirtualClock = field(default_factory=VirtualClock)
    policy: NotifyPolicy | None = field(default_factory=lambda: NotifyPolicy((channel(),)))
    answer: Callable[[], Outcome] = Sent
    sent: list[tuple[str, Alert]] = field(default_factory=list)
    is_ending: bool = False

    def __post_init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        token = leadership.acquire(self.store, "p", now=self.clock.now(), force=True)
        self.notifier = Notifier(
            self.store,
            lambda: token,
            self.clock,
            policy=lambda: self.policy,
            secrets=(KEY,),
            send=self._send,
            is_ending=lambda: self.is_ending,
        )

    def _send(self, to: Channel, alert: Alert) -> Outcome:
        self.sent.append((to.name, alert))
        return self.answer()

    def happens(self, name: str, text: str = "it failed") -> None:
        with self.store.write() as tx:
            tx.add_event(Event(self.clock.now(), name, text, TINY))

    def run(self, times: int = 1, *, every: timedelta = timedelta(seconds=3)) -> list[str]:
        """Texts that went out in these runs."""
        before = len(self.sent)
        for _ in range(times):
            self.notifier.run()
            self.clock.current += every
        return [alert.text for _, alert in self.sent[before:]]

    def states(self) -> list[DeliveryState]:
        with self.store.read() as tx:
            return [each.state for each in tx.deliveries(*DeliveryState)]


def test_a_failure_is_told_once_and_not_again_after_a_restart():
    desk = Desk()
    desk.run()
    desk.happens("server_failed", "Giving back server 7: no GPU.")
    desk.happens("phase_entered", "not worth telling")
    assert desk.run(3) == ["Giving back server 7: no GPU."]
    desk.restart()
    assert desk.run(3) == []


def test_what_was_before_the_first_look_is_not_told():
    desk = Desk()
    desk.happens("server_failed")
    assert desk.run(3) == []


def test_a_channel_that_is_new_hears_what_comes_from_now_on():
    desk = Desk()
    desk.run()
    desk.happens("server_failed", "first")
    desk.policy = NotifyPolicy((channel(), channel("late")))
    desk.run()
    desk.happens("server_failed", "second")
    desk.run()
    heard = sorted((name, alert.text) for name, alert in desk.sent)
    assert heard == [("late", "second"), ("tell", "first"), ("tell", "second")]


def test_a_channel_hears_only_the_kinds_it_asked_for():
    desk = Desk(policy=NotifyPolicy((channel(kinds=frozenset({AlertKind.BUDGET})),)))
    desk.run()
    desk.happens("server_failed")
    assert desk.run(2) == []


def test_tries_are_bounded_and_spread():
    desk = Desk(answer=lambda: NotSent("no connection"))
    desk.run()
    desk.happens("server_failed")
    desk.run(30)
    assert len(desk.sent) < ATTEMPTS_MAX
    desk.run(500, every=minutes(1))
    assert len(desk.sent) == ATTEMPTS_MAX and desk.states() == [DeliveryState.FAILED]


def test_a_refusal_that_will_not_change_is_not_tried_again():
    desk = Desk(answer=lambda: NotSent("404", may_retry=False))
    desk.run()
    desk.happens("server_failed")
    assert len(desk.run(50, every=minutes(1))) == 1


def test_what_may_have_gone_out_is_not_sent_again():
    desk = Desk(answer=lambda: Unclear("cut"))
    desk.run()
    desk.happens("server_failed")
    assert len(desk.run(50, every=minutes(1))) == 1 and desk.states() == [DeliveryState.UNKNOWN]


def test_a_process_that_died_while_sending_leaves_the_alert_at_most_once():
    def die() -> Outcome:
        raise KeyboardInterrupt

    desk = Desk(answer=die)
    desk.run()
    desk.happens("server_failed")
    with pytest.raises(KeyboardInterrupt):
        desk.run()
    desk.answer = Sent
    desk.restart()
    assert desk.run(50, every=minutes(1)) == [] and desk.states() == [DeliveryState.UNKNOWN]


def test_what_happened_before_a_restarted_daemon_knew_whom_to_tell_is_told():
    """The first tick finds the order that was lost meanwhile; the fleet file may be read later than that."""
    desk = Desk()
    desk.run()
    desk.restart()
    desk.policy, known = None, desk.policy
    desk.run()
    desk.happens("order_lost", "Order 7 was lost.")
    assert desk.run(3) == []
    desk.policy = known
    assert desk.run(3) == ["Order 7 was lost."]


def test_what_waits_for_another_try_still_waits_while_nobody_knows_whom_to_tell():
    desk = Desk(answer=lambda: NotSent("no connection"))
    desk.run()
    desk.happens("server_failed")
    desk.run()
    desk.restart()
    desk.policy, known = None, desk.policy
    desk.run(5, every=minutes(1))
    assert desk.states() == [DeliveryState.WAITING]
    desk.policy, desk.answer = known, Sent
    assert len(desk.run()) == 1 and desk.states() == [DeliveryState.SENT]


def test_nothing_is_open_while_it_is_sent():
    """The tick writes while a mail server takes its time."""
    desk = Desk()

    def write_meanwhile() -> Outcome:
        with desk.store.write() as tx:
            tx.put_deployment(deployment())
        return Sent()

    desk.answer = write_meanwhile
    desk.run()
    desk.happens("server_failed")
    assert len(desk.run()) == 1


@pytest.mark.parametrize("outcome", [NotSent("no connection"), Unclear("no answer")], ids=str)
def test_a_channel_that_does_not_answer_is_tried_once_a_run_and_the_others_hear_all(outcome: Outcome):
    """Each try takes the whole time limit, and alerts that are older stand before the others'."""
    desk = Desk(policy=NotifyPolicy((channel("deaf"), channel("heard"))))
    desk.answer = lambda: outcome if desk.sent[-1][0] == "deaf" else Sent()
    desk.run()
    for number in range(SENDS_A_RUN_MAX):
        desk.happens("server_failed", str(number))
    desk.run()
    names = [name for name, _ in desk.sent]
    assert names.count("deaf") == 1 and names.count("heard") == SENDS_A_RUN_MAX - 1
    desk.run()
    assert [name for name, _ in desk.sent].count("heard") == SENDS_A_RUN_MAX


def test_nothing_more_is_sent_once_the_end_is_asked_for_and_the_next_daemon_sends_it():
    desk = Desk()

    def end_meanwhile() -> Outcome:
        desk.is_ending = True
        return Sent()

    desk.answer = end_meanwhile
    desk.run()
    for number in range(3):
        desk.happens("server_failed", str(number))
    assert len(desk.run(3)) == 1
    desk.is_ending, desk.answer = False, Sent
    desk.restart()
    assert len(desk.run(3)) == 2 and desk.states() == [DeliveryState.SENT] * 3


def test_hostile_words_and_secrets_do_not_go_out():
    desk = Desk()
    desk.run()
    desk.happens("server_failed", f"\x1b[31m said\r\nBcc: x@y {KEY.reveal()} \u202e")
    [text] = desk.run(2)
    assert "canary" not in text and not set(text) & set("\x1b\r\n\u202e")


def test_a_storm_is_bounded():
    desk = Desk(answer=lambda: NotSent("down"))
    desk.run()
    for number in range(FLOOD_MAX * 3):
        desk.happens("server_failed", str(number))
        desk.run()
    assert len(desk.states()) <= FLOOD_MAX + 1


# -- budgets


def budget_keys(spent: str, percents: tuple = (80, 100), budget: str = "10/day") -> list[str]:
    made = of_budgets((deployment(budget=budget),), {TINY: Decimal(spent)}, None, Decimal(0), percents, NOW)
    return [alert.key.rsplit(":", 1)[-1] for alert in made]


@pytest.mark.parametrize(("spent", "told"), [("7.99", []), ("8", ["80"]), ("9.99", ["80"]), ("10", ["100"])])
def test_the_highest_share_that_was_reached_is_told(spent: str, told: list):
    assert budget_keys(spent) == told


def test_each_day_and_each_ceiling_is_told_anew():
    def key(budget: str, days: int) -> str:
        at = NOW + timedelta(days=days)
        [alert] = of_budgets((deployment(budget=budget),), {TINY: Decimal(9)}, None, Decimal(0), (80,), at)
        return alert.key

    assert len({key("10/day", 0), key("10/day", 1), key("11/day", 0)}) == 3


# -- redundancy


def story(*steps: tuple[int, int]) -> list[AlertKind]:
    """What is told when so many serve of so many wanted, step by step."""
    before: dict = {}
    kinds = []
    for serving, count in steps:
        leases = [lease(phase=Phase.SERVING, lease_id=LeaseId(str(n)), slot=n) for n in range(serving)]
        before, made = of_standings((deployment(),), leases, {TINY: Wanted(count, "")}, before, NOW)
        kinds += [alert.kind for alert in made]
    return kinds


READY, LOST = AlertKind.READY, AlertKind.REDUNDANCY


@pytest.mark.parametrize(
    ("steps", "told"),
    [
        ([(0, 1), (0, 1)], []),
        ([(0, 1), (1, 1), (1, 1)], [READY]),
        ([(2, 2), (1, 2), (1, 2), (2, 2)], [READY, LOST, LOST]),  # lost, then complete again
        ([(1, 1), (1, 3), (2, 3), (3, 3)], [READY, READY]),  # more being wanted is no loss
        ([(3, 3), (2, 2), (1, 1)], [READY]),  # fewer being wanted is none either
        ([(1, 1), (0, 0), (0, 1), (1, 1)], [READY, READY]),  # a night's rest
        ([(1, 1), (1, 2), (0, 2)], [READY, LOST]),
    ],
)
def test_only_a_replica_that_served_and_is_still_wanted_is_a_loss(steps: list, told: list):
    assert story(*steps) == told


def test_a_replica_that_does_not_answer_serves_nobody():
    ill = lease(phase=Phase.SERVING, unhealthy_since=NOW)
    after, made = of_standings((deployment(),), (ill,), {}, {}, NOW)
    assert after == {} and made == []


def test_nothing_is_told_of_what_the_user_stopped():
    stopped = deployment(desired=Desired.STOPPED)
    after, made = of_standings((stopped,), (), {}, {}, NOW)
    assert after == {} and made == []

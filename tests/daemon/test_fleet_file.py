"""An edited fleet file: what spends less is followed at once, everything else waits for `apply`."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from clorefleet.daemon.fleet_file import FileFollower
from clorefleet.domain.alert import NotifyPolicy
from clorefleet.domain.deployment import Desired, Origin
from clorefleet.domain.fleet_file import AppliedFile
from clorefleet.domain.identity import DeploymentId
from clorefleet.domain.money import parse_budget
from clorefleet.simulation.memory_store import MemoryStore
from clorefleet.store import leadership
from tests.fleet.builders import NOW, deployment
from tests.fleet.world import VirtualClock

APPLIED = """
[deployments.tiny]
model = "smollm2-135m"
budget = "16/day"
replicas = 3
"""


class Fleet:
    def __init__(self, folder: Path) -> None:
        self.file = folder / "fleet.toml"
        self.store = MemoryStore()
        self.woken = 0
        with self.store.write() as tx:
            tx.put_deployment(deployment(replicas=3, origin=Origin.FILE))
            tx.put_guard(replace(tx.guard(), per_day=parse_budget("40/day")))
            tx.put_applied_file(
                AppliedFile(str(self.file), hashlib.sha256(APPLIED.encode()).hexdigest(), NOW)
            )
        self.write(APPLIED)
        self.restart()

    def restart(self) -> None:
        token = leadership.acquire(self.store, "p", now=NOW, force=True)
        self.follower = FileFollower(self.store, lambda: token, VirtualClock(), wake=self._wake)

    def _wake(self) -> None:
        self.woken += 1

    def write(self, text: str) -> None:
        self.file.write_text(text, "utf-8")
        self.file.chmod(0o600)

    def look(self, times: int = 3) -> None:
        for _ in range(times):
            self.follower.look()

    def set(self, **values: object) -> None:
        """As other commands do."""
        with self.store.write() as tx:
            tx.put_deployment(replace(self.tiny, **values))

    def edit(self, old: str, new: str) -> None:
        assert old in APPLIED
        self.write(APPLIED.replace(old, new))
        self.look()

    @property
    def tiny(self):
        with self.store.read() as tx:
            return tx.deployment(DeploymentId("tiny"))

    @property
    def events(self) -> list[str]:
        with self.store.read() as tx:
            return [event.name for _, event in tx.events()]


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return Fleet(tmp_path)


def test_a_file_as_it_was_applied_changes_and_tells_nothing(fleet: Fleet):
    fleet.look()
    assert fleet.events == [] and fleet.tiny.replicas == 3


def test_fewer_replicas_are_followed_at_once_and_told(fleet: Fleet):
    fleet.edit("replicas = 3", "replicas = 1")
    assert fleet.tiny.replicas == 1 and fleet.events == ["fleet_file_followed"] and fleet.woken == 1
    fleet.look(5)
    assert fleet.events == ["fleet_file_followed"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("replicas = 3", "replicas = 5"),
        ('"16/day"', '"17/day"'),
        ("smollm2-135m", "glm-5.1"),
        ("tiny", "other"),
    ],
)
def test_what_may_spend_more_waits_and_is_told_once(fleet: Fleet, old: str, new: str):
    before = fleet.tiny
    fleet.edit(old, new)
    fleet.look(5)
    assert fleet.tiny == before and fleet.events == ["fleet_file_waits"] and fleet.woken == 0


def test_raising_again_what_was_lowered_waits_for_apply(fleet: Fleet):
    fleet.edit("replicas = 3", "replicas = 1")
    fleet.write(APPLIED)
    fleet.look()
    assert fleet.tiny.replicas == 1 and fleet.events[-1] == "fleet_file_waits"


def test_switching_off_is_followed(fleet: Fleet):
    fleet.edit("replicas = 3", "replicas = 3\nenabled = false")
    assert fleet.tiny.desired is Desired.STOPPED


def test_an_emptied_file_stops_nothing(fleet: Fleet):
    """An editor may leave half a file, or none of it, for a moment."""
    fleet.write("")
    fleet.look()
    assert fleet.tiny.desired is Desired.RUNNING and fleet.tiny.replicas == 3


def test_half_a_file_is_not_taken_for_one(fleet: Fleet):
    """Cut before `replicas`, it would mean one replica: it has to stay the same for two looks first."""
    fleet.write(APPLIED.replace("replicas = 3\n", ""))
    fleet.follower.look()
    fleet.write(APPLIED)
    fleet.look()
    assert fleet.tiny.replicas == 3 and fleet.events == []


def test_a_file_with_a_slip_is_told_once_with_its_place_and_changes_nothing(fleet: Fleet):
    fleet.edit("replicas = 3", "replica = 1")
    fleet.look(5)
    with fleet.store.read() as tx:
        [(_, event)] = tx.events()
    assert event.name == "fleet_file_not_followed" and ":5:1:" in event.text and "replicas" in event.text
    assert fleet.tiny.replicas == 3


def test_a_file_that_others_can_write_is_not_followed(fleet: Fleet):
    fleet.write(APPLIED.replace("replicas = 3", "replicas = 1"))
    fleet.file.chmod(0o666)
    fleet.look()
    assert fleet.tiny.replicas == 3 and fleet.events == ["fleet_file_not_followed"]


def test_a_missing_file_changes_nothing_and_is_told_once(fleet: Fleet):
    fleet.file.unlink()
    fleet.look(5)
    assert fleet.tiny.replicas == 3 and fleet.events == ["fleet_file_not_followed"]


def test_the_fleets_ceiling_is_followed_downwards(fleet: Fleet):
    for budget, expected in (("30/day", "30/day"), ("50/day", "30/day")):
        fleet.write(f'[fleet]\nbudget = "{budget}"\n' + APPLIED)
        fleet.look()
        with fleet.store.read() as tx:
            assert tx.guard().per_day == parse_budget(expected)


def test_a_restart_does_not_undo_what_was_set_since_the_file_was_applied(fleet: Fleet):
    """`clorefleet scale` says so: the next `clorefleet apply` sets the file's number again."""
    fleet.look()
    fleet.set(replicas=5, requirement=replace(fleet.tiny.requirement, budget=parse_budget("20/day")))
    with fleet.store.write() as tx:
        tx.put_guard(replace(tx.guard(), per_day=parse_budget("90/day")))
    before = fleet.tiny
    for _ in range(2):
        fleet.restart()
        fleet.look()
    assert fleet.tiny == before and fleet.events == [] and fleet.woken == 0


@pytest.mark.parametrize("is_restarted", [False, True])
def test_an_edited_comment_does_not_undo_it_either(fleet: Fleet, is_restarted: bool):
    fleet.look()
    fleet.set(replicas=5)
    fleet.edit("replicas = 3", "replicas = 3  # three")
    if is_restarted:
        fleet.restart()
        fleet.look()
    assert fleet.tiny.replicas == 5 and fleet.events == ["fleet_file_waits"]


def test_only_what_an_edit_changes_is_followed(fleet: Fleet):
    fleet.look()
    fleet.set(replicas=5)
    fleet.edit('"16/day"', '"12/day"')
    assert fleet.tiny.replicas == 5 and fleet.tiny.requirement.budget == parse_budget("12/day")
    fleet.write(APPLIED.replace("replicas = 3", "replicas = 2"))
    fleet.look()
    assert fleet.tiny.replicas == 2 and fleet.tiny.requirement.budget == parse_budget("12/day")


def test_what_was_set_after_a_followed_edit_outlives_a_restart_and_no_further_edit(fleet: Fleet):
    fleet.look()
    fleet.edit("replicas = 3", "replicas = 1")
    fleet.set(replicas=4)
    fleet.restart()
    fleet.look()
    assert fleet.tiny.replicas == 4
    fleet.edit("replicas = 3", "replicas = 2")
    assert fleet.tiny.replicas == 2


def test_an_edit_that_was_made_while_no_daemon_ran_is_followed(fleet: Fleet):
    fleet.look()
    fleet.write(APPLIED.replace("replicas = 3", "replicas = 1"))
    fleet.restart()
    fleet.look()
    assert fleet.tiny.replicas == 1


def test_what_is_applied_is_what_the_file_says_from_then_on(fleet: Fleet):
    """Also where it was edited and applied between two looks, and again set by another command."""
    fleet.look()
    text = APPLIED.replace("replicas = 3", "replicas = 4")
    fleet.write(text)
    digest = hashlib.sha256(text.encode()).hexdigest()
    with fleet.store.write() as tx:
        tx.put_applied_file(AppliedFile(str(fleet.file), digest, NOW + timedelta(hours=1)))
    fleet.set(replicas=6)
    fleet.look()
    assert fleet.tiny.replicas == 6 and fleet.events == []


def test_ways_to_be_told_are_taken_from_the_newest_readable_file(fleet: Fleet):
    fleet.write(APPLIED + '[[notify.command]]\nargv = ["/bin/true"]\n')
    fleet.look()
    [channel] = fleet.follower.notify.channels
    fleet.write("not toml")
    fleet.look()
    assert fleet.follower.notify.channels == (channel,)


def test_nobody_is_to_be_told_where_no_file_was_ever_applied() -> None:
    store = MemoryStore()
    token = leadership.acquire(store, "p", now=NOW)
    follower = FileFollower(store, lambda: token, VirtualClock())
    follower.look()
    assert follower.notify == NotifyPolicy()


@pytest.mark.parametrize("text", [None, "not toml"], ids=["missing", "invalid"])
def test_ways_to_be_told_are_not_known_while_the_file_cannot_be_read(fleet: Fleet, text: str | None):
    fleet.restart()
    assert fleet.follower.notify is None
    if text is None:
        fleet.file.unlink()
    else:
        fleet.write(text)
    fleet.look()
    assert fleet.follower.notify is None
    fleet.write(APPLIED)
    fleet.look()
    assert fleet.follower.notify == NotifyPolicy()

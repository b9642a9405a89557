"""Whoever watches a deployment sees to it that a daemon guards it."""

from __future__ import annotations

from pathlib import Path

import pytest

from clorefleet.cli import watch
from clorefleet.clock import SystemClock
from clorefleet.config.profile import Connection, Profile
from clorefleet.daemon import process
from clorefleet.domain.deployment import Origin, ScalePolicy
from clorefleet.domain.lease import Phase
from clorefleet.domain.secret import Secret
from clorefleet.domain.wanted import Wanted
from clorefleet.report.status import DeploymentStatus
from clorefleet.simulation.memory_store import MemoryStore
from clorefleet.store import leadership
from tests.fleet.builders import NOW, deployment, lease

DAEMON_PID = 17


class StillWatching(Exception):
    """It would look again."""


class Guarded:
    """A fleet whose daemon is only said to run; what the watcher does to it is written down."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, state_dir: Path) -> None:
        self.done: list[str] = []
        self.pid: int | None = DAEMON_PID
        self.store = MemoryStore()
        with self.store.write() as tx:
            tx.put_deployment(deployment("chat"))
        self.token = leadership.acquire(self.store, "daemon", now=NOW)
        self.connection = Connection(
            Profile("sandbox", state_dir), "", "", "", api_key=Secret("none"), clock=SystemClock()
        )
        monkeypatch.setattr(process, "running_pid", lambda _: self.pid)
        monkeypatch.setattr(process, "kill", lambda _: self._do("killed"))
        monkeypatch.setattr(process, "ensure_running", lambda *_: self._do("started"))
        monkeypatch.setattr(watch, "POLL_S", 0.0)

    def _do(self, what: str) -> None:
        self.done.append(what)
        self.pid = None if what == "killed" else DAEMON_PID

    def watch(self, *, looks: int, beats: bool = False) -> None:
        count = 0

        def is_done(_: DeploymentStatus) -> bool:
            nonlocal count
            count += 1
            if beats and self.token is not None:
                leadership.renew(self.store, self.token, now=NOW)
            return count > looks

        watch.Watcher(self.store, self.connection, "chat").follow(is_done)


@pytest.fixture
def fleet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Guarded:
    return Guarded(monkeypatch, tmp_path)


def test_a_daemon_that_died_is_started_again(fleet: Guarded) -> None:
    fleet.pid = None
    fleet.watch(looks=3)
    assert fleet.done == ["started"]


def test_a_daemon_that_shows_no_sign_of_life_is_ended_and_another_started(
    fleet: Guarded, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """It holds the profile's lock, so that no other could guard the deployment."""
    monkeypatch.setattr(watch, "SILENT_S_MAX", -1.0)
    fleet.watch(looks=1)
    assert fleet.done == ["killed", "started"]
    assert "no sign of life" in capfd.readouterr().err


def test_a_daemon_that_beats_is_left_alone_however_long_it_takes(
    fleet: Guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_at_s = iter(range(0, 10_000, 10))
    monkeypatch.setattr(watch.time, "monotonic", lambda: float(next(looked_at_s)))
    fleet.watch(looks=20, beats=True)
    assert fleet.done == []


def watch_looks_again(fleet: Guarded, monkeypatch: pytest.MonkeyPatch) -> bool:
    def sleep(_: float) -> None:
        raise StillWatching

    monkeypatch.setattr(watch.time, "sleep", sleep)
    monkeypatch.setattr(watch, "_show_serving", lambda *_: None)
    try:
        watch.watch_until_serving(fleet.store, fleet.connection, "chat")
    except StillWatching:
        return True
    return False


def test_a_deployment_that_slept_is_watched_until_it_serves(
    fleet: Guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`replicas = {min = 0, max = 2}`: none is wanted until the daemon has seen that it was woken."""
    sleeping = deployment(
        "chat", replicas=0, replicas_max=2, scale=ScalePolicy(), origin=Origin.FILE, woken_at=NOW
    )
    with fleet.store.write() as tx:
        tx.put_deployment(sleeping)
        tx.put_wanted(sleeping.deployment_id, Wanted(0, "nobody asks"), now=NOW)
    assert watch_looks_again(fleet, monkeypatch)
    with fleet.store.write() as tx:
        tx.put_wanted(sleeping.deployment_id, Wanted(1, "it was woken"), now=NOW)
        tx.put_lease(lease(phase=Phase.SERVING, deployment_id="chat"))
    assert not watch_looks_again(fleet, monkeypatch)


def test_all_replicas_that_load_asks_for_are_waited_for(
    fleet: Guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    with fleet.store.write() as tx:
        wish = deployment("chat", replicas=1, replicas_max=2, scale=ScalePolicy())
        tx.put_deployment(wish)
        tx.put_wanted(wish.deployment_id, Wanted(2, "much is asked"), now=NOW)
        tx.put_lease(lease(phase=Phase.SERVING, deployment_id="chat"))
    assert watch_looks_again(fleet, monkeypatch)

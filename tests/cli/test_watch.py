"""Whoever watches a deployment sees to it that a daemon guards it."""

from __future__ import annotations

from pathlib import Path

import pytest

from clorefleet.cli import watch
from clorefleet.clock import SystemClock
from clorefleet.config.profile import Connection, Profile
from clorefleet.daemon import process
from clorefleet.domain.secret import Secret
from clorefleet.report.status import DeploymentStatus
from clorefleet.simulation.memory_store import MemoryStore
from clorefleet.store import leadership
from tests.fleet.builders import NOW, deployment

DAEMON_PID = 17


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

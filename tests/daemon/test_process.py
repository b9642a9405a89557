"""Finding, stopping and, where it shows no life, killing the daemon of a profile."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from clorefleet.daemon import process

DEAF = textwrap.dedent("""
    import signal, sys, threading
    from pathlib import Path
    from clorefleet.daemon import process
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    process.take_lock(Path(sys.argv[1]))
    print("locked", flush=True)
    threading.Event().wait()
""")


@pytest.fixture
def deaf_daemon(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Holds the lock of `tmp_path` and hears nothing."""
    child = subprocess.Popen([sys.executable, "-c", DEAF, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdout.readline() == "locked\n"
    yield child
    child.kill()
    child.communicate()


def test_a_daemon_that_hears_nothing_is_killed_and_its_lock_is_free(
    deaf_daemon: subprocess.Popen[str], tmp_path: Path
) -> None:
    assert process.running_pid(tmp_path) == deaf_daemon.pid
    process.kill(tmp_path)
    assert process.running_pid(tmp_path) is None
    assert process.take_lock(tmp_path) is not None


def test_killing_where_no_daemon_runs_does_nothing(tmp_path: Path) -> None:
    process.kill(tmp_path)


# -- looking at the lock

DEAD_PID = 999_999


def a_daemon_died(folder: Path) -> None:
    """As `kill -9` leaves it: its pid is in the file, and nobody holds the lock."""
    process.lock_path(folder).write_text(str(DEAD_PID))


@contextmanager
def another_look(folder: Path) -> Iterator[int]:
    """Another command, in the middle of its look."""
    descriptor = os.open(process.lock_path(folder), os.O_RDONLY | os.O_CREAT, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def test_two_looks_at_one_moment_find_no_daemon_where_none_runs(tmp_path: Path, monkeypatch) -> None:
    """One took the other for the daemon, whose old pid may be a stranger's by now."""
    a_daemon_died(tmp_path)
    monkeypatch.setattr(os, "kill", lambda *_: pytest.fail("a stranger was signalled"))
    with another_look(tmp_path):
        assert process.running_pid(tmp_path) is None
        process.wake(tmp_path)
        assert not process.stop(tmp_path)


def test_a_look_takes_no_lock_that_would_be_taken_for_a_daemon(tmp_path: Path, monkeypatch) -> None:
    a_daemon_died(tmp_path)
    asked: list[int] = []
    real = fcntl.flock
    monkeypatch.setattr(fcntl, "flock", lambda file, how: (asked.append(how), real(file, how)))
    process.running_pid(tmp_path)
    assert asked == [fcntl.LOCK_SH | fcntl.LOCK_NB]


def test_a_daemon_starts_although_another_command_looks(tmp_path: Path, monkeypatch) -> None:
    with another_look(tmp_path) as look:
        waits: list[float] = []

        def sleep(wait_s: float) -> None:
            waits.append(wait_s)
            fcntl.flock(look, fcntl.LOCK_UN)

        monkeypatch.setattr(process.time, "sleep", sleep)
        lock = process.take_lock(tmp_path)
        assert lock is not None and len(waits) == 1 and process.running_pid(tmp_path) == os.getpid()
        os.close(lock)


def test_a_second_daemon_is_refused_and_leaves_the_first_ones_pid(
    deaf_daemon: subprocess.Popen[str], tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(process, "LOCK_S_MAX", 0.0)
    assert process.take_lock(tmp_path) is None
    assert process.running_pid(tmp_path) == deaf_daemon.pid


def test_the_pid_of_a_dead_daemon_is_gone_before_the_next_one_holds_the_lock(
    tmp_path: Path, monkeypatch
) -> None:
    """A look in that moment would find the lock held, and the old pid in it."""
    a_daemon_died(tmp_path)
    left: list[str] = []
    real = fcntl.flock

    def flock(file: int, how: int) -> None:
        real(file, how)
        if how & fcntl.LOCK_EX:
            left.append(process.lock_path(tmp_path).read_text())

    monkeypatch.setattr(fcntl, "flock", flock)
    lock = process.take_lock(tmp_path)
    assert lock is not None and left == [""]
    os.close(lock)


def test_a_clean_end_leaves_no_pid(tmp_path: Path) -> None:
    lock = process.take_lock(tmp_path)
    assert lock is not None
    process.release_lock(lock)
    assert process.lock_path(tmp_path).read_bytes() == b"" and process.running_pid(tmp_path) is None


def test_a_folder_that_is_none_has_no_daemon(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    assert process.running_pid(tmp_path / "plain" / "state") is None

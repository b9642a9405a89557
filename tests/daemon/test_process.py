"""Finding, stopping and, where it shows no life, killing the daemon of a profile."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Iterator
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

"""Start, find, wake and stop a profile's daemon. Standard library only, since every command imports it.

The daemon holds an advisory lock on `daemon.lock` for as long as it lives, with its pid inside: the
lock dies with the process, also under `kill -9`, so nobody is ever signalled by a stale pid. Who looks
takes a shared lock for a moment, which hides no daemon from another look and is taken for none. A pid that a
dead daemon left is gone before the next one holds the lock.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from clorefleet.domain.errors import DaemonError
from clorefleet.domain.text import clean_lines

START_TIMEOUT_S = 40
STOP_TIMEOUT_S = 45
LOCK_S_MAX = 1.0
"""How long a daemon that starts tries: another command may look at the lock at this moment."""
_POLL_S = 0.05
_LOCK_POLL_S = 0.01
LOG_NAME = "daemon.log"
_LOG_TAIL_BYTES = 16_384


@dataclass(frozen=True, slots=True)
class DaemonInfo:
    pid: int
    gateway_url: str
    started_at: str
    version: str
    metrics_url: str = ""


def lock_path(state_dir: Path) -> Path:
    return state_dir / "daemon.lock"


def take_lock(state_dir: Path) -> int | None:
    """Become the profile's only daemon: a descriptor to keep open, or None when another has it."""
    descriptor = os.open(lock_path(state_dir), os.O_RDWR | os.O_CREAT, 0o600)
    deadline = time.monotonic() + LOCK_S_MAX
    while not _become_holder(descriptor):
        if time.monotonic() > deadline:
            os.close(descriptor)
            return None
        time.sleep(_LOCK_POLL_S)
    os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    return descriptor


def _become_holder(descriptor: int) -> bool:
    """True with the lock held and no pid in the file."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        # No daemon lives. Emptied before it is held, or a look would take what is left for the holder's pid.
        os.ftruncate(descriptor, 0)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        # Had or not, the shared one must not stand in another's way while this one waits.
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        return False
    return True


def release_lock(descriptor: int) -> None:
    """At a clean end: no pid stays behind."""
    os.ftruncate(descriptor, 0)
    os.close(descriptor)


def running_pid(state_dir: Path) -> int | None:
    """The pid of the daemon that lives now, or None."""
    try:
        descriptor = os.open(lock_path(state_dir), os.O_RDONLY)
    except (FileNotFoundError, NotADirectoryError):
        return None
    deadline = time.monotonic() + LOCK_S_MAX
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                text = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
            else:
                return None
            if text.isdigit():
                return int(text)
            # It begins or ends in this moment.
            if time.monotonic() > deadline:
                return None
            time.sleep(_LOCK_POLL_S)
    finally:
        os.close(descriptor)


def find(state_dir: Path) -> DaemonInfo | None:
    """The daemon, once it is ready to serve; None while it starts or when none runs."""
    pid = running_pid(state_dir)
    if pid is None:
        return None
    try:
        document = json.loads((state_dir / "daemon.json").read_text("utf-8"))
        info = DaemonInfo(**document)
    except (OSError, ValueError, TypeError):
        return None
    return info if info.pid == pid else None


def ensure_running(profile_name: str, state_dir: Path) -> tuple[DaemonInfo, bool]:
    """The daemon of a profile, started if none runs; the flag tells whether this call started it.

    Raises:
        DaemonError: it did not become ready in time, with the end of its log.
    """
    info = find(state_dir)
    if info is not None:
        return info, False
    started = running_pid(state_dir) is None
    process = _spawn(profile_name, state_dir) if started else None
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        info = find(state_dir)
        if info is not None:
            return info, started
        if process is not None and process.poll() is not None and running_pid(state_dir) is None:
            break
        time.sleep(_POLL_S)
    raise DaemonError(
        "The daemon did not start. The end of its log:\n" + "\n".join(log_tail(state_dir, 12)),
        remedy="`clorefleet doctor` looks for the cause; `clorefleet daemon start --foreground` shows it.",
        money="Orders that exist go on billing; `clorefleet stop --all` ends them without a daemon.",
    )


def _spawn(profile_name: str, state_dir: Path) -> subprocess.Popen[bytes]:
    log = os.open(state_dir / LOG_NAME, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        return subprocess.Popen(
            [sys.executable, "-m", "clorefleet.daemon", "--profile", profile_name],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=state_dir,
            start_new_session=True,
        )
    finally:
        os.close(log)


def wake(state_dir: Path) -> None:
    """Ask the daemon to tick now rather than at its next time."""
    pid = running_pid(state_dir)
    if pid is not None:
        _signal(pid, signal.SIGUSR1)


def stop(state_dir: Path) -> bool:
    """Ask the daemon to finish its effect in hand and end; true when one was running.

    Raises:
        DaemonError: it still runs after the time limit.
    """
    pid = running_pid(state_dir)
    if pid is None:
        return False
    _signal(pid, signal.SIGTERM)
    _await_end(pid, state_dir)
    return True


def kill(state_dir: Path) -> None:
    """End a daemon that shows no sign of life, as a power cut would: nothing is lost by it.

    Raises:
        DaemonError: not even that ended it.
    """
    pid = running_pid(state_dir)
    if pid is not None:
        _signal(pid, signal.SIGKILL)
        _await_end(pid, state_dir)


def _await_end(pid: int, state_dir: Path) -> None:
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while running_pid(state_dir) == pid:
        if time.monotonic() > deadline:
            raise _unended(pid)
        time.sleep(_POLL_S)


def _unended(pid: int) -> DaemonError:
    return DaemonError(
        f"The daemon (pid {pid}) did not end within {STOP_TIMEOUT_S} s.",
        remedy=f"Look at `clorefleet daemon status`; `kill -9 {pid}` is safe: nothing is lost by it.",
    )


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def log_tail(state_dir: Path, lines: int) -> list[str]:
    """The end of the daemon's log, made harmless; a bounded read."""
    try:
        with (state_dir / LOG_NAME).open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - _LOG_TAIL_BYTES))
            text = file.read(_LOG_TAIL_BYTES).decode("utf-8", "replace")
    except FileNotFoundError:
        return []
    return clean_lines(text, max_lines=lines)

"""Start, find and stop the sandbox as a process of its own. Standard library only, light to import."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clorefleet import __version__
from clorefleet.domain.errors import SandboxError
from clorefleet.sandbox.clock import ClockAnchor
from clorefleet.sandbox.statedir import StateDir

START_S_MAX = 30.0
STOP_S_MAX = 15.0
_POLL_S = 0.05
_CONTROL_S_MAX = 30.0
CONTROL_HEADER = "x-sandbox-control"
_LOG_TAIL_CHARS = 1500


@dataclass(frozen=True, slots=True)
class SandboxInfo:
    """How to reach a running sandbox."""

    pid: int
    market_url: str
    hub_url: str
    control_url: str
    seed: int
    time_factor: float
    clock: ClockAnchor
    """Simulated now = base + (real now - real) x factor. After the control call `advance`: read again."""
    started_at: float
    code: str
    """`code_version` of the program that it runs; "" of one that did not say it yet."""
    state_dir: Path
    api_key: str = field(repr=False)
    control_token: str = field(repr=False)


def code_version() -> str:
    """Of the sandbox's code in this installation: the release, and a sum over its files, which a release that
    is being worked on changes without another number."""
    total = 0
    for file in sorted(Path(__file__).parent.rglob("*.py")):
        total = zlib.crc32(file.read_bytes(), total)
    return f"{__version__}+{total:08x}"


def outdated(state_dir: Path) -> str:
    """What to tell the user where the sandbox that runs is not of this installation's code; else ""."""
    info = find(state_dir)
    if info is None or info.code == code_version():
        return ""
    version = info.code.partition("+")[0] or "an older version"
    return (
        f"The sandbox's server was started by another clorefleet ({version}) and goes on with its code. "
        "`clorefleet sandbox stop` ends it; its orders wait for the next start."
    )


def find(state_dir: Path) -> SandboxInfo | None:
    """The sandbox that runs on this directory and is ready, else None."""
    state = StateDir(state_dir)
    pid = state.holder_pid()
    info = state.read_info()
    if pid is None or info is None or info.get("pid") != pid:
        return None
    return SandboxInfo(
        pid=pid,
        market_url=info["market_url"],
        hub_url=info["hub_url"],
        control_url=info["control_url"],
        seed=info["seed"],
        time_factor=info["time_factor"],
        clock=ClockAnchor(**info["clock"]),
        started_at=info["started_at"],
        code=info.get("code", ""),
        state_dir=state_dir,
        api_key=info["api_key"],
        control_token=info["control_token"],
    )


def status(state_dir: Path) -> dict[str, Any] | None:
    """What a person wants to know of the running sandbox, without its secrets; None when none runs."""
    info = find(state_dir)
    if info is None:
        return None
    shown: dict[str, Any] = {
        "pid": info.pid,
        "market_url": info.market_url,
        "hub_url": info.hub_url,
        "seed": info.seed,
        "time_factor": info.time_factor,
        "state_dir": str(state_dir),
    }
    answer = control(info, "status")
    return shown | {
        name: answer[name] for name in ("now_unix_s", "servers", "orders_live", "orders_ended", "wallets")
    }


def control(info: SandboxInfo, name: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """Ask the running sandbox's control interface: GET, or POST when there is a body.

    Raises `SandboxError` when it does not answer or refuses.
    """
    import urllib.error
    import urllib.request

    request = urllib.request.Request(  # noqa: S310 - our own loopback address
        f"{info.control_url}/{name}",
        data=None if body is None else json.dumps(body).encode(),
        headers={CONTROL_HEADER: info.control_token, "content-type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=_CONTROL_S_MAX) as answer:  # noqa: S310
            parsed: dict[str, Any] = json.load(answer)
            return parsed
    except urllib.error.HTTPError as error:
        why = error.read(_LOG_TAIL_CHARS).decode(errors="replace")
        raise SandboxError(f"The sandbox refused “{name}”: {why}") from error
    except (OSError, ValueError) as error:
        raise SandboxError(f"The sandbox did not answer “{name}”: {error}") from error


def ensure_running(
    state_dir: Path,
    *,
    seed: int | None = None,
    time_factor: float | None = None,
    extra_arguments: tuple[str, ...] = (),
    timeout_s: float = START_S_MAX,
) -> SandboxInfo:
    """The running sandbox of this directory, started detached if there is none.

    `seed`, `time_factor` and `extra_arguments` (as of `python -m clorefleet.sandbox`) count only for a
    start; None = as at the last start, or 1 at the first. Raises `SandboxError` when it does not become
    ready in time, or the directory holds a market of another seed; its log's tail is in the text.
    """
    running = find(state_dir)
    if running is not None:
        return running
    state = StateDir(state_dir)
    state.create()
    given = {"--seed": seed, "--time-factor": time_factor}
    arguments = [part for name, value in given.items() if value is not None for part in (name, str(value))]
    child = _spawn(state, [*arguments, *extra_arguments])
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        running = find(state_dir)
        if running is not None:
            return running
        # A child that finds the directory taken ends at once: another start won, and is awaited here too.
        if child.poll() is not None and not state.is_held():
            raise _not_ready(state, f"it ended with status {child.returncode}")
        time.sleep(_POLL_S)
    if child.poll() is None:
        child.terminate()
    raise _not_ready(state, f"it was not ready after {timeout_s:g} s")


def _spawn(state: StateDir, arguments: list[str]) -> subprocess.Popen[bytes]:
    descriptor = os.open(state.log_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        return subprocess.Popen(
            [sys.executable, "-m", "clorefleet.sandbox", "--state-dir", str(state.path), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=descriptor,
            stderr=descriptor,
            start_new_session=True,
            close_fds=True,
        )
    finally:
        os.close(descriptor)


def _not_ready(state: StateDir, why: str) -> SandboxError:
    tail = ""
    with contextlib.suppress(OSError):
        tail = state.log_file.read_text(errors="replace")[-_LOG_TAIL_CHARS:].strip()
    return SandboxError(
        f"The sandbox did not start: {why}." + (f" Its log ends: {tail}" if tail else ""),
        remedy=f"Read {state.log_file}, or start from nothing with `clorefleet sandbox reset`.",
        money="A sandbox costs nothing.",
    )


def stop(state_dir: Path, *, timeout_s: float = STOP_S_MAX) -> bool:
    """End the sandbox of this directory and its nodes; False when none runs.

    Asks with SIGTERM, and kills after `timeout_s`. Raises `SandboxError` when even that leaves it running.
    """
    state = StateDir(state_dir)
    pid = state.holder_pid()
    if pid is None:
        return False
    for number, wait_s in ((signal.SIGTERM, timeout_s), (signal.SIGKILL, 5.0)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        deadline_s = time.monotonic() + wait_s
        while time.monotonic() < deadline_s:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)  # only where this process started it
            if not state.is_held():
                return True
            time.sleep(_POLL_S)
    raise SandboxError(f"The sandbox with pid {pid} does not end.", remedy=f"End process {pid} by hand.")


def reset(state_dir: Path) -> None:
    """Stop the sandbox and forget its market, orders and nodes. Other files in the directory stay."""
    stop(state_dir)
    state = StateDir(state_dir)
    for suffix in ("", "-wal", "-shm"):
        state.database_file.with_name(state.database_file.name + suffix).unlink(missing_ok=True)
    for file in (state.info_file, state.log_file):
        file.unlink(missing_ok=True)
    shutil.rmtree(state.nodes_dir, ignore_errors=True)

"""C3: two real daemons, as on two machines, on one PostgreSQL store: one is killed, the other takes over.

Each has a home of its own, with nothing in common but the store's address and the account. The market is the
simulated one over HTTP; its servers do not answer SSH, which is of no matter here: this is about who acts.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from clorefleet.sandbox.settings import SandboxSettings
from clorefleet.sandbox.thread import RunningSandbox
from clorefleet.store.leadership import STANDBY_LOOKS_EVERY_S, TAKEOVER_S_MAX
from tests.postgres import empty_database

pytestmark = [pytest.mark.end_to_end, pytest.mark.slow, pytest.mark.timeout(400)]
START_S_MAX, RENT_S_MAX = 60.0, 90.0
MACHINE_IS_BUSY_S = 20.0
"""On top of a stated time: this machine may be slow to run the process that keeps it."""


@dataclass
class Machine:
    home: Path
    env: dict[str, str]
    daemon: subprocess.Popen[bytes] | None = field(default=None)

    def start(self) -> None:
        self.daemon = subprocess.Popen(
            [sys.executable, "-m", "clorefleet.daemon", "--profile", "default"],
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_for(lambda: " daemon_ready " in self.log(), START_S_MAX, self.log)

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        main = "from clorefleet.cli.main import main; raise SystemExit(main())"
        return subprocess.run(
            [sys.executable, "-c", main, *words],
            env=self.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )

    def log(self) -> str:
        file = self.home / "state" / "default" / "daemon.log"
        return file.read_text("utf-8") if file.exists() else ""

    def end(self) -> None:
        if self.daemon is not None:
            self.daemon.kill()
            self.daemon.wait()


def wait_for(holds: Callable[[], bool], seconds: float, detail: Callable[[], object]) -> float:
    began_s = time.monotonic()
    while not holds():
        assert time.monotonic() - began_s < seconds, detail()
        time.sleep(0.2)
    return time.monotonic() - began_s


@pytest.fixture
def market(tmp_path: Path) -> Iterator[RunningSandbox]:
    settings = SandboxSettings(tmp_path / "market", market_only=True, churn=0.0, server_count=400)
    with RunningSandbox(settings) as sandbox:
        yield sandbox


@pytest.fixture
def machines(tmp_path: Path, market: RunningSandbox, postgres: str) -> Iterator[tuple[Machine, Machine]]:
    with empty_database(postgres) as url:
        made = []
        for name in ("first", "second"):
            home = tmp_path / name
            (home / "config").mkdir(mode=0o700, parents=True)
            (home / "config" / "config.toml").write_text(f"store_url = {json.dumps(url)}\n")
            env = {key: value for key, value in os.environ.items() if not key.startswith(("CLORE", "HF_"))}
            env |= {"CLOREFLEET_HOME": str(home), "NO_COLOR": "1", "CLORE_API_KEY": market.api_key}
            made.append(Machine(home, env | {"CLORE_API_URL": market.market_url}))
        yield made[0], made[1]
        for machine in made:
            machine.end()


def test_after_kill_9_the_other_machine_acts_in_the_stated_time_and_rents_nothing_twice(
    machines: tuple[Machine, Machine], market: RunningSandbox
):
    first, second = machines
    first.start()
    second.start()
    assert "leads=True" in first.log() and "leads=False" in second.log()
    wished = first.command("deploy", "smollm2-135m", "--budget", "16/day", "--detach", "--yes")
    assert wished.returncode == 0, wished.stderr

    def orders() -> list[dict]:
        return market.control("orders")["orders"]

    # Adopted, and so beyond doubt: what becomes of a doubtful order is in tests/fleet/test_two_daemons.py.
    wait_for(lambda: " action adopt " in first.log(), RENT_S_MAX, first.log)
    assert len(orders()) == 1
    assert first.daemon is not None
    first.daemon.send_signal(signal.SIGKILL)
    first.daemon.wait()
    took_s = wait_for(lambda: " leading " in second.log(), TAKEOVER_S_MAX + MACHINE_IS_BUSY_S, second.log)
    assert took_s > STANDBY_LOOKS_EVERY_S, "it did not wait for the other's silence"
    stopped = second.command("stop", "smollm2-135m", "--yes")
    assert stopped.returncode == 0, stopped.stderr
    assert len(orders()) == 1 and not any(order["live"] for order in orders()), "both rented, or one lives"
    assert " action rent " not in second.log()

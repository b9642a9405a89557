"""The whole way by the command line: daemon, market over HTTP, SSH, weights, llama.cpp, gateway."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest

from clorefleet.domain.lease import Lease, Phase
from clorefleet.sandbox import process as sandbox
from clorefleet.store.glance import glance
from tests.cli.conftest import CommandLine
from tests.cli.test_logs import following

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(400)]
DEPLOY = ("deploy", "smollm2-135m", "--budget", "16/day", "--sandbox")
TIME_FACTOR = 60
"""A minute of billing each second: bills are then worth comparing."""


def a_sandbox(folder: Path) -> Iterator[CommandLine]:
    """A command line in a home of its own, with a simulated market running; both end with it."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("CLORE", "HF_"))}
    cli = CommandLine(folder, env | {"CLOREFLEET_HOME": str(folder / "home"), "NO_COLOR": "1"})
    cli.timeout_s = 400
    assert cli("sandbox", "serve", "--time-factor", str(TIME_FACTOR)).code == 0
    yield cli
    cli("sandbox", "stop")


@pytest.fixture
def home(tmp_path: Path) -> Iterator[CommandLine]:
    yield from a_sandbox(tmp_path)


def server_dir(home: CommandLine) -> Path:
    return home.home / "home" / "state" / "sandbox" / "server"


def market(home: CommandLine, name: str) -> dict:
    info = sandbox.find(server_dir(home))
    assert info is not None
    return sandbox.control(info, name)


def serving(home: CommandLine) -> list[Lease]:
    """The replicas that serve, as the store has them: asking `status` all the time keeps a processor busy."""
    with glance(f"sqlite:///{home.home / 'home' / 'state' / 'sandbox' / 'clorefleet.db'}") as look:
        return [each for each in look.open_leases() if each.phase is Phase.SERVING]


def ask(home: CommandLine, prompt: str, *, token: str | None = None, model: str = "smollm2-135m") -> str:
    url = home("daemon", "status", "--sandbox", "--json").json["gateway_url"]
    token = token or (home.home / "home" / "state" / "sandbox" / "gateway.token").read_text()
    request = urllib.request.Request(
        f"{url}/v1/chat/completions",
        json.dumps(
            {"model": model, "max_tokens": 8, "messages": [{"role": "user", "content": prompt}]}
        ).encode(),
        {"Content-Type": "application/json", "Authorization": f"Bearer {token}"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)["choices"][0]["message"]["content"]


def test_from_budget_to_tokens_to_a_closed_ledger(home: CommandLine):
    first = home(*DEPLOY)
    assert first.code == 0, first.err
    for promise in ("answers at http://127.0.0.1:", "Authorization: Bearer", "clorefleet stop", "simulated"):
        assert promise in first.out
    assert ask(home, "Say hello.")

    again = home(*DEPLOY)
    assert again.code == 0 and "already deployed" in again.err
    same = home("deploy", "smollm2-135m", "--budget", "16", "--sandbox")
    assert same.code == 0 and "budget of" not in same.err
    raised = home("deploy", "smollm2-135m", "--budget", "20/day", "--sandbox")
    assert raised.code == 0 and "is now $20/day; it was $16/day" in raised.err
    other = home("deploy", "smollm2-135m", "--budget", "20/day", "--prefer", "speed", "--sandbox")
    assert other.code == 2 and "preference cost → speed" in other.err
    orders = [order for order in market(home, "orders")["orders"] if not order.get("ended")]
    assert len(home("cost", "--sandbox", "--json").json["segments"]) == len(orders) == 1

    on_node = home("ssh", "smollm2-135m", "--sandbox", "--", "cat", "/proc/1/comm", "/etc/shadow-of-host")
    assert "No such file" in on_node.err
    assert "llama" in home("logs", "smollm2-135m", "--engine", "-n", "500", "--sandbox").out.lower()
    with following(home, "logs", "smollm2-135m", "--engine", "--follow", "--sandbox") as (lines, _):
        assert lines.get(timeout=60)  # the end of what is there
        said = "f=$(ls .clorefleet/jobs/*-launching-1/log); echo the engine says more >> $f"
        assert home("ssh", "smollm2-135m", "--sandbox", "--", "sh", "-c", said).code == 0
        while "the engine says more" not in lines.get(timeout=60):
            pass

    time.sleep(max(0.0, 660 / TIME_FACTOR))  # past minute 10: the creation fee is charged
    stopped = home("stop", "smollm2-135m", "--sandbox")
    assert stopped.code == 0, stopped.err
    assert home("wallet", "--sandbox", "--json").json["live_orders"] == 0
    [segment] = home("cost", "--sandbox", "--json").json["segments"]
    [bill] = market(home, "bill")["orders"]
    assert segment["state"] == "settled"
    assert Decimal(segment["cost"]) == Decimal(str(bill["total"])) > Decimal("0.1")
    # Our own count, made without looking at the bill, agrees to the minute.
    minute = Decimal(segment["price_per_day"]) * Decimal("1.05") / 1440
    assert abs(Decimal(segment["estimate"]) - Decimal(segment["cost"])) <= 3 * minute
    assert_no_secret_lies_about(home)


def assert_no_secret_lies_about(home: CommandLine) -> None:
    """S10: the market's key is in the sandbox's own private file and nowhere else."""
    info = sandbox.find(server_dir(home))
    assert info is not None
    state = home.home / "home" / "state" / "sandbox"
    token = (state / "gateway.token").read_bytes()
    for file in state.rglob("*"):
        if not file.is_file() or file.name in ("sandbox.json", "gateway.token") or "server" in file.parts:
            continue
        content = file.read_bytes()
        assert info.api_key.encode() not in content, file
        assert token not in content, file
        assert b"PRIVATE KEY" not in content, file
    assert not list((state / "keys").glob("*")), "keys of an ended order are kept"
    for file in (state / "gateway.token", state / "clorefleet.db", state / "daemon.log"):
        assert file.stat().st_mode & 0o077 == 0, file


@pytest.mark.parametrize("moment", ["renting", "syncing weights"])
def test_killed_at_a_moment_the_same_command_goes_on_without_a_second_rent(home: CommandLine, moment: str):
    watching = subprocess.Popen(
        [sys.executable, "-c", "from clorefleet.cli.main import main; raise SystemExit(main())", *DEPLOY],
        cwd=home.home,
        env=home.env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        status = home("status", "--sandbox", "--json")
        replicas = [r for d in status.json["deployments"] for r in d["replicas"]] if status.code == 0 else []
        if any(PHASES.index(replica["phase"]) >= PHASES.index(moment) for replica in replicas):
            break
    daemon = home("daemon", "status", "--sandbox", "--json").json["pid"]
    watching.kill()
    if daemon:
        os.kill(daemon, signal.SIGKILL)
    watching.wait()
    run = home(*DEPLOY)
    assert run.code == 0, run.err
    assert ask(home, "Say hello.")
    assert len(market(home, "orders")["orders"]) == 1, "a second server was rented"
    everything = home("stop", "--all", "--sandbox")
    assert everything.code == 0 and home("wallet", "--sandbox", "--json").json["live_orders"] == 0


PHASES = ["renting", "waiting for SSH", "probing", "installing", "syncing weights", "launching", "verifying",
          "serving", "draining", "ended"]  # fmt: skip

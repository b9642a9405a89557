"""A replica is lost while the hub has become slow: its successor's weights come from the other replica."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

import pytest

from clorefleet.domain.lease import Lease
from clorefleet.sandbox import process as sandbox
from tests.cli.conftest import CommandLine
from tests.end_to_end.test_deploy import ask, home, market, server_dir, serving

pytestmark = [pytest.mark.end_to_end, pytest.mark.slow, pytest.mark.timeout(600)]
__all__ = ["home"]
WAIT_S = 300
WEIGHTS_BYTES = 98_000_000


def wait_for(holds: Callable[[], object], detail: Callable[[], object]) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < deadline_s, detail()
        time.sleep(0.5)


def test_the_successor_of_a_lost_replica_gets_its_weights_from_the_other(home: CommandLine):
    config = home.home / "home" / "config"
    config.mkdir(parents=True, exist_ok=True)
    (config / "config.toml").write_text("relay_mbit_s = 400\n")
    (config / "config.toml").chmod(0o600)
    run = home("deploy", "smollm2-135m", "--replicas", "2", "--budget", "40/day", "--sandbox", "--detach")
    assert run.code == 0, run.err
    status: Callable[[], object] = lambda: home("status", "--sandbox").out  # noqa: E731
    wait_for(lambda: len(serving(home)) == 2, status)
    first, second = serving(home)

    info = sandbox.find(server_dir(home))
    assert info is not None
    sandbox.control(info, "lines", {"down_mbit_s": 8})
    sandbox.control(info, "end-order", {"order_id": second.order_id})

    def successor() -> list[Lease]:
        known = {first.lease_id, second.lease_id}
        return [each for each in serving(home) if each.lease_id not in known]

    wait_for(successor, status)
    [new] = successor()
    log = (home.home / "home" / "state" / "sandbox" / "daemon.log").read_text("utf-8")
    ended = re.search(rf"sibling_ended from={first.lease_id} to={new.lease_id} bytes=(\d+)", log)
    assert ended is not None, log[-3000:]
    assert int(ended[1]) >= WEIGHTS_BYTES
    # The files are the hub's: named only after their digests were right.
    node = f"cat .clorefleet/weights/*/*/.complete; cat .clorefleet/jobs/{new.lease_id}-syncing-1/log"
    said = home("ssh", f"smollm2-135m/{new.slot}", "--sandbox", "--", "sh", "-c", node).out
    assert "complete:" in said and "wrong bytes" not in said and "no more from the sibling" not in said
    assert ask(home, "Say hello.")
    assert len(market(home, "orders")["orders"]) == 3
    assert home("stop", "--all", "--sandbox").code == 0

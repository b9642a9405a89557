"""A spot server is taken away by another renter of the simulated market, under the real daemon.

Once as the market's documentation says (the order ends), once as its answers suggest (it waits).
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from clorefleet.sandbox import process as sandbox
from tests.cli.conftest import CommandLine

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(900)]
DEPLOY = ("deploy", "smollm2-135m", "--budget", "16/day", "--spot-only", "--sandbox")
WAIT_S = 400.0


class Spot:
    """A profile whose simulated market treats outbid orders as `fate` says."""

    def __init__(self, folder: Path, fate: str) -> None:
        env = {name: value for name, value in os.environ.items() if not name.startswith(("CLORE", "HF_"))}
        self.cli = CommandLine(folder, env | {"CLOREFLEET_HOME": str(folder / "home"), "NO_COLOR": "1"})
        self.cli.timeout_s = WAIT_S
        self.server_dir = folder / "home" / "state" / "sandbox" / "server"
        self.server_dir.parent.mkdir(parents=True)
        options = ("--state-dir", str(self.server_dir), "--outbid", fate)
        options = (*options, "--time-factor", "60", "--churn", "0")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "clorefleet.sandbox", *options], stderr=subprocess.DEVNULL
        )
        self.wait_for(lambda: sandbox.find(self.server_dir))

    def wait_for(self, look: Any) -> Any:
        ends = time.monotonic() + WAIT_S
        while not (found := look()):
            assert time.monotonic() < ends and self._process.poll() is None
            time.sleep(0.5)
        return found

    def control(self, name: str, body: dict[str, object] | None = None) -> dict[str, Any]:
        info = sandbox.find(self.server_dir)
        assert info is not None
        return sandbox.control(info, name, body)

    def replicas(self) -> list[dict[str, Any]]:
        return self.cli("status", "--sandbox", "--json").json["deployments"][0]["replicas"]

    def serving(self) -> dict[str, Any] | None:
        return next((each for each in self.replicas() if each["phase"] == "serving"), None)

    def ledger_equals_bill(self) -> bool:
        assert self.cli("stop", "smollm2-135m", "--sandbox").code == 0
        counted: dict[int, Decimal] = {}
        for each in self.cli("cost", "--sandbox", "--json").json["segments"]:
            assert each["state"] == "settled"
            counted[each["order_id"]] = counted.get(each["order_id"], Decimal(0)) + Decimal(each["cost"])
        billed = {each["order_id"]: Decimal(each["total"]) for each in self.control("bill")["orders"]}
        return counted == billed

    def close(self) -> None:
        self.cli("sandbox", "stop")
        self._process.wait(30)


@pytest.fixture
def spot(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Spot]:
    made = Spot(tmp_path, request.param)
    yield made
    made.close()


@pytest.mark.parametrize("spot", ["ended"], indirect=True)
def test_outbid_it_is_replaced_by_another_spot_server_and_the_ledger_is_the_bill(spot: Spot):
    deployed = spot.cli(*DEPLOY)
    assert deployed.code == 0, deployed.err
    first = spot.serving()
    assert first is not None and first["is_spot"]
    spot.control("rent-by-other", {"server_id": first["server_id"], "spot_bid_factor": 1.3})

    def other() -> dict[str, Any] | None:
        found = spot.serving()
        return found if found and found["server_id"] != first["server_id"] else None

    second = spot.wait_for(other)
    assert second["is_spot"]
    log = spot.cli("logs", "smollm2-135m", "--sandbox", "-n", "100").out
    assert "most likely another renter outbid" in log and "outbid once within 6 h, spot now" in log
    assert spot.ledger_equals_bill()


@pytest.mark.parametrize("spot", ["waiting"], indirect=True)
def test_outbid_by_little_it_bids_more_keeps_its_weights_and_lowers_its_bid_when_the_rival_leaves(spot: Spot):
    assert spot.cli(*DEPLOY).code == 0
    first = spot.serving()
    assert first is not None
    node = spot.server_dir / "nodes" / str(first["order_id"])
    [weights] = [each for each in node.rglob("*.gguf") if each.stat().st_size > 1_000_000]
    before = weights.stat()
    spot.control("rent-by-other", {"server_id": first["server_id"], "spot_bid_factor": 1.15})
    spot.wait_for(lambda: spot.replicas()[0]["outbid_since"])
    spot.wait_for(spot.serving)
    [again] = spot.replicas()
    assert (again["lease_id"], again["order_id"]) == (first["lease_id"], first["order_id"])
    assert Decimal(again["usd_per_day"]) > Decimal(first["usd_per_day"])
    after = weights.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns), "fetched again"
    assert len(list(node.rglob("jobs/*syncing-1*"))) == 2, "its weights were verified after the return"
    counted = spot.cli("cost", "--sandbox", "--json").json["segments"]
    rates = [Decimal(part["price_per_day"]) for part in counted]
    assert len(rates) == 3 and rates[1] == 0 < rates[0] < rates[2], "it waited for nothing"
    # The rival leaves. The bid falls back by the market's step, a tenth, and once in its 600 s.
    spot.control("rent-by-other", {"server_id": first["server_id"], "spot_bid_factor": 1.15, "seconds": 1})
    least = Decimal(first["usd_per_day"])
    spot.wait_for(lambda: Decimal(spot.replicas()[0]["usd_per_day"]) == least)
    [still] = spot.replicas()
    assert (still["order_id"], still["phase"]) == (first["order_id"], "serving")
    [order] = [each for each in spot.control("orders")["orders"] if each["id"] == first["order_id"]]
    (raised_at, raised), (first_at, halfway), (second_at, back) = [
        (at, Decimal(price)) for at, price in order["segments"][-3:]
    ]
    assert raised > halfway > back and halfway >= raised * Decimal("0.9")
    assert second_at - first_at >= 600 and raised_at < first_at
    assert spot.ledger_equals_bill()

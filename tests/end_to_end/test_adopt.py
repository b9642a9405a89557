"""A store that is gone: the order list and the key of its server bring the replica back."""

from __future__ import annotations

import time
from decimal import Decimal

import pytest
from jsonschema import Draft202012Validator

from tests.cli.conftest import CommandLine
from tests.cli.test_json import schema
from tests.end_to_end.test_deploy import DEPLOY, ask, home, market, serving

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(400)]
__all__ = ["home"]


def state(home: CommandLine) -> str:
    deployments = home("status", "--sandbox", "--json").json["deployments"]
    return deployments[0]["state"] if deployments else ""


def test_an_order_that_the_store_has_lost_is_adopted_and_serves_and_is_billed_once(home: CommandLine):
    assert home(*DEPLOY).code == 0
    [order] = market(home, "orders")["orders"]
    home("daemon", "stop", "--sandbox")
    for file in (home.home / "home" / "state" / "sandbox").glob("clorefleet.db*"):
        file.unlink()

    swept = home("sweep", "--sandbox")
    assert str(order["id"]) in swept.out + swept.err  # still bills, and says so
    adopted = home(
        "adopt", str(order["id"]), "--model", "smollm2-135m", "--budget", "16/day", "--sandbox", "--json"
    )
    assert adopted.code == 0, adopted.err
    Draft202012Validator(schema("adopt")).validate(adopted.json)
    assert home("daemon", "start", "--sandbox").code == 0
    deadline_s = time.monotonic() + 300
    while not serving(home):
        assert time.monotonic() < deadline_s, home("status", "--sandbox").out
        time.sleep(0.5)
    assert state(home) == "serving"
    assert ask(home, "Say hello.")
    assert [each["id"] for each in market(home, "orders")["orders"]] == [order["id"]]

    again = home("adopt", str(order["id"]), "--model", "smollm2-135m", "--sandbox")
    assert again.code == 2 and "known already" in again.err
    assert home("stop", "smollm2-135m", "--sandbox").code == 0
    assert home("wallet", "--sandbox", "--json").json["live_orders"] == 0
    [segment] = home("cost", "--sandbox", "--json").json["segments"]
    [bill] = market(home, "bill")["orders"]
    assert (segment["state"], segment["order_id"]) == ("settled", order["id"])
    assert Decimal(segment["cost"]) == Decimal(str(bill["total"]))  # from its first minute on

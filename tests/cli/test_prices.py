"""`clorefleet prices` as a user meets it, on a simulated market."""

from __future__ import annotations

import json
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from clorefleet.cli.prices import drawn
from clorefleet.domain.price import PriceSnapshot
from tests.fleet.builders import NOW

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "json" / "prices.schema.json").read_text("utf-8"))


def test_now_is_read_kept_and_read_from_the_store_the_next_time(account):
    first = account("prices")
    assert first.code == 0 and "No earlier reading to compare with yet" in first.err
    assert first.out.splitlines()[0].split() == [
        "GPU", "FREE", "LEAST", "P10", "MEDIAN", "P90", "CHEAPER", "BEFORE", "NOW", "IS"
    ]  # fmt: skip
    assert max(len(line) for line in first.out.splitlines()) <= 80
    without_market = account("prices", "--json", CLORE_API_URL="http://127.0.0.1:9")
    assert without_market.code == 0, without_market.err
    Draft202012Validator(SCHEMA).validate(without_market.json)
    assert {each["verdict"] for each in without_market.json["prices"]} == {"too little history to say"}


def test_one_gpu_is_told_with_its_percentiles_and_history(account):
    run = account("prices", "rtx 4090", "--json")
    [price] = run.json["prices"]
    assert price["gpu"].endswith("4090") and price["offers"] > 0
    least, p10, median = (float(price[f"{name}_usd_per_day"]) for name in ("least", "p10", "median"))
    assert 0 < least <= p10 <= median
    assert len(account("prices", "rtx 4090", "--json").json["history"]) == 1
    assert "a tenth of" in account("prices", "rtx 4090").out


@pytest.mark.parametrize(
    ("words", "hint"), [(("RTX 4900",), "Did you mean"), (("abacus",), "clorefleet prices")]
)
def test_a_gpu_that_nobody_has_is_told(account, words, hint):
    run = account("prices", *words)
    assert run.code == 2 and hint in run.err


def test_a_simulation_plays_what_was_seen(account):
    slip = account("simulate", "smollm2-135m", "--weeks", "1", "--no-plot", "--prices", "seen")
    assert slip.code == 2 and "price history" in slip.err
    account("prices")
    run = account("simulate", "smollm2-135m", "--weeks", "1", "--prices", "seen", "--json")
    assert "1 hours of the price history" in run.json["deployments"][0]["prices"]


@pytest.mark.parametrize(("apart", "unit"), [(timedelta(minutes=29), "hours"), (timedelta(days=20), "days")])
def test_a_history_is_drawn_in_eighty_columns_over_hours_or_days(apart: timedelta, unit: str):
    usd = Decimal("2.77")
    rows = [PriceSnapshot("RTX 4090", False, at, 9, *[usd] * 6) for at in (NOW - apart, NOW)]
    lines = drawn(rows).splitlines()
    assert max(map(len, lines)) <= 80 and f"({unit})" in "".join(lines) and "-0.0 " not in lines[-1]

"""Commands that only look: filters, order, JSON, and a key that stays out of sight."""

from __future__ import annotations

from decimal import Decimal


def test_offers_are_filtered_sorted_and_counted(account):
    found = account("offers", "--gpu", "4090", "--min-gpus", "2", "--max-price", "20/day", "--json").json
    assert found["seen"] == 3200 and found["offers"]
    prices = [Decimal(each["usd_per_day_effective"]) for each in found["offers"]]
    assert prices == sorted(prices) and prices[-1] <= 20
    assert all(len(each["gpus"]) >= 2 and not each["is_rented"] for each in found["offers"])


def test_an_hourly_ceiling_is_read_as_one(account):
    daily = account("offers", "--max-price", "2.4/day", "--json", "-n", "9999").json["matching"]
    hourly = account("offers", "--max-price", "0.1/hour", "--json", "-n", "9999").json["matching"]
    assert daily == hourly > 0


def test_flagged_offers_are_hidden_unless_asked_for(account):
    plain = account("offers", "--json", "-n", "9999").json["matching"]
    flagged = account("offers", "--flagged", "--json", "-n", "9999").json["matching"]
    assert flagged > plain


def test_offers_need_no_key(account):
    del account.env["CLORE_API_KEY"]
    assert account("offers", "-n", "1").code == 0


def test_a_table_fits_eighty_columns(account):
    for words in (
        ("offers", "-n", "50"),
        ("plan", "glm-5.1", "--budget", "16/day"),
        ("models",),
        ("wallet",),
    ):
        run = account(*words)
        assert run.code == 0 and all(len(line) <= 80 for line in run.out.splitlines()), words


def test_a_plan_is_the_same_twice_and_says_what_is_predicted(account):
    first, second = (account("plan", "glm-5.1", "--budget", "1200/day", "--prefer", "speed") for _ in "ab")
    assert first.out == second.out and "fp8/sglang" in first.out
    assert "predicted" in first.err


def test_wallet_and_doctor_answer_and_never_show_the_key(account, market):
    for words in (("wallet",), ("wallet", "--json"), ("doctor",), ("doctor", "--json"), ("status", "--json")):
        run = account(*words)
        assert run.code == 0, run.err
        assert market.api_key not in run.out + run.err

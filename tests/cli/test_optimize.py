"""`clorefleet optimize` looks at the market as a move would: at the bids of others, too."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from decimal import Decimal

from clorefleet.clock import SystemClock
from clorefleet.domain.lease import LeaseState, Phase
from clorefleet.domain.money import Currency, ExchangeRate, Rate, parse_budget
from clorefleet.domain.plan import Requirement
from clorefleet.store.database import open_store
from tests.cli.conftest import CommandLine
from tests.fleet.builders import deployment, lease, plan

DEAR = Rate.per_day("90")


def test_moves_to_spot_servers_are_judged_at_what_others_bid(account: CommandLine):
    since = SystemClock().now() - timedelta(days=3)
    file = account.home / "home" / "state" / "default" / "clorefleet.db"
    file.parent.mkdir(parents=True, mode=0o700)
    requirement = Requirement("smollm2-135m", parse_budget("200/day"), spot=True, spot_only=True)
    held = plan(7, "90", is_spot=True)
    with open_store(f"sqlite:///{file}").write() as tx:
        tx.put_deployment(deployment(requirement=requirement, created_at=since))
        tx.put_lease(
            lease(
                LeaseState.ORDERED,
                Phase.SERVING,
                plan=replace(held, speed=replace(held.speed, decode_tokens_per_s=1.0)),
                price=DEAR,
                created_at=since,
                ordered_at=since,
                measured_tokens_per_s=1.0,
            )
        )
    run = account("optimize", "--explain", "--json")
    assert run.code == 0, run.err
    moves = run.json
    assert moves and all(each["to_server"] for each in moves)
    assert not [each for each in moves if "could not be read" in each["reason"]]
    assert moves[0]["pays"] and Decimal(moves[0]["saving_usd_per_day"]) > 0


def test_what_runs_counts_at_the_coins_rate_of_now_whatever_the_store_last_knew(account: CommandLine):
    """60 CLORE a day, when they were worth $60; no daemon has read the rate for three days."""
    now = SystemClock().now()
    since = now - timedelta(days=3)
    file = account.home / "home" / "state" / "default" / "clorefleet.db"
    file.parent.mkdir(parents=True, mode=0o700)
    billed, held = Rate.per_day("60", Currency.CLORE), plan(7, "60")
    held = replace(
        held,
        price=replace(held.price, billed=billed, usd_per_unit=Decimal(1)),
        speed=replace(held.speed, decode_tokens_per_s=1.0),
    )
    served = lease(
        LeaseState.ORDERED,
        Phase.SERVING,
        plan=held,
        price=billed,
        created_at=since,
        ordered_at=since,
        measured_tokens_per_s=1.0,
    )
    with open_store(f"sqlite:///{file}").write() as tx:
        tx.put_deployment(deployment(budget="200/day", created_at=since))
        tx.put_coin_rates([ExchangeRate(Currency.CLORE, Decimal(1), since, "three days ago")])
        tx.put_lease(served)
    run = account("optimize", "--explain", "--json")
    assert run.code == 0 and run.json
    assert all(Decimal(each["saving_usd_per_day"]) < 10 for each in run.json)

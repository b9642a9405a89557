"""Commands that find, end, take over and bound what bills: also with an empty store, and a broken one."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace

import pytest

from clorefleet.cli import panic
from clorefleet.cli.context import options
from clorefleet.cli.main import main
from clorefleet.cli.panic import end_and_tell, recipe_images
from clorefleet.clock import SystemClock
from clorefleet.config.places import make_private_dir
from clorefleet.config.profile import Profile
from clorefleet.daemon import unending
from clorefleet.domain.deployment import Desired
from clorefleet.domain.errors import MarketError
from clorefleet.domain.failure import Cause
from clorefleet.domain.identity import DeploymentId
from clorefleet.domain.lease import LeaseState, Phase
from clorefleet.domain.money import Currency, ExchangeRate, Rate
from clorefleet.domain.order import OrderList, RentRequest
from clorefleet.domain.outcome import Rented
from clorefleet.domain.secret import Secret
from clorefleet.market.client import MarketClient
from clorefleet.market.limiter import RequestLimiter
from clorefleet.sandbox.settings import SandboxSettings
from clorefleet.sandbox.thread import RunningSandbox
from clorefleet.store.database import Store, open_store
from tests.cli.conftest import CommandLine
from tests.fleet.builders import NOW, deployment, lease, plan
from tests.fleet.world import World

LIKELY, FOREIGN = 12, "somebody/else:1"
OUR_IMAGE = min(recipe_images())


@pytest.fixture
def market(tmp_path: Path) -> Iterator[RunningSandbox]:
    """An account of its own for each test: what bills is the test's alone."""
    settings = SandboxSettings(
        tmp_path / "market",
        market_only=True,
        call_interval_real_s=0.0,
        create_interval_real_s=0.0,
        list_lag_real_s=0.0,
        cancel_linger_polls=0,
        required_price_refusal_rate=0.0,
        churn=0.0,
        server_count=400,
    )
    with RunningSandbox(settings) as sandbox:
        yield sandbox


def client_of(market: RunningSandbox) -> MarketClient:
    clock = SystemClock()
    limiter = RequestLimiter(clock, general_s=0.0, create_s=0.0)
    return MarketClient(market.market_url, Secret(market.api_key), clock=clock, limiter=limiter)


def rent(market: RunningSandbox, image: str) -> int:
    """An order that no record of the program explains; its number."""
    client = client_of(market)
    known = {order.order_id for order in client.fetch_orders().live()}
    offers = [
        offer
        for offer in client.fetch_view().offers
        if not offer.is_rented and offer.price_in(Currency.USD, is_spot=False) is not None
    ]
    for offer in offers:
        price = offer.price_in(Currency.USD, is_spot=False)
        outcome = client.rent(
            RentRequest(offer.server_id, False, price, image, ssh_public_key="ssh-ed25519 A")
        )
        if isinstance(outcome, Rented):
            [new] = {order.order_id for order in client.fetch_orders().live()} - known
            return int(new)
    raise AssertionError("nothing could be rented")


def store_of(account: CommandLine) -> Store:
    return open_store(f"sqlite:///{account.home / 'home' / 'state' / 'default' / 'clorefleet.db'}")


def live(market: RunningSandbox) -> set[int]:
    return {order["id"] for order in market.control("orders")["orders"] if order["live"]}


# -- sweep


def test_a_sweep_of_an_account_without_orders_says_that_nothing_bills(account):
    run = account("sweep")
    assert (run.code, run.out) == (0, "The market lists no live order: nothing bills.\n")


def test_a_sweep_with_only_a_key_reports_what_may_be_ours_and_touches_nothing(account, market):
    """E6: no store, no daemon."""
    ours, foreign = rent(market, OUR_IMAGE), rent(market, FOREIGN)
    run = account("sweep", "--json")
    assert run.code == LIKELY
    standing = {each["order_id"]: each["standing"] for each in run.json["orders"]}
    assert standing == {ours: "likely ours", foreign: "foreign"}
    assert run.json["orphans"] == [ours] and live(market) == {ours, foreign}


def test_an_order_that_is_younger_than_asked_for_is_left_alone(account, market):
    ours = rent(market, OUR_IMAGE)
    assert account("sweep", "--end-likely", "--older-than", "6h", "--yes").code == LIKELY
    assert live(market) == {ours}


def test_what_is_named_is_ended_and_nothing_else(account, market):
    ours, foreign = rent(market, OUR_IMAGE), rent(market, FOREIGN)
    assert account("sweep", "--end-likely", "--yes").code == 0
    assert live(market) == {foreign}, ours
    unknown = account("sweep", "--end", "1", "--yes")
    assert unknown.code == 2 and "Nothing was ended" in unknown.err and live(market) == {foreign}
    assert account("sweep", "--end", str(foreign)).code != 0, "without a terminal nobody has said yes"
    assert live(market) == {foreign}
    assert account("sweep", "--end", str(foreign), "--yes").code == 0 and live(market) == set()


def test_a_sweep_works_beside_a_broken_store(account, market):
    """E4."""
    state = account.home / "home" / "state" / "default"
    state.mkdir(parents=True, mode=0o700)
    (state / "clorefleet.db").write_bytes(b"torn" * 4096)
    ours = rent(market, OUR_IMAGE)
    run = account("sweep", "--end", str(ours), "--yes")
    assert run.code == 0 and "store cannot be used" in run.err and live(market) == set()


# -- records that cannot be read


@pytest.mark.parametrize("words", [("sweep",), ("stop", "--all", "--yes")])
def test_a_list_that_cannot_be_read_whole_is_not_told_as_empty(words, account, market, monkeypatch, capsys):
    """A record without a number that can be read: an order that bills."""
    number = rent(market, OUR_IMAGE)
    listed = OrderList((), datetime.now(UTC), unreadable=1)
    blind = SimpleNamespace(fetch_orders=lambda: listed)
    monkeypatch.setenv("CLOREFLEET_HOME", account.env["CLOREFLEET_HOME"])
    monkeypatch.setenv("CLORE_API_KEY", market.api_key)
    monkeypatch.setattr("clorefleet.wiring.make_market", lambda connection: blind)
    monkeypatch.setattr(options, "as_json", False)  # and again after this test
    for as_json in ([], ["--json"]):
        monkeypatch.setattr("sys.argv", ["clorefleet", *words, *as_json])
        assert main() == LIKELY and live(market) == {number}
        told = capsys.readouterr()
        assert "1 record(s) of the market's order list could not be read" in told.err
        assert json.loads(told.out)["unreadable"] == 1 if as_json else told.out == ""


# -- numbers that are given again


@pytest.mark.parametrize("words", [("sweep", "--yes"), ("stop", "--all", "--yes")])
def test_the_users_own_order_is_not_ours_by_a_number_that_ours_once_had(account, market, words):
    """A21: the lease of that number was on another server."""
    number = rent(market, FOREIGN)
    [order] = client_of(market).fetch_orders().live()
    old = lease(
        LeaseState.ENDED,
        Phase.ENDED,
        plan=plan(order.server_id + 1),
        deployment_id="glm",
        order_id=order.order_id,
        ended_at=order.created_at,
    )
    with store_of(account).write() as tx:
        tx.put_deployment(deployment("glm", desired=Desired.STOPPED))
        tx.put_lease(old)
    assert account(*words).code == 0 and live(market) == {number}


# -- adopt


def test_an_order_that_does_not_exist_or_whose_key_is_gone_is_not_adopted(account, market):
    unknown = account("adopt", "1", "--model", "smollm2-135m", "--yes")
    assert unknown.code == 2 and "no live order 1" in unknown.err
    ours = rent(market, OUR_IMAGE)
    keyless = account("adopt", str(ours), "--model", "smollm2-135m", "--budget", "12/day", "--yes")
    assert keyless.code != 0 and "It bills" in keyless.err and f"--end {ours}" in keyless.err
    assert account("status", "--json").json["deployments"] == [] and live(market) == {ours}


# -- stop --all


def test_stop_all_with_an_empty_store_ends_what_runs_our_images_and_lists_the_rest(account, market):
    ours, foreign = rent(market, OUR_IMAGE), rent(market, FOREIGN)
    run = account("stop", "--all", "--yes", "--json")
    assert run.code == 0 and run.json == {"ended": [ours], "left": [foreign], "unreadable": 0}
    assert live(market) == {foreign}
    everything = account("stop", "--all", "--foreign", "--yes")
    assert everything.code == 0 and live(market) == set()
    assert "No order of ours bills" in account("stop", "--all", "--yes").out


# -- where nothing can be written


@pytest.fixture
def no_place(account) -> CommandLine:
    """A home that can be neither made nor written, as on a disk that is full or has become read-only."""
    plain = account.home / "plain"
    plain.write_text("")
    return replace(account, env=account.env | {"CLOREFLEET_HOME": str(plain / "home")})


def test_stop_all_needs_no_place_for_state(no_place, market):
    """It knows no more than with an empty store, and takes no more for ours."""
    ours, foreign = rent(market, OUR_IMAGE), rent(market, FOREIGN)
    run = no_place("stop", "--all", "--yes")
    assert (run.code, live(market)) == (0, {foreign}), (ours, run.err)
    assert "no store" in run.err and "Traceback" not in run.err


def test_a_sweep_needs_no_place_for_state(no_place, market):
    ours = rent(market, OUR_IMAGE)
    assert no_place("sweep").code == LIKELY and live(market) == {ours}
    run = no_place("sweep", "--end", str(ours), "--yes")
    assert (run.code, live(market)) == (0, set()), run.err


def test_everything_else_still_needs_a_place_for_state(no_place):
    assert no_place("status").code != 0


def test_a_private_folder_that_is_as_it_should_be_is_not_touched(tmp_path: Path, monkeypatch):
    """On a file system that became read-only, a `chmod` that changes nothing fails too."""
    folder = make_private_dir(tmp_path / "state")
    assert folder.stat().st_mode & 0o777 == 0o700
    with monkeypatch.context() as patched:
        patched.setattr(Path, "chmod", lambda *_: pytest.fail("it was touched"))
        make_private_dir(folder)
    folder.chmod(0o755)
    assert make_private_dir(folder).stat().st_mode & 0o777 == 0o700


@pytest.fixture
def serving(account, market) -> SimpleNamespace:
    """A deployment that is to run, and its order, which bills."""
    number = rent(market, OUR_IMAGE)
    [order] = client_of(market).fetch_orders().live()
    held = lease(
        LeaseState.ORDERED,
        Phase.SERVING,
        plan=plan(order.server_id),
        deployment_id="glm",
        order_id=order.order_id,
        created_at=order.created_at,
    )
    store = store_of(account)
    with store.write() as tx:
        tx.put_deployment(deployment("glm"))
        tx.put_lease(held)
    return SimpleNamespace(number=number, order=order, store=store)


def wished(store) -> Desired:
    with store.read() as tx:
        return tx.deployment(DeploymentId("glm")).desired


def test_only_a_yes_to_stop_all_changes_anything(account, market, serving):
    no = account.answered("n", "stop", "--all")
    assert no.code == 130 and "Nothing was ended." in no.err and "and stop glm?" in no.err
    unasked = account("stop", "--all")
    assert unasked.code == 9 and "Nothing was changed" in unasked.err
    assert wished(serving.store) is Desired.RUNNING and live(market) == {serving.number}
    assert account.answered("y", "stop", "--all").code == 0
    assert wished(serving.store) is Desired.STOPPED and live(market) == set()


def test_what_would_be_rented_again_is_asked_about_where_no_order_bills(account):
    store = store_of(account)
    with store.write() as tx:
        tx.put_deployment(deployment("glm"))
    assert account("stop", "--all").code == 9 and wished(store) is Desired.RUNNING
    run = account("stop", "--all", "--yes")
    assert run.code == 0 and "No order of ours bills" in run.out and "Nothing is rented any more" in run.err
    assert wished(store) is Desired.STOPPED
    again = account("stop", "--all")
    assert again.code == 0, "there is nothing to ask about"


@pytest.mark.parametrize("yes", [True, False])
def test_nothing_is_wished_any_more_before_the_first_order_is_cancelled(
    account, market, serving, monkeypatch, yes
):
    """Else a daemon would rent another in its place."""
    client, seen = client_of(market), []
    connection = SimpleNamespace(clock=SystemClock(), store_url=f"sqlite:///{serving.store.file}")
    monkeypatch.setattr("clorefleet.config.profile.connect", lambda profile: connection)
    monkeypatch.setattr("clorefleet.wiring.make_market", lambda connection: client)
    monkeypatch.setattr(panic, "confirm", lambda question, **words: None)
    monkeypatch.setattr(panic, "end_and_tell", lambda *words: seen.append(wished(serving.store)))
    panic.stop_everything(Profile("default", account.home), foreign=False, yes=yes)
    assert seen == [Desired.STOPPED]


@pytest.mark.parametrize("text", ['log_format = "txt"', "api_key = ", 'store_ulr = "x"'])
def test_stop_all_waits_for_no_flawed_settings(account, market, serving, text):
    """Its key is in the environment: nothing else is needed."""
    foreign, unknown = rent(market, FOREIGN), rent(market, OUR_IMAGE)
    file = account.home / "home" / "config" / "config.toml"
    file.parent.mkdir(parents=True, mode=0o700)
    file.write_text(text)
    keyless = account("stop", "--all", "--yes", CLORE_API_KEY="")
    assert keyless.code == 2 and "config.toml" in keyless.err and len(live(market)) == 3
    run = account("stop", "--all", "--yes", "--json")
    assert run.code == 0 and "config.toml" in run.err and f"asked at {market.market_url} with" in run.err
    assert set(run.json["ended"]) == {serving.number, unknown} and live(market) == {foreign}
    assert wished(serving.store) is Desired.STOPPED


@pytest.mark.parametrize(
    ("env", "code"),
    [({"CLORE_API_KEY": ""}, 5), ({"CLORE_API_URL": "http://127.0.0.1:9"}, 6)],
    ids=["no key", "no network"],
)
def test_stop_all_that_cannot_ask_the_market_says_that_what_runs_goes_on_and_bills(account, env, code):
    run = account("stop", "--all", "--yes", **env)
    assert run.code == code
    assert "Money: Nothing was ended: what runs goes on, and bills." in run.err
    assert "your orders on https://clore.ai" in run.err and "Nothing was spent" not in run.err


def test_stop_all_whose_network_fails_between_cancels_says_what_may_go_on(monkeypatch):
    from clorefleet.domain.errors import MarketUnreachable
    from tests.fleet.builders import order

    def fails(*words: object, **more: object) -> None:
        raise MarketUnreachable("The market cannot be reached.")

    monkeypatch.setattr("clorefleet.fleet.sweep.end_orders", fails)
    connection = SimpleNamespace(clock=SimpleNamespace(sleep=None))
    with pytest.raises(MarketUnreachable) as caught:
        panic.end_and_tell(connection, None, [order()])  # type: ignore[arg-type]
    assert "may not have ended" in caught.value.money and "clore.ai" in caught.value.remedy


def test_an_order_that_may_be_of_our_own_rent_is_told_by_each_command_and_left_alone(account, market):
    """C3, S9: its login key is on a machine that is down, so that nothing here can tell."""
    number = rent(market, FOREIGN)
    [order] = client_of(market).fetch_orders().live()
    seen_at = order.created_at
    file = account.home / "home" / "state" / "default" / "clorefleet.db"
    given_up = lease(
        LeaseState.ENDED,
        Phase.ENDED,
        plan=plan(order.server_id),
        deployment_id="glm",
        reason="its login key is on another machine",
        cause=Cause.UNPROVEN,
        created_at=seen_at,
        ended_at=seen_at,
    )
    with open_store(f"sqlite:///{file}").write() as tx:
        tx.put_deployment(deployment("glm", desired=Desired.STOPPED))
        tx.put_lease(given_up)
        tx.note_foreign(order, usd_per_day=Decimal("2.4"), now=seen_at)
        tx.put_tick(now=seen_at, orders_read_at=seen_at, trouble="")
    told = "bills $0.1000/hour and may be of a rent of glm: its login key is on another machine."
    end = f"`clorefleet sweep --end {number}` ends it"
    for words in (("status",), ("stop", "glm")):
        run = account(*words)
        assert told in run.err and end in run.err, words
    assert any(told in each for each in account("status", "--json").json["warnings"])
    assert told in account("doctor").out
    swept = account("sweep", "--json")
    assert swept.code == LIKELY and swept.json["orphans"] == [number]
    assert swept.json["orders"][0]["why"].startswith("it may be of a rent of glm")
    panic = account("stop", "--all", "--yes")
    assert panic.code == LIKELY and "may be of a rent of glm" in panic.err and end in panic.err
    assert "No order of ours bills" not in panic.out and live(market) == {number}
    # Our clock was an hour behind the market's, by which the order is then made after the lease had ended.
    behind = timedelta(hours=1)
    of_a_slow_clock = replace(
        given_up, asked_at_market=seen_at, created_at=seen_at - behind, ended_at=seen_at - behind
    )
    with open_store(f"sqlite:///{file}").write() as tx:
        tx.put_lease(of_a_slow_clock)
    panic = account("stop", "--all", "--yes")
    assert panic.code == LIKELY and "may be of a rent of glm" in panic.err and live(market) == {number}
    assert account("sweep", "--end", str(number), "--yes").code == 0 and live(market) == set()


# -- what goes on billing without a daemon


def test_the_end_of_the_daemon_tells_what_bills_on_and_is_silent_where_nothing_does(account):
    quiet = account("daemon", "stop")
    assert quiet.out == "No daemon runs.\n" and quiet.err == ""
    file = account.home / "home" / "state" / "default" / "clorefleet.db"
    assert not file.exists(), "a profile that was never used stays so"
    with open_store(f"sqlite:///{file}").write() as tx:
        tx.put_deployment(deployment())
        tx.put_lease(lease(LeaseState.ORDERED, Phase.SERVING, plan=plan(7, "2.4")))
    hourly = plan(7, "2.4").price.running_usd_per_day / 24
    told = account("daemon", "stop")
    assert f"1 order(s) go on billing up to ${hourly:.4f}/hour, unwatched" in told.err
    assert account("daemon", "stop", "--json").json == {
        "was_running": False,
        "orders": 1,
        "usd_per_hour": str(hourly.quantize(Decimal("0.00000001"))),
    }


def test_the_end_of_the_daemon_neither_migrates_nor_repairs_a_store_that_a_look_cannot_read(account):
    file = account.home / "home" / "state" / "default" / "clorefleet.db"
    open_store(f"sqlite:///{file}").dispose()
    with closing(sqlite3.connect(file)) as older:
        older.execute("UPDATE alembic_version SET version_num = '0001'")
        older.commit()
    torn = b"torn" * 4096
    for content in (file.read_bytes(), torn):
        file.write_bytes(content)
        run = account("daemon", "stop")
        assert run.code == 0 and "What bills is not known" in run.err and "unwatched" in run.err
        assert file.read_bytes() == content
        unknown = {"was_running": False, "orders": None, "usd_per_hour": None}
        assert account("daemon", "stop", "--json").json == unknown
    assert [each.name for each in file.parent.glob("*.bak")] == []


def test_the_end_of_the_daemon_does_not_wait_for_a_server_that_keeps_the_store(account):
    """Nothing listens there, and no driver is needed to say so."""
    settings = account.home / "home" / "config" / "config.toml"
    settings.parent.mkdir(parents=True)
    settings.write_text('store_url = "postgresql://nobody@127.0.0.1:1/none"\n')
    settings.chmod(0o600)
    run = account("daemon", "stop")
    assert run.code == 0 and "unwatched by this machine" in run.err
    assert account("daemon", "stop", "--json").json["orders"] is None


# -- what will not end


def test_an_order_that_will_not_end_is_told_by_every_command_until_it_is_gone(account):
    state = account.home / "home" / "state" / "default"
    state.mkdir(parents=True, mode=0o700)
    unending.note(state, [unending.UnendingOrder(602837, "$0.0140/hour", 20, "cancel accepted")])
    commands = [
        ("models",),
        ("plan", "smollm2-135m", "--budget", "16/day"),
        ("offers", "-n", "1"),
        ("status",),
        ("status", "--json"),
        ("cost",),
        ("budget",),
        ("wallet",),
        ("hosts",),
        ("daemon", "status"),
        ("logs", "nobody"),
        ("stop", "nobody"),
    ]
    silent = [
        words
        for words in commands
        if "Order 602837 still bills $0.0140/hour: 20 cancels did not end it" not in account(*words).err
    ]
    assert not silent
    unending.note(state, [])
    assert "602837" not in account("models").err


def test_orders_that_survive_all_rounds_are_named_with_their_price_and_noted(tmp_path: Path):
    world = World(tmp_path)
    world.wish()
    world.tick(20)
    world.hazards.cancel_lies = 99
    connection = SimpleNamespace(clock=world.clock, profile=SimpleNamespace(state_dir=tmp_path))
    [order] = world.market.live
    with pytest.raises(MarketError, match=str(order.order_id)):
        end_and_tell(connection, world.market, [order])
    [noted] = unending.known(tmp_path)
    assert noted.order_id == order.order_id and noted.attempts == 20 and "/hour" in noted.per_hour


# -- budget


def test_ceilings_are_set_shown_and_taken_away(account):
    assert "No ceilings" in account("budget").out
    shown = account("budget", "--per-day", "40/day", "--total", "500", "--json").json
    assert shown["per_day_usd"] == "40" and shown["total_usd"] == "500" and not shown["is_stopped"]
    assert "$40/day for the fleet" in account("budget").out
    assert account("budget", "--clear", "--json").json["per_day_usd"] is None


def test_what_is_committed_is_told_by_what_the_coin_is_worth_now(account):
    """200 CLORE a day and 5 % fee: $4.20 when it was rented, $8.40 since the coin has doubled."""
    base = plan(7)
    price = replace(base.price, billed=Rate.per_day(200, Currency.CLORE), usd_per_unit=Decimal("0.02"))
    with store_of(account).write() as tx:
        tx.put_deployment(deployment("glm", "40/day"))
        tx.put_lease(
            lease(LeaseState.ORDERED, Phase.SERVING, plan=replace(base, price=price), deployment_id="glm")
        )
        tx.put_coin_rates([ExchangeRate(Currency.CLORE, Decimal("0.04"), NOW, "test")])
    assert Decimal(account("budget", "--json").json["committed_usd_per_day"]) == Decimal("8.4")
    assert Decimal(account("daemon", "stop", "--json").json["usd_per_hour"]) == Decimal("0.35")
    assert "at $8.40/day" in account.answered("n", "stop", "glm").err
    assert "about $8.40 a day each" in account.answered("n", "scale", "glm", "2").err


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--per-day", "cheap"), "cheap"),
        (("--total", "-3"), "more than zero"),
        (("--total", "1,5"), "comma only parts thousands"),
        (("--total", "16,00"), "comma only parts thousands"),
        (("--total", "0,500"), "comma only parts thousands"),
        (("--total", "$1,50,000"), "comma only parts thousands"),
        (("nobody", "--total", "5"), "no deployment"),
        (("nobody", "--per-day", "5/day"), "set by deploy"),
    ],
)
def test_a_ceiling_that_means_nothing_is_refused(account, words, why):
    run = account("budget", *words)
    assert run.code == 2 and why in run.err
    assert account("budget", "--json").json["total_usd"] is None


def test_a_comma_parts_thousands_in_a_total(account):
    assert account("budget", "--total", "$1,500.50", "--json").json["total_usd"] == "1500.50"


@pytest.fixture
def cheap_one(account) -> Store:
    """Server 7 serves at $2.10 a day."""
    made = store_of(account)
    with made.write() as tx:
        tx.put_deployment(deployment())
        tx.put_lease(lease(LeaseState.ORDERED, Phase.SERVING))
    return made


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--per-day", "2/day"), "$2.10/day passes the fleet's budget of $2/day"),
        (("--total", "0.01"), "$0.00 of the total of $0.0100 is spent"),
        (("tiny", "--total", "0.01"), "$0.00 of the total of $0.0100 is spent"),
    ],
)
def test_a_ceiling_that_ends_what_runs_says_which_servers_before_it_is_set(account, cheap_one, words, why):
    refused = account("budget", *words)
    assert refused.code == 9 and "Server 7 of tiny, at $2.10/day, is given back" in refused.err
    assert why in refused.err and "No ceilings" in account("budget").out
    no = account.answered("n", "budget", *words)
    assert "It ends a server, $2.10/day." in " ".join(no.err.split()) and "as they were" in no.err
    assert "No ceilings" in account("budget").out
    agreed = account("budget", *words, "--yes")
    assert agreed.code == 0 and "is given back" in agreed.err and "Ceilings:" in agreed.out


def test_a_ceiling_that_carries_what_runs_is_set_without_a_question(account, cheap_one):
    run = account("budget", "--per-day", "3/day", "--total", "50")
    assert run.code == 0 and "given back" not in run.err and "$3/day for the fleet" in run.out
    assert account("budget", "--resume").code == 0 and account("budget", "--clear").code == 0


def test_a_total_of_a_deployment_is_counted_from_when_it_is_set(account):
    assert "No ceilings" in account("budget").out
    file = account.home / "home" / "state" / "default" / "clorefleet.db"
    with open_store(f"sqlite:///{file}").write() as tx:
        tx.put_deployment(deployment("glm"))
    before = SystemClock().now()
    assert account("budget", "glm", "--total", "5", "--json").json["deployment_totals_usd"] == {"glm": "5"}
    with open_store(f"sqlite:///{file}").read() as tx:
        assert tx.guard().deployment_totals_since["glm"] >= before
    assert account("budget", "glm", "--clear", "--json").json["deployment_totals_usd"] == {}


# -- wallets


def test_a_wallet_lasts_as_long_as_the_orders_and_their_fees_let_it(account, market):
    rent(market, FOREIGN)
    client = client_of(market)
    [order] = client.fetch_orders().live()
    fee = client.fetch_fees().percent(order.currency, is_spot=order.is_spot)
    assert fee > 0
    shown = account("wallet", "--json").json["wallets"]
    [wallet] = [each for each in shown if each["currency"] == order.currency]
    assert Decimal(wallet["orders_per_day"]) == order.price.amount
    lasts = Decimal(wallet["balance"]) / (order.price.amount * (1 + fee / 100))
    assert Decimal(wallet["runway_days"]) == round(lasts, 2)


def test_deploy_says_before_anything_is_rented_how_long_the_wallet_lasts(account, market):
    words = ("deploy", "smollm2-135m", "--budget", "16/day", "--replicas", "4", "--dry-run")
    assert "wallet lasts" not in account(*words).err
    for currency in ("CLORE-Blockchain", "bitcoin"):
        market.control("wallet", {"currency": currency, "balance": "0"})
    market.control("wallet", {"currency": "USD-Blockchain", "balance": "0.4"})
    run = account(*words)
    assert run.code == 0 and "With this the USD wallet lasts" in run.err

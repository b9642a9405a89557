"""The rules of the simulated market, with time that only the test moves."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest

from clorefleet.sandbox import gigaspot, hosting
from clorefleet.sandbox.coins import BITCOIN, CLORE, COINS, USD
from clorefleet.sandbox.market import EffectKind
from clorefleet.sandbox.orders import EndReason
from clorefleet.sandbox.records import Records
from clorefleet.sandbox.settings import OutbidFate, TcpPortsForm
from tests.sandbox.market_world import DAY_S, EPOCH_S, HOUR_S, MINUTE_S, World

NO_MONEY: dict[str, Any] = {"wallet_usd": Decimal("0.05")}


def exact(number: Any) -> Decimal:
    """As a client reads it: the decimal in the JSON text."""
    return Decimal(json.loads(json.dumps(number), parse_float=Decimal))


# create_order


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"type": "on_demand"}, 2),
        ({"type": None}, 2),
        ({"currency": "USD"}, 2),
        ({"renting_server": "20011"}, 2),
        ({"renting_server": True}, 2),
        ({"image": ""}, 2),
        ({"image": "a b"}, 2),
        ({"image": None}, 2),
        ({"type": "spot"}, 2),
        ({"type": "spot", "spotprice": 0}, 2),
        ({"ports": {"22": "udp"}}, 2),
        ({"ports": {"0": "tcp"}}, 2),
        ({"ports": {"80": "http", "81": "http"}}, 2),
        ({"ports": ["22"]}, 2),
        ({"env": {"A": 1}}, 2),
        ({"env": {"A": "x" * 2000}}, 2),
        ({"command": "x" * 70_000}, 2),
        ({"ssh_key": "not a key"}, 2),
        ({"required_price": "3.9"}, 2),
        ({"required_price": float("nan")}, 2),
        ({"required_price": Decimal("1e400")}, 2),
        ({"env": {"A": "x&y"}}, 1),
        ({"env": {"A": "é"}}, 1),
    ],
)
def test_create_refuses_what_the_service_cannot_take(changes: dict[str, Any], code: int) -> None:
    world = World()
    assert world.create(world.free(), **changes).payload == {"code": code}
    assert world.market.orders == {}


def test_create_answers_with_a_bare_zero_and_the_order_is_in_the_list() -> None:
    world = World()
    server = world.free()
    assert world.create(server).payload == {"code": 0}
    (order,) = world.listed().values()
    assert (order["si"], order["currency"], order["ct"]) == (server.id, USD, int(world.clock.now_s()))
    assert exact(order["price"]) == server.on_demand[USD]
    assert order["mrl"] == server.mrl_hours * HOUR_S
    assert "expired" not in order
    assert "spot" not in order


def test_each_known_form_of_an_id_in_the_answer_appears() -> None:
    world = World(order_id_rate=1.0, orders_limit=100)
    seen = set()
    for index in range(30):
        payload = dict(world.create(world.free(index)).payload)
        assert payload.pop("code") == 0
        (form,) = payload
        order_id = payload[form]["id"] if form == "order" else payload[form]
        assert order_id in world.market.orders
        seen.add(form)
    assert seen == {"order", "id", "order_id"}


@pytest.mark.parametrize(
    "case",
    [
        "no server",
        "offline",
        "rented by other",
        "rented by us",
        "currency",
        "money",
        "low bid",
        "gigaspot",
        "limit",
    ],
)
def test_create_names_its_refusals(case: str) -> None:
    world = World(**(NO_MONEY if case == "money" else {}), orders_limit=1 if case == "limit" else 50)
    servers = world.market.catalogue.servers.values()
    server, changes, expected = world.free(), {}, ""
    match case:
        case "no server":
            changes, expected = {"renting_server": 5}, "server-dont-exist"
        case "offline":
            world.market.start_outage(server.id, HOUR_S)
            expected = "server-offline"
        case "rented by other":
            world.market.rent_by_other(server.id)
            expected = "server-already-rented"
        case "rented by us":
            world.rent(server)
            expected = "server-already-rented"
        case "currency":
            server = next(s for s in servers if set(s.rentable_coins) == {BITCOIN} and not s.is_offline)
            changes, expected = {"currency": CLORE}, "currency-not-allowed"
        case "money":
            expected = "not_enough_balance"
        case "low bid":
            changes, expected = {"type": "spot", "spotprice": Decimal("0.01")}, "too_low_price"
        case "gigaspot":
            server = next(
                s for s in servers if s.on_gigaspot and not s.is_offline and USD in s.rentable_coins
            )
            changes, expected = {"type": "spot", "spotprice": 900}, "machine-is-on-gigaspot"
        case "limit":
            world.rent(world.free(1))
            expected = "orders_limit_reached"
    assert world.create(server, **changes).payload == {"code": 6, "error": expected}


def test_required_price_must_be_equal_and_is_sometimes_refused_all_the_same() -> None:
    world = World(required_price_refusal_rate=0.5, orders_limit=400)
    server = world.free()
    assert world.create(server, required_price=server.on_demand[USD] + 1).payload == {"code": 1}
    codes = []
    for index in range(40):
        candidate = world.free(index)
        codes.append(world.create(candidate, required_price=candidate.on_demand[USD]).payload["code"])
    assert set(codes) == {0, 1}
    assert len(world.market.orders) == codes.count(0)


# from order to node


def test_order_shows_late_then_gets_an_address_then_is_deployed() -> None:
    world = World(list_lag_real_s=2.0)
    order_id = world.rent(world.free())
    assert world.boots() == [(EffectKind.START, order_id)]
    world.market.orders[order_id].visible_real_s = world.real_s + 1
    assert world.listed() == {}
    world.real_s += 1
    world.market.node_addressed(order_id, 2200)
    seen = []
    for step_s in (0.0, 4.0, 0.0):
        world.real_s += step_s
        order = world.listed()[order_id]
        seen.append((order["mon_container"], order["pub_cluster"], order["tcp_ports"]))
        if step_s:
            world.market.node_deployed(order_id)
    address = (["127.0.0.1"], ["22:2200"])
    assert seen == [(0, [], []), (1, *address), (2, *address)]


def test_tcp_ports_can_be_an_object() -> None:
    world = World(tcp_ports=TcpPortsForm.OBJECT)
    order_id = world.rent(world.free())
    world.market.node_addressed(order_id, 2200)
    world.real_s += 10
    assert world.listed()[order_id]["tcp_ports"] == {"22": 2200}


# money


@pytest.mark.parametrize("coin", COINS)
def test_spend_and_wallet_agree_at_every_instant(coin: str) -> None:
    world = World()
    orders = [world.rent(world.free(index), currency=coin) for index in range(3)]
    start = world.market.credits[coin]
    for step_s in (1, 59, 60, 479, 1, 3600, 12_345):
        world.after(step_s)
        spent = sum(
            (exact(order["spend"]) for order in world.listed(with_completed=True).values()), Decimal(0)
        )
        wallets = {w["name"]: w["balance"] for w in world.market.wallets().payload["wallets"]}
        assert exact(wallets[coin]) == start - spent
        if step_s == 3600:
            world.market.cancel_order({"id": orders[0]})


def test_cancel_before_minute_ten_pays_no_creation_fee() -> None:
    world = World()
    early, late = world.rent(world.free(0)), world.rent(world.free(1))
    world.after(10 * MINUTE_S - 1).market.cancel_order({"id": early})
    world.after(1).market.cancel_order({"id": late})
    bills = [world.market.orders[order_id].bill_at(world.clock.now_s()) for order_id in (early, late)]
    assert [(bill.charged_s, bill.creation_fee) for bill in bills] == [
        (540, Decimal(0)),
        (600, Decimal("0.1")),
    ]


def test_charging_stops_with_the_cancel() -> None:
    world = World()
    order_id = world.rent(world.free())
    world.after(HOUR_S + 59).market.cancel_order({"id": order_id})
    before = world.balance()
    assert world.after(DAY_S).balance() == before
    assert world.market.orders[order_id].bill_at(world.clock.now_s()).charged_s == HOUR_S


def test_a_market_may_charge_by_the_second() -> None:
    world = World(charge_interval_s=1)
    order_id = world.rent(world.free())
    price = world.market.orders[order_id].price_per_day
    before = world.balance()
    world.after(59)
    charged = [
        (price * 59 / 86_400 * share).quantize(Decimal("0.00000001")) for share in (1, Decimal("0.05"))
    ]
    assert before - world.balance() == sum(charged)


def test_order_ends_at_its_longest_rental_however_late_anybody_looks() -> None:
    world = World()
    server = world.free()
    order_id = world.rent(server)
    world.boots()
    world.after(server.mrl_hours * HOUR_S + 5 * DAY_S)
    order = world.market.orders[order_id]
    assert (order.end_reason, order.ended_s) == (EndReason.RENTAL_LIMIT, order.limit_s)
    assert order.bill_at(world.clock.now_s()).charged_s == server.mrl_hours * HOUR_S
    assert world.boots() == [(EffectKind.STOP, order_id)]


def test_empty_wallet_ends_the_youngest_order_and_never_goes_below_zero() -> None:
    world = World(minimum_balance_hours=Decimal(0), creation_fee_usd=Decimal(0), wallet_usd=Decimal("1"))
    first, second = (world.rent(world.free(index)) for index in range(2))
    world.after(40 * DAY_S)
    orders = [world.market.orders[order_id] for order_id in (first, second)]
    assert {order.end_reason for order in orders} == {EndReason.OUT_OF_FUNDS}
    assert orders[1].ended_s <= orders[0].ended_s  # type: ignore[operator]
    unpaid_minute = orders[0].price_per_day * Decimal("1.05") / 1440
    assert 0 <= world.balance() < unpaid_minute + Decimal("0.00000002")


def test_how_often_one_looks_changes_nothing() -> None:
    def history(steps: int) -> list[tuple[Any, ...]]:
        world = World(churn=3.0, wallet_usd=Decimal(150), minimum_balance_hours=Decimal(0))
        for index in range(3):
            world.rent(world.free(index))
            world.bid(world.free(index + 3), "1.1")
        for _ in range(steps):
            world.after(20 * DAY_S / steps)
        return [
            (o.id, o.ended_s, o.end_reason, o.bill_at(world.clock.now_s()))
            for o in world.market.orders.values()
        ]

    once = history(1)
    assert once == history(480)
    assert len({entry[2] for entry in once}) >= 2


# cancelling


def test_cancel_is_understood_in_all_its_forms() -> None:
    world = World()
    order_id = world.rent(world.free())
    market = world.market
    answers = [
        market.cancel_order({"id": order_id, "issue": "x" * 2049}),
        market.cancel_order({"id": order_id + 1}),
        market.cancel_order({}),
        market.cancel_order({"id": str(order_id)}),
        market.cancel_order({"id": order_id}),
    ]
    assert [answer.payload for answer in answers] == [
        {"code": 6, "error": "issue_description_too_long"},
        {"code": 6, "error": "you_dont_own_this_order"},
        {"code": 2},
        {"code": 0},
        {"code": 6, "error": "order_not_active"},
    ]


def test_cancel_orders_names_those_it_could_not_cancel() -> None:
    world = World()
    ids = [world.rent(world.free(index)) for index in range(2)]
    answer = world.market.cancel_orders({"order_ids": [*ids, 5]})
    assert answer.payload == {"failed_to_cancel": ["5"], "code": 0}
    assert world.listed() == {}
    assert [o["expired"] for o in world.listed(with_completed=True).values()] == [True, True]
    assert world.market.cancel_orders({"order_ids": list(range(65))}).payload == {"code": 2}


def test_cancelled_order_may_stay_listed_for_some_polls_and_is_not_charged() -> None:
    world = World(cancel_linger_polls=2)
    lingering = []
    for index in range(12):
        order_id = world.rent(world.free(index))
        world.market.cancel_order({"id": order_id})
        lingering.append(0)
        while order_id in world.listed():
            lingering[-1] += 1
            world.after(HOUR_S)
        assert world.market.orders[order_id].bill_at(world.clock.now_s()).total == 0
    assert set(lingering) == {0, 1, 2}


# spot


def test_spot_order_lost_to_another_renter_ends_or_waits_as_set() -> None:
    for fate in OutbidFate:
        world = World(outbid=fate)
        server = world.free()
        order_id = world.bid(server)
        world.after(HOUR_S)
        world.market.rent_by_other(server.id, seconds=2 * HOUR_S)
        order = world.market.orders[order_id]
        assert order.is_live() is (fate is OutbidFate.WAITING)
        assert not order.is_active
        minutes_charged = order.bill_at(world.clock.now_s()).rent
        world.after(HOUR_S)
        assert order.bill_at(world.clock.now_s()).rent == minutes_charged
        world.after(2 * HOUR_S)
        assert order.is_active is (fate is OutbidFate.WAITING)
        starts = [kind for kind, _ in world.boots()]
        if fate is OutbidFate.ENDED:
            assert starts == [EffectKind.START, EffectKind.STOP]
        else:
            assert starts == [EffectKind.START, EffectKind.PAUSE, EffectKind.START]


def test_higher_bid_keeps_the_machine_and_lower_one_loses_it() -> None:
    world = World()
    keeps, loses = world.free(0), world.free(1)
    kept, lost = world.bid(keeps, "1.5"), world.bid(loses, "1.05")
    for server in (keeps, loses):
        world.market.rent_by_other(server.id, spot_bid_factor=1.2)
    assert world.market.orders[kept].is_active
    assert world.market.orders[lost].end_reason is EndReason.OUTBID
    offers = world.market.spot_marketplace(keeps.id).payload["market"]["offers"]
    assert [(offer["my"], offer["active"]) for offer in offers] == [(True, True), (False, False)]


def test_one_spot_order_per_server() -> None:
    world = World(outbid=OutbidFate.WAITING)
    server = world.free()
    world.bid(server)
    again = world.create(server, type="spot", spotprice=server.spot[USD])
    assert again.payload == {"code": 6, "error": "you_already_have_spot_order"}


def test_spot_price_rises_at_once_and_falls_slowly() -> None:
    world = World()
    server = world.free()
    order_id = world.bid(server, "2")
    start = world.market.orders[order_id].price_per_day

    def ask(factor: str) -> dict[str, Any]:
        price = (start * Decimal(factor)).quantize(Decimal("0.00000001"))
        return world.market.set_spot_price({"order_id": order_id, "desired_price": price}).payload

    assert ask("0.7")["error"] == "exceeded_max_step"
    assert exact(ask("0.7")["max_step"]) == (start / 10).quantize(Decimal("0.00000001"))
    assert ask("0.1")["error"] == "amount_too_low"
    assert ask("1.2") == {"code": 0}
    assert ask("1.1") == {"code": 0}
    world.after(400)
    assert ask("1.0") == {"code": 6, "error": "can_lower_every_600_seconds", "time_to_lowering": 201}
    world.after(201)
    assert ask("1.0") == {"code": 0}
    assert ask("1.3") == {"code": 0}
    assert (
        world.market.set_spot_price({"order_id": 1, "desired_price": 3}).payload["error"]
        == "order_dont_exist"
    )


def test_changed_bid_is_charged_from_the_running_minute() -> None:
    world = World()
    order_id = world.bid(world.free(), "1")
    order = world.market.orders[order_id]
    low = order.price_per_day
    world.after(30 * MINUTE_S + 30)
    assert world.market.set_spot_price({"order_id": order_id, "desired_price": low * 2}).payload == {
        "code": 0
    }
    world.after(30 * MINUTE_S)
    expected = (low * 30 + low * 2 * 30) / 1440
    assert order.bill_at(world.clock.now_s()).rent == expected.quantize(Decimal("0.00000001"))


def test_there_is_no_spot_market_of_an_unknown_server() -> None:
    assert World().market.spot_marketplace(5).payload == {"exists": False, "code": 0}


# reading


def test_marketplace_shows_every_server_and_marks_ours_as_rented() -> None:
    world = World()
    server = world.free()

    def rented() -> bool:
        listed = json.loads(world.market.marketplace())["servers"]
        assert len(listed) == world.settings.server_count
        return bool(next(entry["rented"] for entry in listed if entry["id"] == server.id))

    before = rented()
    order_id = world.rent(server)
    during = rented()
    world.market.cancel_order({"id": order_id})
    assert (before, during, rented()) == (False, True, False)


def test_moved_price_shows_in_the_list_and_is_what_the_order_costs() -> None:
    world = World()
    server = world.free()
    listed = server.on_demand[USD]
    world.faults.set("price_moved", {"count": 1, "factor": 1.5})
    assert world.create(server, required_price=listed).payload == {"code": 1}
    records = json.loads(world.market.marketplace(), parse_float=Decimal)["servers"]
    price = next(record["price"]["on_demand"][USD] for record in records if record["id"] == server.id)
    assert price == server.on_demand[USD] > listed * Decimal("1.49")


def test_coin_jump_moves_automatic_prices_and_nothing_in_usd() -> None:
    world = World()
    server = world.free()
    usd, clore = server.on_demand[USD], server.on_demand[CLORE]
    world.market.jump_coin(CLORE, Decimal(10))
    assert server.is_autopriced
    assert server.on_demand[USD] == usd
    assert Decimal("9.9") < clore / server.on_demand[CLORE] < Decimal("10.1")


def test_fees_of_a_holder_are_lowered() -> None:
    world = World(proof_of_holding=Decimal(1_000_000))
    order_id = world.rent(world.free())
    assert world.market.orders[order_id].fee_percent == Decimal("3.75")


def test_account_without_servers_has_an_empty_hosting_side() -> None:
    assert hosting.my_servers().payload == {"servers": [], "limit": 100, "code": 0}
    assert hosting.server_config({"server_name": "rig"}).payload["error"] == "server_dont_exist"
    assert hosting.set_server_settings({"name": "rig"}).payload["error"] == "not_all_parameters_present"
    complete = {"name": "rig", "availability": True, "mrl": 96, "on_demand": 0.0001, "spot": 0.00001}
    assert hosting.set_server_settings({**complete, "mrl": 3}).payload["error"] == "invalid_mrl"
    assert hosting.set_server_settings(complete).payload["error"] == "server_dont_exist"


def test_gigaspot_has_the_documented_shapes() -> None:
    market = World().market
    snapshot = gigaspot.snapshot(
        market.catalogue, is_rented=market.is_rented_by_other, is_online=market.is_online
    )
    server_id, record = next(iter(snapshot.items()))
    assert server_id.isdigit()
    assert record["min_bid"] > 0
    bids = [
        {"currency": CLORE, "image": "a" * 24, "renting_server": int(server_id), "price": price, "oc": []}
        for price in (Decimal("0.001"), Decimal(5000))
    ]
    answer = gigaspot.create_orders(market.catalogue, bids).payload
    assert answer["too_low_bids_servers"] == [int(server_id)]
    assert answer["failed_to_rent_servers"] == [int(server_id)]
    edited = gigaspot.edit_orders([{"order_id": 1, "price": 2}]).payload
    assert edited["failed_to_update_ids"] == [1]


# what survives a kill


def test_orders_money_and_bids_survive_a_restart() -> None:
    world = World(outbid=OutbidFate.WAITING)
    on_demand, spot = (
        world.rent(world.free(0), env={"A": "b"}, ssh_password="pw"),
        world.bid(world.free(1), "1.3"),
    )
    ended = world.rent(world.free(2))
    world.after(2 * HOUR_S).market.cancel_order({"id": ended})
    world.market.rent_by_other(world.free(1).id, seconds=HOUR_S)
    world.market.set_balance(CLORE, Decimal(7))
    world.market.start_outage(world.free(3).id, DAY_S)
    again = World(world.records, now_s=world.clock.now_s(), outbid=OutbidFate.WAITING)
    assert again.market.orders == world.market.orders
    assert again.market.orders[on_demand].request.env == {"A": "b"}
    assert not again.market.orders[spot].is_active
    assert [again.balance(coin) for coin in COINS] == [world.balance(coin) for coin in COINS]
    assert not again.market.is_online(again.market.catalogue.servers[world.free(3).id])
    for each in (world, again):
        each.after(3 * HOUR_S)
    assert again.market.orders == world.market.orders
    assert again.market.orders[spot].is_active


def test_wallet_can_be_set_and_refuses_nonsense() -> None:
    world = World()
    world.rent(world.free())
    world.after(HOUR_S).market.set_balance(USD, Decimal("3.5"))
    assert world.balance() == Decimal("3.5")
    for balance in (Decimal(-1), Decimal(10**8)):
        with pytest.raises(ValueError, match="balance"):
            world.market.set_balance(USD, balance)


# faults that are the market's own


def test_late_order_is_hidden_for_its_polls() -> None:
    world = World()
    world.faults.set("late_order", {"polls": 3})
    order_id = world.rent(world.free())
    assert [order_id in world.listed() for _ in range(5)] == [False, False, False, True, True]


def test_vanishing_order_comes_back_and_was_charged_meanwhile() -> None:
    world = World()
    order_id = world.rent(world.free())
    world.faults.set("vanishing_order", {"count": 1, "polls": 2})
    assert [order_id in world.after(HOUR_S).listed() for _ in range(4)] == [False, False, True, True]
    assert world.market.orders[order_id].bill_at(world.clock.now_s()).charged_s == 4 * HOUR_S


def test_duplicate_order_is_charged_and_duplicate_line_is_not() -> None:
    world = World()
    world.faults.set("duplicate_order", {"count": 1})
    assert world.create(world.free()).payload["code"] == 0
    assert len(world.market.orders) == 2
    world.faults.set("duplicate_in_list", {"count": 1})
    answer = world.market.my_orders(with_completed=False).payload["orders"]
    assert len(answer) == 3
    assert answer[1] == answer[2]


def test_other_hardware_is_behind_the_order_while_the_list_shows_the_offer() -> None:
    world = World()
    server = world.free()
    world.faults.set("other_hardware", {"count": 1})
    order_id = world.rent(server)
    assert world.market.truth_of(world.market.orders[order_id]) != server.truth
    assert world.listed()[order_id]["gpu_array"] == [kind.short_name for kind in server.gpus]


def test_ignored_cancel_lives_on_and_misreported_cancel_does_not() -> None:
    world = World()
    order_id = world.rent(world.free())
    world.faults.set("cancel_ignored", {"count": 1})
    assert world.market.cancel_order({"id": order_id}).payload == {"code": 0}
    assert world.market.orders[order_id].is_live()
    world.faults.set("cancel_reported_failed", {"count": 1})
    assert world.market.cancel_order({"id": order_id}).payload["error"] == "order_not_active"
    assert not world.market.orders[order_id].is_live()


def test_host_can_end_an_order_by_itself() -> None:
    world = World()
    order_id = world.rent(world.free())
    world.faults.set("order_dies", {"count": 1})
    assert world.after(HOUR_S).listed() == {}
    assert world.market.orders[order_id].end_reason is EndReason.HOST_GONE


def test_stale_balance_is_that_of_the_last_honest_answer() -> None:
    world = World()
    world.rent(world.free())
    first = world.market.wallets().payload
    world.faults.set("stale_balance", {"count": 1})
    assert world.after(HOUR_S).market.wallets().payload == first
    assert world.market.wallets().payload != first


def test_moved_fee_and_empty_wallet_and_named_refusal_reach_the_order() -> None:
    world = World()
    world.faults.set("fee_moved", {"count": 1, "percent": 9})
    assert world.market.orders[world.rent(world.free())].fee_percent == 9
    world.faults.set("wallet_empty", {"count": 1})
    assert world.create(world.free(1)).payload["error"] == "not_enough_balance"
    world.faults.set("create_refused", {"count": 1, "error": "server-offline"})
    assert world.create(world.free(1)).payload["error"] == "server-offline"
    assert world.create(world.free(1)).payload["code"] == 0


def test_instants_between_two_settlements_never_split_one_answer() -> None:
    world = World(wallet_usd=Decimal("0.5"), minimum_balance_hours=Decimal(0), creation_fee_usd=Decimal(0))
    order_id = world.rent(world.free())
    world.clock.advance(30 * DAY_S)  # the wallet ran dry long ago, and nobody has looked yet
    spent = world.market.my_orders(with_completed=True).payload["orders"][0]["spend"]
    assert world.market.balance(USD, world.market.now_s) == Decimal("0.5") - exact(spent)
    assert world.listed() == {}
    assert world.market.orders[order_id].end_reason is EndReason.OUT_OF_FUNDS


def test_what_fell_due_while_a_killed_sandbox_was_down_happens_at_its_own_time() -> None:
    """A kill loses the time since the last mark; the next start is later, and must not bill it wrongly."""

    def world(records: Records | None = None, now_s: float = EPOCH_S) -> World:
        return World(
            records, now_s=now_s, churn=3.0, wallet_usd=Decimal(40), minimum_balance_hours=Decimal(0)
        )

    killed, spared = world(), world()
    for each in (killed, spared):
        each.rent(each.free(0))
        each.bid(each.free(1), "1.1")
    restarted = world(killed.records, now_s=EPOCH_S + 20 * DAY_S)
    restarted.market.settle()
    spared.after(20 * DAY_S)
    assert restarted.market.orders == spared.market.orders
    assert restarted.balance() == spared.balance()
    assert not restarted.market.live()

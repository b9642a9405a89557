"""Wire records to offers, orders, wallets, fees and coin rates."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from clorefleet.domain.money import Currency, Money, Rate
from clorefleet.domain.offer import DOCUMENTED_FEES, MarketRates, Offer
from clorefleet.domain.order import Order
from clorefleet.market import convert, wire
from clorefleet.market.price_band import band_of
from tests.market.scripted import order_doc, parsed, server_doc

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def _offer(**changes: Any) -> Offer:
    others = [server_doc(1), server_doc(2), server_doc(3)]
    decoded = wire.read_marketplace(parsed({"servers": [*others, server_doc(4, **changes)]})).records
    return convert.offer(decoded[-1], convert.coin_rates(decoded, read_at=NOW))


def _order(**changes: Any) -> Order:
    read = wire.read_order(parsed(order_doc(**changes)))
    assert read is not None
    return convert.order(read)


def _specs(**changes: Any) -> dict[str, Any]:
    return {"specs": server_doc()["specs"] | changes}


def _codes(offer: Offer) -> set[str]:
    return {flag.code for flag in offer.flags}


@pytest.mark.parametrize(
    ("bid", "is_one"), [("0.5", True), ("1e8", True), ("100000000.00000001", False), ("9e17", False)]
)
def test_a_least_bid_beyond_all_prices_is_none(bid: str, is_one: bool) -> None:
    told = server_doc()["price"] | {"spot": {"USD-Blockchain": "0.7", "bitcoin": bid}}
    spot = _offer(price=told, allowed_coins=["USD-Blockchain", "bitcoin"]).spot
    assert Rate.per_day("0.7") in spot
    assert (Currency.BITCOIN in {rate.currency for rate in spot}) is is_one


def test_the_documented_server_becomes_an_offer_with_all_its_figures() -> None:
    offer = _offer(price=server_doc()["price"] | {"on_demand": {"USD-Blockchain": "3.9"}})
    assert offer.gpu_summary == "1x RTX 4090"
    assert offer.gpus[0].claimed_vram_gib == 24
    assert (offer.cores, offer.threads) == (12, 24)
    assert offer.ram_bytes == int(Decimal("31.2286") * 2**30)
    assert offer.disk_free_bytes == 456_039_900_000
    assert offer.cuda_version == (12, 2)
    assert offer.max_rental_s == 72 * 3600
    assert offer.country == "DE"
    assert offer.on_demand == (Rate.per_day("3.9"),)
    assert offer.usd_per_day == Rate.per_day("3.9")
    assert not offer.is_rented


@pytest.mark.parametrize(
    ("described", "listed", "names"),
    [
        ("1x NVIDIA GeForce RTX 4090", ["RTX 4090"], ("RTX 4090",)),
        ("8x NVIDIA GeForce RTX 3060 Ti", None, ("RTX 3060 Ti",) * 8),
        ("1x GeForce GTX 745", [["GTX 745 "]], ("GTX 745",)),
        ("2x NVIDIA H100 80GB HBM3", [" H100 ", "H100"], ("H100 80GB HBM3",) * 2),
        ("3x Mixed", ["RTX 3090", "RTX 3090", "RTX 3060"], ("RTX 3090", "RTX 3090", "RTX 3060")),
        ("3x Mixed", None, ()),
        ("", ["RTX 4090", "RTX 4090"], ("RTX 4090",) * 2),
        ("NVIDIA L40S", None, ("L40S",)),
        ("99999x NVIDIA L40S", None, ()),
        ("1000000000000x NVIDIA L40S", None, ()),
        ("1x Tesla V100(TM)-SXM2-16GB", None, ("Tesla V100 -SXM2-16GB",)),
        (None, None, ()),
        (17, 17, ()),
    ],
)
def test_gpu_names_are_cleaned_and_counted(described: Any, listed: Any, names: tuple[str, ...]) -> None:
    offer = _offer(**_specs(gpu=described), gpu_array=listed)
    assert tuple(gpu.name for gpu in offer.gpus) == names


def test_a_mixed_rig_claims_no_memory_unless_each_gpu_tells_its_own() -> None:
    mixed = {"gpu": "2x Mixed", "gpuram": 24}
    offer = _offer(**_specs(**mixed), gpu_array=["RTX 3090", "RTX 3060"])
    assert [gpu.claimed_vram_gib for gpu in offer.gpus] == [None, None]
    each = [{"type": "RTX 3090", "mem": 24}, {"type": "RTX 3060", "mem": 12}]
    offer = _offer(**_specs(**mixed, gpus=each), gpu_array=["RTX 3090", "RTX 3060"])
    assert [gpu.claimed_vram_gib for gpu in offer.gpus] == [24, 12]


def test_only_currencies_that_are_both_priced_and_allowed_are_offered() -> None:
    offer = _offer(allowed_coins=["bitcoin", "USD-Blockchain", "doge"])
    assert {rate.currency for rate in offer.on_demand} == {Currency.BITCOIN, Currency.USD}
    assert {rate.currency for rate in offer.spot} == {Currency.BITCOIN, Currency.USD}
    assert offer.price_in(Currency.BITCOIN, is_spot=False) == Rate.per_day("0.0000412", Currency.BITCOIN)


def _priced(usd: str) -> dict[str, Any]:
    return {"price": {"on_demand": {"USD-Blockchain": Decimal(usd)}}}


@pytest.mark.parametrize(
    ("changes", "flags"),
    [
        ({}, set()),
        ({"price": None}, {"no_price"}),
        ({"allowed_coins": []}, {"no_price"}),
        ({"price": {"on_demand": {"USD-Blockchain": 0}}}, {"no_price"}),
        (_priced("3.9"), set()),
        (_priced("0.1625"), {"price_out_of_band"}),
        (_priced("93.6"), {"price_out_of_band"}),
        ({"price": {"on_demand": {"USD-Blockchain": 3.9, "CLORE-Blockchain": 480}}}, {"prices_disagree"}),
        ({"price": {"on_demand": {"USD-Blockchain": 3.9, "CLORE-Blockchain": 450}}}, set()),
        ({"cuda_version": None}, {"cuda_unknown"}),
        ({"gigaspot": True}, {"gigaspot"}),
        ({"gigaspot": {"min_bid": 5}}, {"gigaspot"}),
        ({"gigaspot": False}, set()),
        ({"specs": None, "gpu_array": None}, {"specs_missing"}),
        (_specs(ram=None), {"specs_missing"}),
        (_specs(disk="no size"), {"specs_missing"}),
    ],
)
def test_offers_that_cannot_be_trusted_are_flagged_with_a_sentence(
    changes: dict[str, Any], flags: set[str]
) -> None:
    offer = _offer(**changes)
    assert _codes(offer) == flags
    assert all(flag.text.endswith(".") for flag in offer.flags)


def test_a_price_per_hour_taken_for_one_per_day_is_noticed_for_every_known_gpu() -> None:
    for name in ("RTX 3080", "RTX 3090", "RTX 4090", "RTX 5090", "A100 80GB PCIe", "H100 80GB HBM3", "H200"):
        band = band_of(name)
        usual = (band.low * band.high).sqrt()
        assert usual in band
        assert usual * 24 not in band
        assert usual / 24 not in band


@pytest.mark.parametrize(
    ("name", "known"), [("RTX 3090 Ti", "RTX 3090 Ti"), ("RTX 4080 SUPER", "RTX 4080"), ("l40s", "L40S")]
)
def test_the_longest_known_name_gives_the_band(name: str, known: str) -> None:
    assert band_of(name) == band_of(known)


def test_l4_is_not_taken_for_l40() -> None:
    assert band_of("L4") != band_of("L40") != band_of("L40S")


def test_a_server_on_gigaspot_has_no_spot_price_here() -> None:
    assert _offer(gigaspot=True).spot == ()


def test_hostile_hardware_names_arrive_harmless_and_short() -> None:
    offer = _offer(
        **_specs(cpu="\x1b[2Jfree\x07" + "A" * 9000, gpu="1x \u202eRTX\r\n4090", net={"cc": "\x1bD"})
    )
    shown = offer.cpu_model + offer.gpu_summary + offer.country
    assert shown.isprintable()
    assert len(offer.cpu_model) <= convert.CPU_CHARS_MAX + 1
    assert offer.country == ""


# -- coin rates


def _rates(*servers: dict[str, Any]) -> MarketRates:
    return convert.coin_rates(wire.read_marketplace(parsed({"servers": list(servers)})).records, read_at=NOW)


def test_coin_rates_are_the_median_of_the_markets_own_conversion() -> None:
    liar = server_doc(9)
    liar["price"] = {"on_demand": {"CLORE-Blockchain": 1}, "usd": {"on_demand_clore": 1000}}
    rates = _rates(server_doc(1), server_doc(2), server_doc(3), server_doc(4), liar)
    found = rates.of_currency(Currency.CLORE)
    assert found is not None
    assert abs(found.usd_per_unit - Decimal("3.9") / Decimal("410.5")) < Decimal("1e-12")
    assert found.as_of == NOW
    assert "median of 5" in found.source


def test_a_rate_that_too_few_servers_show_is_not_believed() -> None:
    assert _rates(server_doc(1), server_doc(2)).of_currency(Currency.CLORE) is None


def test_usd_prices_typed_by_hosts_serve_where_the_market_shows_none() -> None:
    def typed(server_id: int) -> dict[str, Any]:
        price = {
            "on_demand": {"bitcoin": 0.00004},
            "original_usd": {"bitcoin": {"on_demand": 3.8, "spot": 2}},
        }
        return server_doc(server_id, price=price)

    found = _rates(typed(1), typed(2), typed(3)).of_currency(Currency.BITCOIN)
    assert found is not None
    assert found.usd_per_unit == Decimal(95_000)


# -- orders


def test_the_documented_order_becomes_an_order() -> None:
    order = _order()
    assert order.price == Rate.per_day("3.9")
    assert order.spend == Money.usd("0.2137")
    assert order.creation_fee == Money.usd("0.1")
    assert order.created_at == datetime(2025, 11, 24, 1, 0, tzinfo=UTC)
    assert order.max_rental_s == 259_200
    assert order.ssh is not None
    assert (order.ssh.hosts, order.ssh.port) == (("n1.de.clorecloud.net",), 1380)
    assert order.container_state == 0
    assert order.is_online is None
    assert order.gpu_summary == "1x RTX 4090"


@pytest.mark.parametrize(
    "changes",
    [
        {"pub_cluster": []},
        {"tcp_ports": []},
        {"tcp_ports": ["8888:1381"]},
        {"pub_cluster": ["-oProxyCommand=id"]},
        {"pub_cluster": ["a b"]},
        {"pub_cluster": None},
    ],
)
def test_an_order_without_a_usable_address_has_none(changes: dict[str, Any]) -> None:
    assert _order(**changes).ssh is None


@pytest.mark.parametrize(
    "changes",
    [{"si": None}, {"price": None}, {"currency": "doge"}, {"ct": 1e30}, {"ct": "soon"}, {"specs": 5}],
)
def test_an_order_with_a_broken_field_stays_in_the_list(changes: dict[str, Any]) -> None:
    assert _order(**changes).order_id == 602837


@pytest.mark.parametrize(
    "told",
    [
        "0001-01-01T00:00:00+01:00",
        "0001-01-01T00:00:00",
        "9999-12-31T23:59:59-01:00",
        "2026-13-01",
        "2026-01-01T00:00:00+99:00",
        "soon",
        "",
        0,
        -62_135_596_800,
        253_402_300_799,
        1e30,
        -1e30,
    ],
)
def test_a_time_that_no_order_can_have_counts_as_not_told(told: str | float) -> None:
    assert _order(ct=told).created_at is None
    assert _order(ct=None, created_at=told).created_at is None


@pytest.mark.parametrize("told", ["2026-01-02T03:04:05+01:00", "2026-01-02T02:04:05", "2026-01-02T02:04:05Z"])
def test_a_time_as_text_is_read_with_its_offset(told: str) -> None:
    assert _order(ct=None, created_at=told).created_at == datetime(2026, 1, 2, 2, 4, 5, tzinfo=UTC)


def test_an_order_in_an_unknown_currency_matches_no_approved_price() -> None:
    assert _order(currency="doge").price == Rate.per_day(0)


def test_of_two_records_of_one_order_the_live_one_counts() -> None:
    doc = {"orders": [order_doc(1, expired=True), order_doc(1), order_doc(1, expired=True), order_doc(2)]}
    orders = convert.orders(wire.read_orders(parsed(doc)).records)
    assert [(order.order_id, order.is_expired) for order in orders] == [(1, False), (2, False)]


def test_a_number_that_the_market_gave_anew_is_two_orders() -> None:
    """The ended one's record is the only one that tells its final bill."""
    ended = order_doc(1, si=5, expired=True, spend=1.5)
    live = order_doc(1, si=7)
    for docs in ([ended, live], [live, ended], [ended, ended, live]):
        found = convert.orders(wire.read_orders(parsed({"orders": docs})).records)
        assert {(order.server_id, order.is_expired) for order in found} == {(5, True), (7, False)}
        assert len(found) == 2


# -- wallets and fees


def test_wallets_keep_a_null_balance_apart_from_zero() -> None:
    doc = {
        "wallets": [
            {"name": "bitcoin", "balance": 0.04101593},
            {"name": "CLORE-Blockchain", "balance": None},
            {"name": "USD-Blockchain", "balance": 0},
            {"name": "doge", "balance": 5},
            None,
        ]
    }
    found = {
        wallet.currency: wallet.balance for wallet in convert.wallets(wire.read_wallets(parsed(doc)).records)
    }
    assert found == {
        Currency.BITCOIN: Money(Decimal("0.04101593"), Currency.BITCOIN),
        Currency.CLORE: None,
        Currency.USD: Money.usd(0),
    }


def test_fees_add_base_and_extra_and_take_the_higher_creation_fee() -> None:
    coins = ("bitcoin", "CLORE-Blockchain", "USD-Blockchain")
    doc = {
        "renter_fees": {
            "on_demand": {"base": dict.fromkeys(coins, 5), "extra": {"USD-Blockchain": 1}},
            "spot": {"base": dict.fromkeys(coins, Decimal("1.25"))},
        },
        "creation_fees": {
            "on_demand": dict.fromkeys(coins, Decimal("0.1")),
            "spot": {"bitcoin": Decimal("0.3")},
        },
    }
    fees = convert.fees(wire.read_fees(parsed(doc)))
    assert fees.source == "market"
    assert fees.percent(Currency.USD, is_spot=False) == 6
    assert fees.percent(Currency.BITCOIN, is_spot=True) == Decimal("1.25")
    assert fees.creation(Currency.BITCOIN) == Decimal("0.3")


def test_missing_fees_are_the_documented_ones_and_say_so() -> None:
    fees = convert.fees(wire.read_fees({}))
    assert fees.source == "assumed"
    assert fees.percent(Currency.USD, is_spot=False) == DOCUMENTED_FEES.percent(Currency.USD, is_spot=False)
    assert fees.creation(Currency.USD) == DOCUMENTED_FEES.creation(Currency.USD)

"""Gigaspot: a market of its own, readable in full. This account may not bid there.

Every well-formed bid is therefore turned down, in the documented lists: under the least bid in
`too_low_bids_servers`, all others in `failed_to_rent_servers`.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any

from clorefleet.sandbox.catalogue import Catalogue, MarketServer
from clorefleet.sandbox.coins import BITCOIN, CLORE, wire_number
from clorefleet.sandbox.reply import Code, Reply, Wire, failure, ok

_HOUR_S = 3600
_BIDS_MAX = 1000
_BID_FIELDS = {"currency", "image", "renting_server", "price", "oc"}
_EDIT_FIELDS = {"order_id", "price"}


def get_gigaspot(catalogue: Catalogue, *, user_id: int, snapshot_url: str) -> Reply:
    return ok(
        my_user_id=user_id,
        v1_snapshot_url=snapshot_url,
        clore_price=wire_number(catalogue.rates.usd[CLORE]),
        creation_fees={CLORE: 0.5, BITCOIN: 0.0000001},
    )


def snapshot(
    catalogue: Catalogue,
    *,
    is_rented: Callable[[MarketServer], bool],
    is_online: Callable[[MarketServer], bool],
) -> Wire:
    """The public file behind `v1_snapshot_url`, keyed by server id as a text."""
    return {
        str(server.id): _record(catalogue, server, is_rented=is_rented(server), is_online=is_online(server))
        for server in catalogue.servers.values()
        if server.on_gigaspot
    }


def create_orders(catalogue: Catalogue, bids: Any) -> Reply:
    if not _is_list_of_objects(bids, _BID_FIELDS):
        return failure(Code.INVALID_INPUT)
    too_low: list[Any] = []
    failed: list[Any] = []
    for bid in bids:
        server = _bid_on(catalogue, bid)
        is_low = server is not None and Decimal(bid["price"]) < _least_bid(catalogue, server)
        (too_low if is_low else failed).append(bid["renting_server"])
    return ok(
        status="ok",
        failed_to_oc_servers=[],
        failed_to_rent_servers=failed,
        too_low_bids_servers=too_low,
    )


def edit_orders(edits: Any) -> Reply:
    if not _is_list_of_objects(edits, _EDIT_FIELDS):
        return failure(Code.INVALID_INPUT)
    failed = [edit["order_id"] for edit in edits]
    return ok(success_to_update_ids=[], failed_to_update_ids=failed, too_low_bid_ids=[])


def _bid_on(catalogue: Catalogue, bid: Wire) -> MarketServer | None:
    """The server of a readable bid in CLORE, if it is on gigaspot."""
    server_id, price = bid["renting_server"], bid["price"]
    if bid["currency"] != CLORE or not isinstance(server_id, int) or not isinstance(price, int | Decimal):
        return None
    server = catalogue.servers.get(server_id)
    return server if server is not None and server.on_gigaspot else None


def _least_bid(catalogue: Catalogue, server: MarketServer) -> Decimal:
    return catalogue.rates.from_usd(CLORE, server.spot_usd or server.on_demand_usd)


def _record(catalogue: Catalogue, server: MarketServer, *, is_rented: bool, is_online: bool) -> Wire:
    return {
        "bids": [],
        "on_demand_rented": is_rented,
        "online": is_online,
        "cpu": server.cpu.model,
        "cores": server.cpu.cores,
        "threads": server.cpu.threads,
        "ram": server.ram_gib,
        "gpus": [
            {
                "model": gpu.short_name,
                "pl": [100, gpu.power_limit_w],
                "mem_lock": [405, 9751],
                "core_lock": [210, 2100],
                "mem_offset": [-2000, 2000],
                "core_offset": [-1000, 100],
            }
            for gpu in server.gpus
        ],
        "working_properly": True,
        "cuda": server.cuda_version,
        "max_rental_length": server.mrl_hours * _HOUR_S,
        "cc": server.country,
        "host": server.owner_id,
        "reliability": server.reliability,
        "min_bid": wire_number(_least_bid(catalogue, server)),
        "energy_price": 0.05,
    }


def _is_list_of_objects(value: Any, needed: set[str]) -> bool:
    if not isinstance(value, list) or len(value) > _BIDS_MAX:
        return False
    return all(isinstance(item, dict) and needed <= item.keys() for item in value)

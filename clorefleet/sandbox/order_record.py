"""The wire record of an order in `my_orders`."""

from __future__ import annotations

import random

from clorefleet.sandbox.catalogue import MarketServer
from clorefleet.sandbox.coins import wire_number
from clorefleet.sandbox.listing import gpu_names, wire_specs
from clorefleet.sandbox.orders import SandboxOrder
from clorefleet.sandbox.reply import Wire
from clorefleet.sandbox.settings import SandboxSettings, TcpPortsForm

_DEPLOYED, _DEPLOYING, _NOT_YET = 2, 1, 0
_FEE_SHOWN_RATE = 0.5
_OFFLINE_SAID_RATE = 0.7
"""`online` may be absent; a client must read that as not online."""


def wire_order(
    order: SandboxOrder,
    server: MarketServer,
    settings: SandboxSettings,
    *,
    now_s: float,
    real_s: float,
    is_host_online: bool,
    shows_end: bool,
) -> Wire:
    """The record at simulated `now_s`.

    An ended order without `shows_end` still looks live: its cancel lingers.
    """
    rng = random.Random(f"{settings.seed}:order:{order.id}")
    is_live = order.is_live()
    has_address = (
        is_live and order.is_active and order.ssh_port is not None and real_s >= order.address_real_s
    )
    http_port = next((port for port, protocol in order.request.ports.items() if protocol == "http"), "")
    record: Wire = {
        "id": order.id,
        "creation_fee": wire_number(order.creation_fee),
        "price": wire_number(order.price_per_day),
        "mrl": order.mrl_s,
        "image": order.request.image,
        "currency": order.currency,
        "original_price_usd": wire_number(order.original_price_usd),
        "spend": wire_number(order.bill_at(now_s).total),
        "ct": order.ct + settings.ct_skew_s,
        "specs": wire_specs(server, settings.seed),
        "si": order.server_id,
        "owner": order.owner_id,
        "auto_login": "",
        "mon_container": _container_state(order, has_address=has_address),
        "pub_cluster": ["127.0.0.1"] if has_address else [],
        "tcp_ports": _tcp_ports(order, settings, has_address=has_address),
        "http_port": http_port if has_address else "",
        "http_pub": f"sandbox{order.id}.invalid" if http_port and has_address else "",
        "rating": {"avg": 0, "cnt": 0},
        "reliability": server.reliability,
        "cuda_version": server.cuda_version,
        "gpu_array": gpu_names(server),
    }
    if rng.random() < _FEE_SHOWN_RATE:
        record["fee"] = wire_number(order.fee_percent / 100)
    is_up = is_live and order.is_deployed and is_host_online
    if is_up or rng.random() < _OFFLINE_SAID_RATE:
        record["online"] = is_up
    if order.is_spot:
        record["spot"] = True
    if not is_live and shows_end:
        record["expired"] = True
    return record


def _container_state(order: SandboxOrder, *, has_address: bool) -> int:
    if not has_address:
        return _NOT_YET
    return _DEPLOYED if order.is_deployed else _DEPLOYING


def _tcp_ports(
    order: SandboxOrder, settings: SandboxSettings, *, has_address: bool
) -> list[str] | dict[str, int]:
    """Only port 22 has a way out of a sandbox node."""
    is_object = settings.tcp_ports is TcpPortsForm.OBJECT
    if not has_address or order.ssh_port is None or order.request.ports.get("22") != "tcp":
        return {} if is_object else []
    return {"22": order.ssh_port} if is_object else [f"22:{order.ssh_port}"]

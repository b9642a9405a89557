"""The wire record of a server in `marketplace`, with the oddities that live answers have.

Each oddity appears at about the rate at which it was seen in captured data, or at a small made-up one
where only its existence is known. Which servers have it follows from the seed alone.
"""

from __future__ import annotations

import json
import random

from clorefleet.sandbox.catalogue import Catalogue, MarketServer
from clorefleet.sandbox.coins import BITCOIN, CLORE, COINS, USD, CoinRates, wire_number
from clorefleet.sandbox.reply import Wire

_HOSTILE_RATE = 0.001
_HOSTILE_TEXTS = (
    "\x1b[2J\x1b[1;31mFREE GPU\x1b[0m",
    "EPYC\x1b]52;c;ZWNobyBoaQ==\x07 7742",
    "Ryzen \u202e9 5950X\u202c",
    "B550\r\nreliability: 1.0",
    "[bold red]i9-13900K[/] $(reboot)",
)
"""Hosts name their own hardware: escapes, bidirectional overrides, line breaks and markup get in."""


def wire_record(server: MarketServer, rates: CoinRates, seed: int) -> Wire:
    """The record without `rented`, which changes by the minute."""
    rng = random.Random(f"{seed}:listing:{server.id}")
    record: Wire = {
        "id": server.id,
        "owner": server.owner_id,
        "mrl": server.mrl_hours,
        "price": _price(server, rates, rng),
        "rented": False,
        "specs": wire_specs(server, seed),
        "reliability": server.reliability,
        "allowed_coins": list(server.allowed_coins),
        "rating": _rating(rng),
    }
    names = gpu_names(server)
    roll = rng.random()
    if roll < 0.03:
        record["gpu_array"] = [f" {name} " for name in names]
    elif roll < 0.07:
        record["gpu_array"] = [names]
    elif roll < 0.88:
        record["gpu_array"] = names
    if server.is_autopriced and rng.random() < 0.9:
        record["autoprice"] = "usd"
    if rng.random() > 0.0006:
        record["cuda_version"] = server.cuda_version
    if server.on_gigaspot:
        record["gigaspot"] = rng.choice((True, {"min_bid": 5, "enabled": True}))
    if rng.random() < 0.157:
        record["oc"] = True
    if rng.random() < 0.0004:
        record["verification"] = 1
    if rng.random() < 0.01:
        record["partial_gpu_rental"] = rng.random() < 0.5
    return record


def gpu_names(server: MarketServer) -> list[str]:
    return [kind.short_name for kind in server.gpus]


def wire_specs(server: MarketServer, seed: int) -> Wire:
    """`specs` of one server; the same in `marketplace` and in its orders."""
    rng = random.Random(f"{seed}:specs:{server.id}")
    kind, n = server.gpus[0], len(server.gpus)
    is_mixed = len({gpu.id for gpu in server.gpus}) > 1
    ram = server.ram_gib if rng.random() > 0.05 else server.ram_gib + 6.4178466797e-05
    net: Wire = {
        "cc": server.country,
        "down": _maybe_int(server.down_mbit_s, rng),
        "up": _maybe_int(server.up_mbit_s, rng),
    }
    if rng.random() < 0.2:
        net["test_history"] = [f"{server.down_mbit_s * rng.uniform(0.8, 1.1):.1f}" for _ in range(3)]
    model = "" if rng.random() < 0.08 else server.disk_model
    specs: Wire = {
        "mb": server.cpu.board,
        "cpu": server.cpu.model,
        "cpus": f"{server.cpu.cores}/{server.cpu.threads}",
        "ram": ram,
        "disk": f"{model} {server.disk_gb:.4f}GB",
        "disk_speed": server.disk_mb_s,
        "gpu": f"{n}x Mixed" if is_mixed else f"{n}x {kind.driver_name}",
        "gpuram": kind.marketed_gb,
        "net": net,
        "backend_version": rng.choice((6, 8, 9, 9, 9, 11)),
        "pcie_rev": server.pcie_generation,
        "pcie_width": server.pcie_width,
        "pl": _power_limits(server, rng),
    }
    if rng.random() < 0.6:
        specs["stock_pl"] = [gpu.power_limit_w for gpu in server.gpus]
        specs["stock_oc"] = _stock_oc(server, rng)
    if rng.random() < 0.03:
        specs["stock_oc_override"] = rng.random() < 0.5
    if rng.random() < 0.15:
        specs["xfs"] = 1
    if rng.random() < 0.3:
        specs["gpus"] = [
            {
                "type": gpu.short_name,
                "mem": gpu.marketed_gb,
                "pcie_gen": server.pcie_generation,
                "pcie_width": server.pcie_width,
            }
            for gpu in server.gpus
        ]
    if rng.random() < _HOSTILE_RATE:
        specs[rng.choice(("mb", "cpu"))] = rng.choice(_HOSTILE_TEXTS)
    return specs


def _price(server: MarketServer, rates: CoinRates, rng: random.Random) -> Wire:
    price: Wire = {
        "on_demand": {coin: wire_number(amount) for coin, amount in server.on_demand.items()},
        "spot": {coin: wire_number(amount) for coin, amount in server.spot.items()},
    }
    if rng.random() < 0.85:
        worth = {coin: round(rates.to_usd(coin, amount), 4) for coin, amount in server.on_demand.items()}
        keys = {BITCOIN: "on_demand_btc", CLORE: "on_demand_clore", USD: "on_demand_usd"}
        usd: Wire = {keys[coin]: wire_number(amount) for coin, amount in worth.items()}
        usd["spot"] = 0 if server.spot_usd is None else wire_number(server.spot_usd)
        price["usd"] = usd
    if server.is_autopriced and rng.random() < 0.85:
        typed: Wire = {"on_demand": wire_number(server.on_demand_usd)}
        if server.spot_usd is not None:
            typed["spot"] = wire_number(server.spot_usd)
        flat = rng.random() < 0.02
        price["original_usd"] = (
            typed if flat else {coin: dict(typed) for coin in COINS if coin in server.on_demand}
        )
    return price


def _rating(rng: random.Random) -> Wire:
    if rng.random() < 0.55:
        return {"avg": 0, "cnt": 0}
    return {"avg": rng.choice((5, 5, 4.5, 4.67, 4, 3.5, 2, 4.8182)), "cnt": rng.randint(1, 40)}


def _power_limits(server: MarketServer, rng: random.Random) -> list[int]:
    limits = [gpu.power_limit_w for gpu in server.gpus]
    roll = rng.random()
    if roll < 0.04:
        return [0]
    if roll < 0.08:
        return limits[: len(limits) // 2]
    return limits


def _stock_oc(server: MarketServer, rng: random.Random) -> str | list[Wire]:
    if rng.random() < 0.7:
        return "default"
    return [
        {
            "model": gpu.short_name,
            "core_offset": rng.choice((0, 100, None)),
            "mem_offset": rng.choice((0, 1000, None)),
            "core_lock": None,
            "mem_lock": None,
        }
        for gpu in server.gpus
    ]


def _maybe_int(value: float, rng: random.Random) -> float | int:
    return round(value) if rng.random() < 0.1 else value


class MarketplaceDocument:
    """The whole `marketplace` answer, kept as a piece of JSON per server: a change costs one piece."""

    def __init__(self, catalogue: Catalogue, seed: int) -> None:
        self._catalogue, self._seed = catalogue, seed
        self._free: dict[int, bytes] = {}
        self._rented: dict[int, bytes] = {}
        self._shown: frozenset[int] | None = None
        self._document = b""
        self.render_all()

    def render_all(self) -> None:
        """After a change of all prices."""
        for server in self._catalogue.servers.values():
            self.render(server)

    def render(self, server: MarketServer) -> None:
        """After a change of one server's prices."""
        record = wire_record(server, self._catalogue.rates, self._seed)
        self._free[server.id] = _json(record)
        self._rented[server.id] = _json({**record, "rented": True})
        self._shown = None

    def with_rented(self, rented_ids: frozenset[int]) -> bytes:
        """The answer as JSON; joined anew only when something in it changed."""
        if rented_ids != self._shown:
            pieces = [
                self._rented[server_id] if server_id in rented_ids else piece
                for server_id, piece in self._free.items()
            ]
            self._document = b'{"servers":[' + b",".join(pieces) + b'],"my_servers":[],"code":0}'
            self._shown = rented_ids
        return self._document


def _json(value: Wire) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()

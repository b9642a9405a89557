"""A clock without waiting and a network without wires, for the market client's tests."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx

from clorefleet.domain.identity import ServerId
from clorefleet.domain.money import Currency, Rate
from clorefleet.domain.order import RentRequest
from clorefleet.domain.secret import Secret
from clorefleet.market import wire
from clorefleet.market.client import MarketClient
from clorefleet.market.limiter import RequestLimiter

KEY = "canary-key-5f2c91d07ab34e68"
URL = "http://127.0.0.1:9/v1"


class FakeClock:
    """Sleeping takes no time and moves the clock."""

    def __init__(self) -> None:
        self.elapsed_s = 1000.0
        self.slept_s: list[float] = []

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.elapsed_s)

    def monotonic_s(self) -> float:
        return self.elapsed_s

    def sleep(self, seconds: float) -> None:
        assert seconds >= 0
        self.slept_s.append(seconds)
        self.elapsed_s += seconds


def parsed(doc: Any) -> wire.Fields:
    """The document as it arrives: through JSON text. Decimals go as text, which reads back exactly."""
    return wire.fields(wire.parse(json.dumps(doc, default=str).encode()))


Reply = httpx.Response | Exception | Callable[[httpx.Request], httpx.Response]


class Script:
    """Answers in order, and the requests that were made."""

    def __init__(self, *replies: Reply) -> None:
        self._replies = list(replies)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        assert self._replies, f"an unexpected request: {request.method} {request.url}"
        reply = self._replies.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return reply(request) if callable(reply) and not isinstance(reply, httpx.Response) else reply

    @property
    def endpoints(self) -> list[str]:
        return [request.url.path.rsplit("/", 1)[-1] for request in self.requests]

    def body(self, index: int = -1) -> Any:
        return json.loads(self.requests[index].content)


def answer(status: int = 200, headers: dict[str, str] | None = None, **doc: Any) -> httpx.Response:
    return httpx.Response(status, json=doc, headers=headers)


def text(status: int, content: str | bytes) -> httpx.Response:
    return httpx.Response(status, content=content)


def client_of(script: Script, *, clock: FakeClock | None = None, key: str = KEY) -> MarketClient:
    clock = clock or FakeClock()
    return MarketClient(
        URL,
        Secret(key),
        clock=clock,
        limiter=RequestLimiter(clock),
        inner=httpx.MockTransport(script),
        random_unit=lambda: 0.5,
    )


def request_for(server_id: int = 25756, *, is_spot: bool = False, **changes: Any) -> RentRequest:
    values: dict[str, Any] = {
        "server_id": ServerId(server_id),
        "is_spot": is_spot,
        "approved_price": Rate.per_day("3.9", Currency.USD),
        "image": "cloreai/ubuntu22.04-cuda12",
        "env": (("NONCE", "4fa1"),),
        "ssh_public_key": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIExample test",
    }
    return RentRequest(**(values | changes))


def order_doc(order_id: int = 602837, server_id: int = 25756, **changes: Any) -> dict[str, Any]:
    doc: dict[str, Any] = {
        "id": order_id,
        "creation_fee": 0.1,
        "price": 3.9,
        "mrl": 259200,
        "image": "cloreai/ubuntu22.04-cuda12",
        "currency": "USD-Blockchain",
        "spend": 0.2137,
        "ct": 1763946000,
        "specs": {"gpu": "1x NVIDIA GeForce RTX 4090"},
        "si": server_id,
        "owner": 9177,
        "mon_container": 0,
        "pub_cluster": ["n1.de.clorecloud.net"],
        "tcp_ports": ["22:1380"],
    }
    return doc | changes


def server_doc(server_id: int = 25756, **changes: Any) -> dict[str, Any]:
    """The example of the API documentation."""
    doc: dict[str, Any] = {
        "id": server_id,
        "owner": 9177,
        "mrl": 72,
        "price": {
            "on_demand": {"bitcoin": 0.0000412, "CLORE-Blockchain": 410.5, "USD-Blockchain": 3.9},
            "spot": {"bitcoin": 0.0000301, "CLORE-Blockchain": 300.0, "USD-Blockchain": 2.85},
            "usd": {"on_demand_btc": 3.9, "on_demand_clore": 3.9, "on_demand_usd": 3.9, "spot": 2.85},
        },
        "rented": False,
        "specs": {
            "cpu": "AMD Ryzen 9 7900X 12-Core Processor",
            "cpus": "12/24",
            "ram": 31.2286,
            "disk": "DGSM3512GM23T 456.0399GB",
            "disk_speed": 2860.51,
            "gpu": "1x NVIDIA GeForce RTX 4090",
            "gpuram": 24,
            "net": {"cc": "DE", "down": 688.86, "up": 489.17},
            "pcie_rev": 4,
            "pcie_width": 16,
        },
        "reliability": 0.9957,
        "allowed_coins": ["bitcoin", "CLORE-Blockchain", "USD-Blockchain"],
        "rating": {"avg": 4.5, "cnt": 6},
        "gpu_array": ["RTX 4090"],
        "cuda_version": "12.2",
    }
    return doc | changes

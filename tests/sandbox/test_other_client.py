"""Another program's view: a client written from the API reference alone, with nothing of ours in it."""

from __future__ import annotations

import json
import socket
import time
import urllib.error
import urllib.request
from decimal import Decimal
from pathlib import Path
from typing import Any

from clorefleet.sandbox.settings import SandboxSettings
from clorefleet.sandbox.thread import RunningSandbox


class PlainClient:
    """Header `auth`, JSON in and out, `code` is the verdict, one request a second."""

    def __init__(self, base_url: str, key: str) -> None:
        self._base_url, self._key, self._last = base_url, key, 0.0

    def __call__(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        while time.monotonic() - self._last < 1.05:
            time.sleep(0.02)
        self._last = time.monotonic()
        request = urllib.request.Request(
            f"{self._base_url}/{path}",
            None if body is None else json.dumps(body).encode(),
            {"auth": self._key, "Content-Type": "application/json", "User-Agent": "plain/1"},
            method=method,
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            return json.load(error)


def test_a_client_of_the_documented_api_rents_reaches_pays_and_cancels(tmp_path: Path):
    settings = SandboxSettings(tmp_path, time_factor=120, required_price_refusal_rate=0.0)
    with RunningSandbox(settings) as sandbox:
        api = PlainClient(sandbox.market_url, sandbox.api_key)
        servers = api("GET", "marketplace")["servers"]
        assert len(servers) >= 3000
        free = [
            server
            for server in servers
            if not server["rented"]
            and "USD-Blockchain" in server["allowed_coins"]
            and "USD-Blockchain" in server["price"]["on_demand"]
            and server["reliability"] > 0.95
        ]
        cheap = min(free, key=lambda server: server["price"]["on_demand"]["USD-Blockchain"])
        before = balance(api)
        order = {
            "renting_server": cheap["id"],
            "type": "on-demand",
            "currency": "USD-Blockchain",
            "image": "cloreai/ubuntu22.04-cuda12",
            "ports": {"22": "tcp"},
            "ssh_password": "not-a-secret-here",
        }
        assert api("POST", "create_order", order)["code"] == 0
        assert api("POST", "create_order", order)["code"] in (5, 6)  # too soon, or taken: never twice
        mine = reachable(api, cheap["id"])
        host, port = mine["pub_cluster"][0], int(mine["tcp_ports"][0].split(":")[1])
        with socket.create_connection((host, port), timeout=10) as connection:
            assert connection.recv(64).startswith(b"SSH-2.0-")
        assert api("POST", "cancel_order", {"id": mine["id"]})["code"] == 0
        ended = next(
            each
            for each in api("GET", "my_orders?return_completed=true")["orders"]
            if each["id"] == mine["id"]
        )
        while not ended.get("expired"):
            ended = next(
                each
                for each in api("GET", "my_orders?return_completed=true")["orders"]
                if each["id"] == mine["id"]
            )
        assert Decimal(str(ended["spend"])) > 0
        assert abs(before - balance(api) - Decimal(str(ended["spend"]))) < Decimal("1e-6")
        assert api("POST", "cancel_order", {"id": mine["id"]}) == {"code": 6, "error": "order_not_active"}
        assert api("GET", "nonsense")["code"] == 4
        assert PlainClient(sandbox.market_url, "wrong")("GET", "wallets")["code"] == 3


def balance(api: PlainClient) -> Decimal:
    wallets = api("GET", "wallets")["wallets"]
    return Decimal(str(next(each["balance"] for each in wallets if each["name"] == "USD-Blockchain")))


def reachable(api: PlainClient, server_id: int) -> dict[str, Any]:
    deadline = time.monotonic() + 40
    while time.monotonic() < deadline:
        for order in api("GET", "my_orders")["orders"]:
            if order["si"] == server_id and order["tcp_ports"] and order.get("mon_container") == 2:
                return order
    raise AssertionError("the order never became reachable")

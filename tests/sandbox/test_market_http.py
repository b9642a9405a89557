"""The simulated market over real HTTP, driven as the API's reference says and broken on purpose."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from decimal import Decimal
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from clorefleet.domain.errors import SandboxError
from clorefleet.sandbox.faults import FAULTS, MALFORMED, ODD_FIELDS
from clorefleet.sandbox.settings import HttpStatusMode, SandboxSettings
from clorefleet.sandbox.thread import RunningSandbox
from tests.sandbox.idle_rack import IdleRack, empty_hub

USD = "USD-Blockchain"
WAIT_S_MAX = 10.0


class Client:
    """Follows the API's reference and nothing else."""

    def __init__(self, sandbox: RunningSandbox) -> None:
        self.sandbox = sandbox
        self.http = httpx.Client(
            base_url=sandbox.market_url + "/", headers={"auth": sandbox.api_key}, timeout=5.0, trust_env=False
        )

    def get(self, path: str, **query: str) -> Any:
        return json.loads(self.http.get(path, params=query or None).text, parse_float=Decimal)

    def post(self, path: str, body: Any) -> Any:
        return json.loads(self.http.post(path, json=body).text, parse_float=Decimal)

    def rentable(self, index: int = 0) -> dict[str, Any]:
        liars = self.sandbox.control("truth")["liars"]
        return [
            server
            for server in self.get("marketplace")["servers"]
            if not server["rented"]
            and USD in server["price"]["on_demand"]
            and USD in server["allowed_coins"]
            and 1 < server["price"]["on_demand"][USD] < 10
            and str(server["id"]) not in liars
        ][index]

    def order(self, server: dict[str, Any], **changes: Any) -> dict[str, Any]:
        return {
            "renting_server": server["id"],
            "type": "on-demand",
            "currency": USD,
            "image": "cloreai/ubuntu22.04-cuda12",
            "ports": {"22": "tcp"},
            "env": {"JOB": "train-7"},
            **changes,
        }

    def live(self) -> list[dict[str, Any]]:
        orders: list[dict[str, Any]] = self.get("my_orders")["orders"]
        return orders

    def until_live(self, count: int) -> list[dict[str, Any]]:
        deadline_s = time.monotonic() + WAIT_S_MAX
        while len(orders := self.live()) != count and time.monotonic() < deadline_s:
            time.sleep(0.02)
        assert len(orders) == count
        return orders

    def balance(self) -> Decimal:
        (usd,) = [w for w in self.get("wallets")["wallets"] if w["name"] == USD]
        return Decimal(usd["balance"])


def settings(folder: Path, **changes: Any) -> SandboxSettings:
    quick: dict[str, Any] = {
        "server_count": 300,
        "churn": 0.0,
        "enforce_rate_limits": False,
        "required_price_refusal_rate": 0.0,
        "list_lag_real_s": 0.05,
        "boot_scale": 1 / 1000,
        "cancel_linger_polls": 0,
    }
    return SandboxSettings(folder, **(quick | changes))


@contextlib.contextmanager
def running(folder: Path, **changes: Any) -> Iterator[tuple[Client, IdleRack]]:
    rack = IdleRack()
    with RunningSandbox(settings(folder, **changes), rack=rack, hub=empty_hub) as sandbox:
        client = Client(sandbox)
        try:
            yield client, rack
        finally:
            client.http.close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Client, IdleRack]]:
    with running(tmp_path_factory.mktemp("shared")) as pair:
        yield pair


@pytest.fixture
def market(shared: tuple[Client, IdleRack]) -> Iterator[Client]:
    """The module's sandbox with no faults and no orders."""
    client = shared[0]
    client.sandbox.control("faults", {"clear": True})
    for order in client.sandbox.control("orders")["orders"]:  # also those that are not yet listed
        if order["live"]:
            client.post("cancel_order", {"id": order["id"]})
    client.sandbox.control("wallet", {"currency": USD, "balance": "2000"})
    yield client
    client.sandbox.control("faults", {"clear": True})


def test_a_rental_from_list_to_bill_follows_the_reference(
    shared: tuple[Client, IdleRack], market: Client
) -> None:
    rack = shared[1]
    server = market.rentable()
    known = {order["id"] for order in market.live()}
    price = server["price"]["on_demand"][USD]
    answer = market.post("create_order", market.order(server, required_price=float(price)))
    assert answer["code"] == 0
    (order,) = market.until_live(1)
    assert order["id"] not in known
    deadline_s = time.monotonic() + WAIT_S_MAX
    while market.live()[0]["mon_container"] != 2 and time.monotonic() < deadline_s:
        time.sleep(0.02)
    (order,) = market.live()
    assert order["pub_cluster"] == ["127.0.0.1"]
    assert order["tcp_ports"][0].startswith("22:")
    assert rack.env[order["id"]] == {"JOB": "train-7"}
    before = market.balance()
    market.sandbox.control("advance", {"seconds": 7 * 3600})
    (order,) = market.live()
    assert before - market.balance() == order["spend"] > price * 7 / 24
    assert market.post("cancel_order", {"id": order["id"]}) == {"code": 0}
    market.until_live(0)
    bill = market.sandbox.control("bill")
    (line,) = [line for line in bill["orders"] if line["order_id"] == order["id"]]
    assert Decimal("2000") - market.balance() == Decimal(line["total"])
    ended = market.get("my_orders", return_completed="true")["orders"]
    assert [o["spend"] for o in ended if o["id"] == order["id"]] == [Decimal(line["total"])]
    deadline_s = time.monotonic() + WAIT_S_MAX
    while order["id"] in rack.running and time.monotonic() < deadline_s:
        time.sleep(0.02)
    assert order["id"] not in rack.running


@pytest.mark.parametrize(
    ("method", "path", "key", "status", "code"),
    [
        ("GET", "wallets", "wrong", 401, 3),
        ("GET", "wallets", None, 401, 3),
        ("GET", "marketplace", None, 200, 0),
        ("GET", "no_such", "right", 404, 4),
        ("POST", "wallets", "right", 404, 4),
        ("GET", "create_order", "right", 404, 4),
        ("POST", "create_order", "right", 400, 2),
        ("GET", "spot_marketplace?market=x", "right", 400, 2),
        ("GET", "server_config", "right", 400, 2),
        ("GET", "renter_fees", "right", 200, 0),
        ("GET", "poh_balance", "right", 200, 0),
        ("GET", "my_servers", "right", 200, 0),
        ("GET", "get_gigaspot", "right", 200, 0),
        ("POST", "cancel_order", "right", 400, 2),
    ],
)
def test_envelope_and_status_follow_the_documented_table(
    market: Client, method: str, path: str, key: str | None, status: int, code: int
) -> None:
    headers = {} if key is None else {"auth": market.sandbox.api_key if key == "right" else key}
    url = f"{market.sandbox.market_url}/{path}"
    answer = httpx.request(method, url, headers=headers, trust_env=False)
    assert (answer.status_code, answer.json()["code"]) == (status, code)


def test_bearer_token_is_not_the_key(market: Client) -> None:
    headers = {"authorization": f"Bearer {market.sandbox.api_key}"}
    assert httpx.get(f"{market.sandbox.market_url}/wallets", headers=headers).json() == {"code": 3}


def test_gigaspot_snapshot_is_where_the_answer_says(market: Client) -> None:
    url = market.get("get_gigaspot")["v1_snapshot_url"]
    assert url.rsplit("_", 1)[1].removesuffix(".json").isdigit()
    assert all(key.isdigit() for key in httpx.get(url).json())


def test_status_can_always_be_200(tmp_path: Path) -> None:
    with running(tmp_path, http_status=HttpStatusMode.ALWAYS_200) as (client, _):
        answer = client.http.get("no_such")
        assert (answer.status_code, answer.json()) == (200, {"code": 4})


def test_answers_are_dated_by_the_sandboxes_clock(market: Client) -> None:
    market.sandbox.control("advance", {"seconds": 30 * 86_400})
    answer = market.http.get("my_orders")
    [date] = answer.headers.get_list("date")
    dated_s = parsedate_to_datetime(date).timestamp()
    assert abs(dated_s - market.sandbox.server.clock.now_s()) < WAIT_S_MAX


def test_limits_hold_in_real_time_whatever_the_time_factor(tmp_path: Path) -> None:
    with running(
        tmp_path,
        enforce_rate_limits=True,
        call_interval_real_s=0.15,
        create_interval_real_s=0.5,
        time_factor=10_000,
    ) as (client, _):
        codes = [client.get("wallets")["code"] for _ in range(3)]
        assert codes == [0, 5, 5]
        refused = client.http.get("wallets")
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        time.sleep(0.2)
        first = client.post("create_order", {})["code"]
        time.sleep(0.2)
        second = client.post("create_order", {})["code"]
        other = client.get("wallets")["code"]
        assert (first, second, other) == (2, 5, 0)


# faults on the wire


def fault(client: Client, name: str, **options: Any) -> None:
    client.sandbox.control("faults", {name: {"count": 1, **options}})


def orders_made(client: Client) -> int:
    return int(client.sandbox.control("status")["orders_live"])


@pytest.mark.parametrize(
    ("name", "options", "is_made"),
    [
        ("timeout_before", {"hold_real_s": 0.05}, False),
        ("timeout_after", {"hold_real_s": 0.05}, True),
        ("cut_body", {}, True),
        ("error_before", {}, False),
        ("error_after", {"status": 500}, True),
        ("code1_before", {}, False),
        ("code1_after", {"status": 200}, True),
        ("malformed", {"variant": "html"}, True),
        ("key_revoked", {}, False),
        ("rate_limited", {}, False),
    ],
)
def test_doubtful_create_is_made_or_not_as_the_fault_says(
    market: Client, name: str, options: dict[str, Any], is_made: bool
) -> None:
    body = market.order(market.rentable())
    fault(market, name, endpoints=["create_order"], **options)
    try:
        answer = market.http.post("create_order", json=body)
        assert answer.status_code >= 400 or answer.json()["code"] == 1
    except httpx.TransportError:
        assert name in ("timeout_before", "timeout_after", "cut_body")
    assert orders_made(market) == int(is_made)
    assert market.sandbox.control("status")["faults_fired"][name] >= 1


@pytest.mark.parametrize("variant", [variant for variant in MALFORMED if variant != "huge"])
def test_malformed_answers_are_no_market_objects(market: Client, variant: str) -> None:
    fault(market, "malformed", variant=variant, endpoints=["wallets"])
    answer = market.http.get("wallets")
    with contextlib.suppress(ValueError, RecursionError):
        assert not isinstance(answer.json(), dict)


def test_huge_answer_is_fifty_megabytes(market: Client) -> None:
    fault(market, "malformed", variant="huge")
    with market.http.stream("GET", "wallets") as answer:
        assert sum(len(chunk) for chunk in answer.iter_bytes()) > 50 * 2**20


@pytest.mark.parametrize("variant", ODD_FIELDS)
def test_odd_field_changes_one_item_only(market: Client, variant: str) -> None:
    before = market.get("wallets")["wallets"]
    fault(market, "odd_fields", variant=variant, field="balance", endpoints=["wallets"])
    after = market.get("wallets")["wallets"]
    assert sum(a != b for a, b in zip(before, after, strict=True)) <= 1
    assert market.get("wallets")["wallets"] == before


def test_ids_become_strings_and_pages_short(market: Client) -> None:
    market.post("create_order", market.order(market.rentable()))
    market.until_live(1)
    fault(market, "id_as_string")
    assert isinstance(market.live()[0]["id"], str)
    fault(market, "partial_page", endpoints=["marketplace"], keep=0.25)
    assert len(market.get("marketplace")["servers"]) == 75


def test_storm_of_rate_limits_lasts_its_time(market: Client) -> None:
    fault(market, "rate_limited", storm_real_s=0.3)
    assert [market.get("wallets")["code"] for _ in range(3)] == [5, 5, 5]
    time.sleep(0.35)
    assert market.get("wallets")["code"] == 0


def test_slow_drip_comes_byte_by_byte(market: Client) -> None:
    fault(market, "slow_drip", bytes_per_real_s=20)
    started_s = time.monotonic()
    with market.http.stream("GET", "wallets") as answer:
        chunks = answer.iter_bytes()
        assert [len(next(chunks)) for _ in range(4)] == [1, 1, 1, 1]
    assert time.monotonic() - started_s >= 0.1


def test_control_needs_its_token_and_refuses_unknown_faults(market: Client) -> None:
    url = market.sandbox.info["control_url"]
    assert httpx.get(f"{url}/status").status_code == 403
    assert (
        httpx.get(f"{url}/status", headers={"x-sandbox-control": market.sandbox.api_key}).status_code == 403
    )
    for wrong in ({"no_such": {}}, {"cut_body": {"rate": 2}}, {"cut_body": {"speed": 2}}):
        with pytest.raises(SandboxError, match="refused"):
            market.sandbox.control("faults", wrong)
    with pytest.raises(SandboxError, match="refused"):
        market.sandbox.control("advance", {"seconds": -1})


def test_every_fault_of_the_wire_and_the_market_is_listed_with_its_id(market: Client) -> None:
    listed = market.sandbox.control("faults")
    ids = {entry["id"] for entry in listed.values()}
    wanted = {f"A{n}" for n in (*range(1, 16), 17, 18, 19, 20, 21, 22)} | {"B1", "B2"}
    assert ids == wanted
    assert set(listed) == set(FAULTS)


def test_host_that_never_boots_is_never_deployed(tmp_path: Path) -> None:
    with running(tmp_path, server_count=1500) as (client, rack):
        liars = client.sandbox.control("truth")["liars"]
        silent = [
            server
            for server in client.get("marketplace")["servers"]
            if liars.get(str(server["id"])) == ["never_boots"]
            and not server["rented"]
            and USD in server["price"]["on_demand"]
            and USD in server["allowed_coins"]
        ]
        for server in silent[:3]:
            client.post("create_order", client.order(server))
        made = orders_made(client)
        assert made >= 1
        client.until_live(made)
        time.sleep(0.5)
        assert {order["mon_container"] for order in client.live()} <= {0, 1}
        assert rack.started == []


def test_outage_stops_the_node_and_its_end_starts_it_again(
    shared: tuple[Client, IdleRack], market: Client
) -> None:
    rack = shared[1]
    server = market.rentable()
    market.post("create_order", market.order(server))
    (order,) = market.until_live(1)

    def until_running(wanted: bool) -> None:
        deadline_s = time.monotonic() + WAIT_S_MAX
        while (order["id"] in rack.running) is not wanted and time.monotonic() < deadline_s:
            time.sleep(0.02)
        assert (order["id"] in rack.running) is wanted

    until_running(True)
    market.sandbox.control("outage", {"server_id": server["id"], "seconds": 3600})
    until_running(False)
    market.sandbox.control("advance", {"seconds": 3601})
    until_running(True)


def test_whole_market_of_default_size_is_listed_fast(tmp_path: Path) -> None:
    with running(tmp_path, server_count=3200, churn=1.0) as (client, _):
        client.http.get("marketplace")
        started_s = time.monotonic()
        answer = client.http.get("marketplace")
        elapsed_s = time.monotonic() - started_s
        assert len(answer.json()["servers"]) == 3200
        assert (
            elapsed_s < 1.0
        )  # 0.05 s when nothing else runs; the bound only catches another order of magnitude


def test_hub_faults_are_set_by_the_same_hand(market: Client) -> None:
    assert (
        market.sandbox.control("hub-faults", {"cut_next": 2, "wrong_bytes_in": ["b", "a"]})["cut_next"] == 2
    )
    assert market.sandbox.control("hub-faults")["wrong_bytes_in"] == ["a", "b"]
    with pytest.raises(SandboxError, match="no fault"):
        market.sandbox.control("hub-faults", {"burn_next": 1})
    market.sandbox.control("hub-faults", {"cut_next": 0, "wrong_bytes_in": []})

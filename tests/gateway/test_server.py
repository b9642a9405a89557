"""Where the gateway listens, and how it ends."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from clorefleet.domain.errors import DaemonError
from clorefleet.domain.secret import Secret
from clorefleet.gateway.routing import Backend, RoutingTable
from clorefleet.gateway.server import Gateway
from clorefleet.gateway.service import GatewayService
from clorefleet.gateway.token import TokenCheck
from tests.gateway.conftest import TOKEN, Running
from tests.gateway.engine import Engine, until

CHECK = TokenCheck.of(Secret(TOKEN))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.9", "example.org", "", "127.1"])
def test_it_listens_on_nothing_but_loopback_unless_told(host: str):
    """S13."""
    with pytest.raises(DaemonError, match="does not listen"):
        Gateway(RoutingTable(), CHECK, host)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_it_serves_on_each_loopback_address(host: str):
    gateway = Gateway(RoutingTable(), CHECK, host)
    gateway.start()
    try:
        assert httpx.get(f"{gateway.url}/health").json() == {"status": "ok"}
    finally:
        gateway.stop(1)


def test_told_to_it_serves_everywhere_and_still_asks_for_the_token():
    gateway = Gateway(RoutingTable(), CHECK, "0.0.0.0", allow_remote=True)
    gateway.start()
    try:
        assert httpx.get(f"{gateway.url}/v1/models").status_code == 401
    finally:
        gateway.stop(1)


def test_a_taken_port_is_left_for_a_free_one_or_refused_as_chosen():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        with pytest.raises(DaemonError, match=f"cannot listen on port {taken}"):
            Gateway(RoutingTable(), CHECK, port=taken, may_take_other_port=False).start()
        gateway = Gateway(RoutingTable(), CHECK, port=taken)
        gateway.start()
        try:
            assert httpx.URL(gateway.url).port not in {taken, 0}
            assert httpx.get(f"{gateway.url}/health").status_code == 200
        finally:
            gateway.stop(1)


def test_small_writes_are_not_held_back():
    """Without it the client's delayed ACK adds 40 ms to every request."""
    gateway = Gateway(RoutingTable(), CHECK)
    gateway.start()
    try:
        with httpx.Client(base_url=gateway.url) as client:
            client.get("/health")
            began_s = time.monotonic()
            for _ in range(25):
                client.get("/health")
        assert time.monotonic() - began_s < 0.5
    finally:
        gateway.stop(1)


def test_it_takes_its_port_again_right_after_it_was_stopped():
    first = Gateway(RoutingTable(), CHECK)
    first.start()
    httpx.get(f"{first.url}/health")
    port = httpx.URL(first.url).port or 0
    first.stop(1)
    first.stop(1)
    again = Gateway(RoutingTable(), CHECK, port=port, may_take_other_port=False)
    again.start()
    again.stop(1)


def test_stopping_lets_requests_under_way_finish_and_takes_no_more(
    run_gateway: Callable[..., Running], new_engine: Callable[..., Engine]
):
    engine = new_engine()
    running = run_gateway(engine)
    prompt = {"model": "tiny", "stream": True, "do": "hold"}
    with running.client.stream("POST", "/v1/chat/completions", json=prompt) as answer:
        pieces = answer.iter_raw()
        next(pieces)
        stopping = threading.Thread(target=running.gateway.stop, args=(10,))
        stopping.start()
        until(lambda: _is_refused(running.port))
        stopping.join(1.3)
        assert stopping.is_alive(), "it waited for one second, whatever it was told"
        engine.release()
        assert b"".join(pieces).endswith(b"data: [DONE]\n\n")
    stopping.join(5)
    assert not stopping.is_alive()
    assert [record.status for record in running.records] == [200]


def test_stopping_cuts_what_does_not_finish_in_time(
    run_gateway: Callable[..., Running], new_engine: Callable[..., Engine]
):
    engine = new_engine()
    running = run_gateway(engine)
    prompt = {"model": "tiny", "stream": True, "do": "hold"}
    with (
        pytest.raises(httpx.RemoteProtocolError),
        running.client.stream("POST", "/v1/chat/completions", json=prompt) as answer,
    ):
        pieces = answer.iter_raw()
        next(pieces)
        running.gateway.stop(0)
        list(pieces)
    assert engine.left.wait(5)
    assert [record.status for record in running.records] == [499]


def test_replacing_the_routes_of_a_stopped_gateway_changes_nothing(run_gateway: Callable[..., Running]):
    """The daemon's last tick may come after it."""
    running = run_gateway()
    running.gateway.stop(1)
    running.table.set_backends((Backend("a", "m", uds_path=Path("/a")),))


def test_the_service_routes_what_the_fleet_names(new_engine: Callable[..., Engine]):
    from clorefleet.domain.identity import LeaseId
    from clorefleet.domain.node import Backend as FleetBackend

    engine = new_engine()
    service = GatewayService(CHECK, preferred_port=0)
    service.start()
    try:
        service.set_routes((FleetBackend(LeaseId("l7"), "tiny", engine.path),))
        answer = httpx.post(
            f"{service.url}/v1/chat/completions",
            json={"model": "tiny"},
            headers={"Authorization": f"Bearer {TOKEN}"},
        )
        assert answer.status_code == 200
        until(lambda: service.in_flight("l7") == 0)
        [hour] = service.usage.take()
        assert (hour.lease_id, hour.model, hour.requests, hour.failures) == ("l7", "tiny", 1, 0)
        assert service.usage.take() == ()
    finally:
        service.stop(1)


def _is_refused(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except ConnectionRefusedError:
        return True
    return False

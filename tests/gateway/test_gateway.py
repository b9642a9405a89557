"""The gateway over real sockets: who may ask, where it goes, what comes back, what is counted."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from clorefleet.domain.errors import NodeUnreachable
from clorefleet.gateway.exchange import quoted
from clorefleet.gateway.limits import Limits
from clorefleet.gateway.routing import Backend, Starting, choose
from clorefleet.node.session import NodeSession
from clorefleet.node.tunnel import Tunnel
from tests.gateway.conftest import TOKEN, Running
from tests.gateway.engine import Closer, Engine, event, until

RunGateway = Callable[..., Running]
NewEngine = Callable[..., Engine]
NewCloser = Callable[..., Closer]


# -- what comes back


def test_a_prompt_goes_to_the_replica_and_comes_back_counted(run_gateway: RunGateway, new_engine: NewEngine):
    engine = new_engine()
    running = run_gateway(engine)
    before = datetime.now(UTC)
    answer = running.ask(temperature=0.5)
    assert answer.json()["choices"][0]["message"]["content"] == "hello"
    assert engine.bodies[0]["temperature"] == 0.5
    until(lambda: len(running.records) == 1)
    record = running.records[0]
    assert (record.lease_id, record.model, record.status) == ("l0", "tiny", 200)
    assert (record.prompt_tokens, record.completion_tokens, record.was_streamed) == (3, 5, False)
    assert before - timedelta(seconds=1) < record.started_at <= datetime.now(UTC)
    assert record.first_byte_s is not None and 0 < record.first_byte_s <= record.total_s < 10
    assert running.table.in_flight("l0") == 0


def test_the_token_and_the_clients_headers_stay_here_and_the_hosts_stay_there(
    run_gateway: RunGateway, new_engine: NewEngine
):
    """S10: the host is a stranger's machine."""
    engine = new_engine()
    running = run_gateway(engine)
    for _ in range(2):
        answer = running.ask(headers={"Cookie": "a=b", "X-Forwarded-For": "1.2.3.4", "Referer": "http://me/"})
    assert TOKEN not in json.dumps(engine.headers)
    assert set(engine.headers[1]) == {
        *("host", "accept", "accept-encoding", "connection", "user-agent", "content-length", "content-type")
    }, "a cookie came back to the host, or a header of the client went there"
    assert set(answer.headers) == {
        *("date", "content-type", "cache-control", "x-content-type-options", "transfer-encoding")
    }


def test_pieces_arrive_while_the_engine_still_writes(run_gateway: RunGateway, new_engine: NewEngine):
    engine = new_engine(pieces=2)
    running = run_gateway(engine)
    prompt = {"model": "tiny", "stream": True, "do": "hold"}
    with running.client.stream("POST", "/v1/chat/completions", json=prompt) as answer:
        assert answer.headers["content-type"] == "text/event-stream"
        pieces = answer.iter_raw()
        assert next(pieces) == event({"n": 0, "usage": None}), "came only after the engine had gone on"
        assert running.table.in_flight("l0") == 1
        engine.release()
        rest = b"".join(pieces)
    assert rest.endswith(b"data: [DONE]\n\n")
    until(lambda: len(running.records) == 1)
    assert (running.records[0].completion_tokens, running.records[0].was_streamed) == (5, True)


def test_a_hundred_streams_at_once_lose_nothing(run_gateway: RunGateway, new_engine: NewEngine):
    engines = [new_engine(pieces=5), new_engine(pieces=5)]
    running = run_gateway(*engines)
    prompt = {"model": "tiny", "stream": True, "do": "hold"}

    async def ask(client: httpx.AsyncClient, number: int) -> bytes:
        answer = await client.post("/v1/chat/completions", json=prompt | {"number": number})
        return answer.content

    async def ask_all() -> list[bytes]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(
            base_url=running.gateway.url, headers=running.client.headers, timeout=30, limits=limits
        ) as client:
            asking = [asyncio.ensure_future(ask(client, number)) for number in range(100)]
            while sum(len(engine.bodies) for engine in engines) < 100:
                await asyncio.sleep(0.01)
            for engine in engines:
                engine.release()
            return await asyncio.gather(*asking)

    whole = b"".join(event({"n": n, "usage": None}) for n in range(5))
    for content in asyncio.run(ask_all()):
        assert content.startswith(whole) and content.endswith(b"data: [DONE]\n\n")
    until(lambda: len(running.records) == 100)
    assert [len(engine.bodies) for engine in engines] == [50, 50]
    numbers = [body["number"] for engine in engines for body in engine.bodies]
    assert sorted(numbers) == list(range(100))


def test_controls_that_no_json_may_have_do_not_reach_the_users_terminal(
    run_gateway: RunGateway, new_engine: NewEngine
):
    """S14: `deploy` prints a curl line, and curl prints what it gets."""
    running = run_gateway(new_engine())
    answer = running.ask(do="refuse", status=200, body='{"a":\t"\x1b]52;c;eA==\x07\x00é"}\r\n')
    assert answer.content == '{"a":\t"]52;c;eA==é"}\r\n'.encode()
    refused = running.ask(do="refuse", status=400, body=json.dumps({"error": "\x1b[2J\u202e no"}))
    message = refused.json()["error"]["message"]
    assert message.isprintable() and message.endswith("no")


# -- who may ask


@pytest.mark.parametrize(
    "headers, status",
    [
        ({"Authorization": ""}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Authorization": TOKEN}, 401),
        ({"Host": "evil.example"}, 421),
        ({"Host": "127.0.0.1:1"}, 421),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "http://[::1"}, 403),
        ({"Origin": "http://localhost:3000"}, 200),
    ],
)
def test_only_the_token_from_this_machine_gets_in(
    run_gateway: RunGateway, new_engine: NewEngine, headers: dict[str, str], status: int
):
    """S13, on every route."""
    engine = new_engine()
    running = run_gateway(engine)
    answers = [
        running.ask(headers=headers),
        running.client.get("/v1/models", headers=headers),
        running.client.get("/-/status", headers=headers),
    ]
    assert [answer.status_code for answer in answers] == [status] * 3
    assert len(engine.bodies) + engine.card_requests == (2 if status == 200 else 0)
    if status == 401:
        assert answers[0].json()["error"]["code"] == "invalid_api_key"
        assert answers[0].headers["www-authenticate"] == "Bearer"


def test_the_token_in_the_address_is_no_token(run_gateway: RunGateway):
    running = run_gateway()
    answer = running.client.get(f"/v1/models?api_key={TOKEN}", headers={"Authorization": ""})
    assert answer.status_code == 401


def test_health_tells_nothing_but_that_it_lives(run_gateway: RunGateway, new_engine: NewEngine):
    running = run_gateway(new_engine())
    answer = running.client.get("/health", headers={"Authorization": ""})
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


@pytest.mark.parametrize(
    "head",
    [
        "GET /v1/models HTTP/1.1\nHost: 127.0.0.1:{port}\nHost: evil.example\nAuthorization: Bearer {token}",
        "GET /v1/models HTTP/1.0\nAuthorization: Bearer {token}",
        "GET http://evil.example/v1/models HTTP/1.1\nHost: evil.example\nAuthorization: Bearer {token}",
        "GET /v1/models HTTP/1.1\nHost: 127.0.0.1:{port}\nX: " + "x" * 400_000,
    ],
    ids=["two hosts", "no host", "absolute target", "endless headers"],
)
def test_requests_written_by_hand_get_no_further(run_gateway: RunGateway, head: str):
    running = run_gateway()
    status, _ = running.raw(head.format(port=running.port, token=TOKEN) + "\nConnection: close")
    assert status in {0, 400, 421}


# -- which replica, and which not


def test_an_unreachable_replica_is_passed_over_before_the_first_byte(
    run_gateway: RunGateway, new_engine: NewEngine, tmp_path: Path
):
    engine = new_engine()
    running = run_gateway()
    dead = Backend("dead", "tiny", uds_path=tmp_path / "nobody.sock")
    running.table.set_backends((dead, Backend("live", "tiny", uds_path=engine.path)))
    assert running.ask().status_code == 200
    until(lambda: len(running.records) == 1)
    assert running.records[0].lease_id == "live", "a request that was never sent is not counted"
    running.table.set_backends((dead,))
    answer = running.ask()
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unreachable")
    assert answer.headers["retry-after"]


@pytest.mark.parametrize("pad_bytes", [1, 100_000, 5_000_000])
def test_a_tunnel_without_its_session_is_passed_over_too(
    run_gateway: RunGateway, new_engine: NewEngine, new_closer: NewCloser, pad_bytes: int
):
    """F2, F15: it accepts on the socket, and closes with the prompt unread."""
    engine = new_engine()
    running = run_gateway()
    closer = new_closer(reads_first=False)
    running.table.set_backends(
        (Backend("cut", "tiny", uds_path=closer.path), Backend("live", "tiny", uds_path=engine.path))
    )
    assert running.ask(pad="x" * pad_bytes).status_code == 200
    assert running.ask().status_code == 200
    assert len(engine.bodies) == 2
    assert closer.accepted == 1, "it was asked again while it rests"


def test_the_fleets_own_tunnel_is_passed_over_when_its_session_is_gone(
    run_gateway: RunGateway, new_engine: NewEngine, tmp_path: Path
):
    """F2, F15 with the real tunnel, whose close races with the prompt: before it, into it, after it."""

    def gone() -> NodeSession:
        raise NodeUnreachable("the session is gone")

    engine = new_engine()
    running = run_gateway()
    tunnel = Tunnel(tmp_path / "t.sock", 8000, gone)
    try:
        for number in range(30):
            cut = Backend(f"a{number}", "tiny", uds_path=tunnel.path)
            running.table.set_backends((cut, Backend("live", "tiny", uds_path=engine.path)))
            assert running.ask(pad="x" * (number % 3) * 300_000).status_code == 200
    finally:
        tunnel.close()
    assert len(engine.bodies) == 30


@pytest.mark.parametrize("is_streamed", [True, False])
def test_a_replica_that_dies_before_the_client_saw_anything_is_replaced_once(
    run_gateway: RunGateway, new_engine: NewEngine, new_closer: NewCloser, is_streamed: bool
):
    """F14: preempted during a request."""
    engine = new_engine()
    running = run_gateway()
    died = Backend("died", "tiny", uds_path=new_closer(reads_first=True).path)
    fleet = (died, Backend("other", "tiny", uds_path=engine.path))
    running.table.set_backends(fleet)
    keys = (f"k{number}" for number in range(100))
    key = next(key for key in keys if choose(fleet, "tiny", resting=frozenset(), beginning=key) is died)
    assert running.ask(stream=is_streamed, prompt_cache_key=key).status_code == 200
    assert len(engine.bodies) == 1
    until(lambda: len(running.records) == 2)
    assert [(each.lease_id, each.status) for each in running.records] == [("died", 502), ("other", 200)]


def test_a_prompt_that_broke_two_replicas_is_never_given_to_a_third(
    run_gateway: RunGateway, new_engine: NewEngine, tmp_path: Path
):
    """It may be the prompt that crashes engines; asked again soon, it breaks one at most."""
    closers = [Closer(tmp_path / f"c{number}.sock", reads_first=True) for number in range(3)]
    engine = new_engine()
    running = run_gateway()
    try:
        for expected in (2, 3):
            running.table.set_backends(
                tuple(Backend(f"a{n}", "tiny", uds_path=each.path) for n, each in enumerate(closers))
            )
            answer = running.ask(do="crash")
            assert (answer.status_code, answer.json()["error"]["code"]) == (502, "replica_failed")
            assert sum(each.accepted for each in closers) == expected
        running.table.set_backends((Backend("live", "tiny", uds_path=engine.path),))
        assert running.ask().status_code == 200, "others are not under suspicion"
    finally:
        for each in closers:
            each.stop()


def test_an_unstreamed_answer_that_breaks_off_is_asked_for_once_more(
    run_gateway: RunGateway, new_engine: NewEngine
):
    """F14: nothing of it had gone out, so that the client never learns."""
    engines = [new_engine(), new_engine()]
    running = run_gateway(*engines)
    answer = running.ask(do="cut once")
    assert answer.status_code == 200 and answer.json()["usage"]
    assert sorted(len(each.bodies) for each in engines) == [1, 1]
    until(lambda: sorted(each.status for each in running.records) == [200, 502])


def test_an_unstreamed_answer_that_is_too_long_to_hold_is_passed_on_all_the_same(
    run_gateway: RunGateway, new_engine: NewEngine
):
    running = run_gateway(new_engine(), limits=Limits(held_max_bytes=10))
    assert running.ask().json()["usage"]


@pytest.mark.parametrize("is_streamed", [True, False])
def test_an_answer_that_breaks_off_after_its_first_byte_is_not_taken_for_a_whole_one(
    run_gateway: RunGateway, new_engine: NewEngine, is_streamed: bool
):
    """F14: preempted during a request."""
    engines = [new_engine(), new_engine()]
    running = run_gateway(*engines, limits=Limits(held_max_bytes=5))
    prompt = {"model": "tiny", "stream": is_streamed, "do": "cut"}
    seen = b""
    with (
        pytest.raises(httpx.RemoteProtocolError),
        running.client.stream("POST", "/v1/chat/completions", json=prompt) as answer,
    ):
        for piece in answer.iter_raw():
            seen += piece
    if is_streamed:
        assert seen.startswith(event({"n": 0, "usage": None})) and b'"code": "replica_failed"' in seen
        assert b"[DONE]" not in seen
    assert len(engines[0].bodies) + len(engines[1].bodies) == 1, "no second try after the first byte"
    until(lambda: len(running.records) == 1)
    assert running.records[0].status == 502
    until(lambda: running.table.in_flight("l0") == running.table.in_flight("l1") == 0)


def test_a_model_not_yet_ready_and_no_such_model_are_different_answers(
    run_gateway: RunGateway, new_engine: NewEngine
):
    running = run_gateway(new_engine())
    unknown = running.ask(model="other")
    assert unknown.status_code == 404 and "tiny" in unknown.json()["error"]["message"]
    assert running.wanted == []
    running.table.set_wanted({"other": Starting("its weights are being fetched")})
    waiting = running.ask(model="other")
    assert waiting.status_code == 503 and int(waiting.headers["retry-after"]) > 0
    assert "weights are being fetched" in waiting.json()["error"]["message"]
    until(lambda: running.wanted == ["other"])


@pytest.mark.parametrize(
    "left_s, retry_after, words",
    [(None, 15, "fetched."), (754.2, 755, "about 12 min"), (0, 5, "fetched."), (9e6, 3600, "about 2500.0 h")],
    ids=["unknown", "estimated", "late", "absurd"],
)
def test_a_client_is_told_to_come_back_when_the_replica_should_serve(
    run_gateway: RunGateway, left_s: float | None, retry_after: int, words: str
):
    running = run_gateway()
    running.table.set_wanted({"tiny": Starting("its weights are being fetched", left_s)})
    waiting = running.ask()
    assert int(waiting.headers["retry-after"]) == retry_after
    assert words in waiting.json()["error"]["message"]


def test_a_removed_replica_finishes_its_requests_and_takes_no_more(
    run_gateway: RunGateway, new_engine: NewEngine
):
    engine, other = new_engine(), new_engine()
    running = run_gateway(engine)
    prompt = {"model": "tiny", "stream": True, "do": "hold"}
    with running.client.stream("POST", "/v1/chat/completions", json=prompt) as answer:
        pieces = answer.iter_raw()
        next(pieces)
        running.table.set_backends((Backend("l1", "tiny", uds_path=other.path),))
        assert running.ask().status_code == 200 and len(other.bodies) == 1
        assert running.table.in_flight("l0") == 1
        engine.release()
        assert b"".join(pieces).endswith(b"data: [DONE]\n\n")
    until(lambda: running.table.in_flight("l0") == 0)
    until(lambda: engine.connections == 0)


def test_the_client_of_an_idle_replica_is_closed_when_it_is_removed(
    run_gateway: RunGateway, new_engine: NewEngine
):
    def clients_open() -> int:
        return int(running.client.get("/-/status").json()["clients_open"])

    running = run_gateway(new_engine())
    running.ask()
    assert clients_open() == 1
    running.table.set_backends(())
    until(lambda: clients_open() == 0)


def test_no_prompt_is_sent_on_a_connection_that_was_used_before(
    run_gateway: RunGateway, new_engine: NewEngine
):
    """An engine may be closing it at that moment, and the prompt would be lost in doubt."""
    engine = new_engine()
    running = run_gateway(engine)
    assert [running.ask(stream=True).status_code for _ in range(3)] == [200] * 3
    assert [headers["connection"] for headers in engine.headers] == ["close"] * 3
    until(lambda: engine.connections == 0)


# -- who leaves, who waits, who sends too much


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"stream": True, "do": "hold"}, id="in the middle of a stream"),
        pytest.param({"stream": True, "do": "silent"}, id="before a stream's first byte"),
        pytest.param({"do": "silent"}, id="before an answer's first byte"),
    ],
)
def test_a_client_that_leaves_stops_the_engine(
    run_gateway: RunGateway, new_engine: NewEngine, fields: dict[str, object]
):
    engine = new_engine()
    running = run_gateway(engine)

    async def ask_and_leave() -> None:
        async with httpx.AsyncClient(base_url=running.gateway.url, headers=running.client.headers) as client:
            asking = asyncio.ensure_future(
                client.post("/v1/chat/completions", json={"model": "tiny"} | fields)
            )
            while not engine.bodies:
                await asyncio.sleep(0.005)
            asking.cancel()

    asyncio.run(ask_and_leave())
    assert engine.left.wait(5)
    until(lambda: running.table.in_flight("l0") == 0 and len(running.records) == 1)
    assert running.records[0].status == 499
    assert running.client.get("/-/status").json()["under_way"] == 0


@pytest.mark.parametrize(
    "limits, fields, code",
    [
        (Limits(first_byte_s=0.1), {"do": "silent"}, "replica_silent"),
        (Limits(first_byte_s=0.1), {"do": "silent", "stream": True}, "replica_silent"),
    ],
)
def test_a_silent_replica_is_given_up(
    run_gateway: RunGateway, new_engine: NewEngine, limits: Limits, fields: dict[str, object], code: str
):
    running = run_gateway(new_engine(), new_engine(), limits=limits)
    answer = running.ask(**fields)
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, code)
    until(lambda: [record.status for record in running.records] == [504])


@pytest.mark.parametrize(
    "limits, do, code",
    [
        pytest.param(Limits(idle_s=0.1), "hold", "replica_silent", id="falls silent"),
        pytest.param(Limits(answer_s=0.1), "hold", "replica_silent", id="drips for ever"),
        pytest.param(Limits(answer_max_bytes=60), "answer", "answer_too_long", id="writes without end"),
    ],
)
def test_a_stream_that_passes_a_bound_is_cut_and_says_why(
    run_gateway: RunGateway, new_engine: NewEngine, limits: Limits, do: str, code: str
):
    running = run_gateway(new_engine(), limits=limits)
    prompt = {"model": "tiny", "stream": True, "do": do}
    seen = b""
    with (
        pytest.raises(httpx.RemoteProtocolError),
        running.client.stream("POST", "/v1/chat/completions", json=prompt) as answer,
    ):
        for piece in answer.iter_raw():
            seen += piece
    assert f'"code": "{code}"'.encode() in seen


def test_an_answer_in_one_piece_may_not_drip_for_ever_either(run_gateway: RunGateway, tmp_path: Path):
    """A19: each byte comes in time."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "drip.sock"))
    listener.listen()
    is_over = threading.Event()

    def drip() -> None:
        connection = listener.accept()[0]
        with connection, suppress(OSError):
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{")
            while not is_over.wait(0.05):
                connection.sendall(b" ")

    threading.Thread(target=drip, daemon=True).start()
    running = run_gateway(limits=Limits(answer_s=0.5))
    running.table.set_backends((Backend("l0", "tiny", uds_path=tmp_path / "drip.sock"),))
    try:
        answer = running.ask()
    finally:
        is_over.set()
        listener.close()
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "replica_silent")


def test_a_body_that_is_too_large_is_refused_also_without_a_length(
    run_gateway: RunGateway, new_engine: NewEngine
):
    engine = new_engine()
    running = run_gateway(engine, limits=Limits(body_max_bytes=1000))

    def endless() -> Iterator[bytes]:
        for _ in range(50):
            yield b"x" * 100

    assert running.ask(pad="x" * 1000).status_code == 413
    assert running.client.post("/v1/chat/completions", content=endless()).status_code == 413
    assert running.ask(pad="x" * 500).status_code == 200
    assert len(engine.bodies) == 1


def test_what_all_bodies_hold_together_is_bounded_and_freed(run_gateway: RunGateway, new_engine: NewEngine):
    engine = new_engine()
    running = run_gateway(engine, limits=Limits(bodies_max_bytes=1000))
    refused = running.ask(pad="x" * 1000)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "overloaded")
    for _ in range(5):
        until(lambda: running.client.get("/-/status").json()["under_way"] == 0)
        assert running.ask(pad="x" * 600).status_code == 200


def test_a_body_that_never_comes_frees_its_place(run_gateway: RunGateway):
    running = run_gateway(limits=Limits(body_s=0.1, requests_max=1))
    head = (
        f"POST /v1/completions HTTP/1.1\nHost: 127.0.0.1:{running.port}\n"
        f"Authorization: Bearer {TOKEN}\nContent-Length: 100\nConnection: close"
    )
    assert [running.raw(head)[0] for _ in range(2)] == [408, 408]


def test_more_requests_at_once_than_allowed_are_told_to_wait(run_gateway: RunGateway, new_engine: NewEngine):
    engine = new_engine()
    running = run_gateway(engine, limits=Limits(requests_max=1))
    prompt = {"model": "tiny", "stream": True, "do": "hold"}
    with running.client.stream("POST", "/v1/chat/completions", json=prompt) as answer:
        pieces = answer.iter_raw()
        next(pieces)
        refused = running.ask()
        assert refused.status_code == 429 and refused.headers["retry-after"]
        assert refused.json()["error"]["type"] == "rate_limit_error"
        engine.release()
    until(lambda: running.client.get("/-/status").json()["under_way"] == 0)
    assert running.ask().status_code == 200


def test_a_loop_of_requests_is_slowed_down(run_gateway: RunGateway, new_engine: NewEngine):
    running = run_gateway(new_engine(), limits=Limits(requests_per_s=0.001, burst=3))
    answers = [running.ask() for _ in range(5)]
    assert [each.status_code for each in answers] == [200, 200, 200, 429, 429]
    assert answers[-1].headers["retry-after"] and "requests a second" in answers[-1].text


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"model": 3}', b"[" * 5000])
def test_a_body_that_is_no_request_reaches_no_replica(
    run_gateway: RunGateway, new_engine: NewEngine, body: bytes
):
    engine = new_engine()
    answer = run_gateway(engine).client.post("/v1/chat/completions", content=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_body")
    assert not engine.bodies


# -- errors of replicas


@pytest.mark.parametrize(
    "status, told, code",
    [
        (400, 400, "replica_refused"),
        (429, 429, "replica_refused"),
        (501, 501, "replica_error"),
        (503, 503, "replica_error"),
        (500, 502, "replica_error"),
        (401, 502, "replica_error"),
        (302, 502, "replica_error"),
    ],
)
def test_a_replicas_error_keeps_its_meaning_for_the_client(
    run_gateway: RunGateway, new_engine: NewEngine, status: int, told: int, code: str
):
    """A 401 of the engine is not the client's: its token was right."""
    running = run_gateway(new_engine())
    answer = running.ask(do="refuse", status=status, body='{"error": {"message": "because"}}')
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (told, code)
    assert error["message"] == f"The replica refused ({status}): because"
    assert ("retry-after" in answer.headers) == (status in {429, 503})


@pytest.mark.parametrize(
    "body, line",
    [
        (b'{"error": {"message": "a"}}', "a"),
        (b'{"error": "b"}', "b"),
        (b'{"object": "error", "message": "c"}', "c"),
        (b'{"detail": "d"}', "d"),
        (b"<html>\r\n\x1b[31mno</html>", "<html>  �[31mno</html>"),
        (b'{"error": 7}', '{"error": 7}'),
        (b"\xff", "�"),
        (b"[" * 100_000, "[" * 300 + "…"),
        (b"", ""),
    ],
    ids=lambda value: str(value[:24]),
)
def test_what_is_quoted_of_an_engine_is_one_short_harmless_line(body: bytes, line: str):
    assert quoted(body) == line


# -- models and other paths


def test_the_model_card_keeps_its_simulated_mark_and_is_asked_for_once(
    run_gateway: RunGateway, new_engine: NewEngine
):
    engine = new_engine()
    running = run_gateway(engine)
    card = {"id": "tiny", "object": "model", "owned_by": "clorefleet", "simulated": True}
    for _ in range(3):
        assert running.client.get("/v1/models").json() == {"object": "list", "data": [card]}
    assert engine.card_requests == 1


def test_the_models_are_those_of_all_ready_replicas_each_once(run_gateway: RunGateway, new_engine: NewEngine):
    running = run_gateway()
    engine = new_engine(card=b'{"data": [{"id": "x"}]}')
    first = Backend("l0", "a", uds_path=engine.path)
    running.table.set_backends(
        (
            first,
            replace(first, lease_id="l1"),
            replace(first, lease_id="l2", model="b"),
            replace(first, lease_id="l3", model="c", is_draining=True),
        )
    )
    assert [card["id"] for card in running.client.get("/v1/models").json()["data"]] == ["a", "b"]


@pytest.mark.parametrize("card", [b"no json", b"[]", b'{"data": 3}', b"[" * 50_000, b"x" * 400_000])
def test_a_hostile_model_card_only_loses_its_mark(
    run_gateway: RunGateway, new_engine: NewEngine, card: bytes
):
    running = run_gateway(new_engine(card=card))
    data = running.client.get("/v1/models").json()["data"]
    assert data == [{"id": "tiny", "object": "model", "owned_by": "clorefleet"}]


@pytest.mark.parametrize(
    "method, path, status",
    [
        ("GET", "/v1/nowhere", 404),
        ("GET", "/v1/models/", 404),
        ("GET", "/v1/chat/completions", 405),
        ("POST", "/v1/models", 405),
        ("OPTIONS", "/v1/chat/completions", 405),
    ],
)
def test_other_paths_and_methods_answer_in_the_same_shape(
    run_gateway: RunGateway, method: str, path: str, status: int
):
    answer = run_gateway().client.request(method, path)
    assert answer.status_code == status and answer.json()["error"]["message"]
    assert "access-control-allow-origin" not in answer.headers


def test_status_shows_each_replica_and_its_load(run_gateway: RunGateway, new_engine: NewEngine):
    running = run_gateway(new_engine())
    assert running.client.get("/-/status").json() == {
        "under_way": 0,
        "clients_open": 0,
        "backends": [
            {"lease_id": "l0", "model": "tiny", "in_flight": 0, "is_ready": True, "is_draining": False}
        ],
    }

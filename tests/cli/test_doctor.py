"""`doctor` names what is wrong, each thing once, and what would mend it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from clorefleet import __version__
from clorefleet.daemon import process


def findings(cli, *words: str, **env: str) -> dict[str, dict[str, Any]]:
    run = cli("doctor", "--json", *words, **env)
    found = {each["name"]: each for each in run.json["findings"]}
    assert run.code == (0 if run.json["good"] else 1) and run.json["good"] is all(
        each["is_good"] for each in found.values()
    )
    return found


@pytest.fixture
def late_hub() -> Iterator[str]:
    """A service whose clock is an hour behind, and which does not feel well."""

    class Late(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response_only(503)
            self.send_header("Date", format_datetime(datetime.now(UTC) - timedelta(hours=1), usegmt=True))
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Late)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_all_is_well_where_it_is(account, market):
    found = findings(account, HF_ENDPOINT=market.hub_url or market.market_url)
    assert [name for name, each in found.items() if not each["is_good"]] == []
    assert {"version", "key", "market", "wallet", "time", "hub", "store", "daemon", "money", "ssh"} == set(
        found
    )


def test_without_a_key_the_rest_is_looked_at_all_the_same(account, market):
    del account.env["CLORE_API_KEY"]
    found = findings(account, HF_ENDPOINT=market.market_url)
    assert [name for name, each in found.items() if not each["is_good"]] == ["key"]
    assert "CLORE_API_KEY" in found["key"]["remedy"]


def test_what_is_out_of_reach_or_wrong_says_what_would_mend_it(account, late_hub):
    found = findings(account, CLORE_API_URL=f"{late_hub}/v1", HF_ENDPOINT=late_hub)
    bad = {name for name, each in found.items() if not each["is_good"]}
    assert bad == {"market", "wallet", "time", "hub"}
    assert "3600 s ahead" in found["time"]["text"] or "3601 s ahead" in found["time"]["text"]
    assert "timedatectl" in found["time"]["remedy"] and "mirror" in found["hub"]["remedy"]
    assert all(found[name]["remedy"] for name in bad)


def test_a_wrong_key_is_told_where_it_shows(account):
    found = findings(account, CLORE_API_KEY="canary-wrong")
    assert not found["market"]["is_good"] and not found["wallet"]["is_good"]
    assert "canary-wrong" not in json.dumps(found)


def test_a_daemon_of_another_version_is_told(account, market):
    state = account.home / "home" / "state" / "default"
    state.mkdir(parents=True, mode=0o700)
    descriptor = process.take_lock(state)
    assert descriptor is not None
    document = {"pid": 0, "gateway_url": "http://127.0.0.1:1", "started_at": "", "version": "0.0.9"}
    import os

    (state / "daemon.json").write_text(json.dumps(document | {"pid": os.getpid()}), "utf-8")
    found = findings(account, HF_ENDPOINT=market.market_url)["version"]
    os.close(descriptor)
    assert not found["is_good"] and "0.0.9" in found["text"] and __version__ in found["text"]
    assert "daemon stop" in found["remedy"]

"""Who may ask: `Host`, `Origin` and token, as headers."""

from __future__ import annotations

import pytest
from starlette.datastructures import Headers

from clorefleet.domain.secret import Secret
from clorefleet.gateway.guard import Guard
from clorefleet.gateway.token import TokenCheck

GUARD = Guard(TokenCheck.of(Secret("t")), port=8410)
REMOTE = Guard(TokenCheck.of(Secret("t")), port=8410, allow_remote=True)


def refused(guard: Guard, path: str = "/v1/models", **headers: list[str]) -> int | None:
    shown = {"host": ["127.0.0.1:8410"], "authorization": ["Bearer t"]} | headers
    raw = [(name.encode(), value.encode("latin-1")) for name, values in shown.items() for value in values]
    problem = guard.refusal(path, Headers(raw=raw))
    return None if problem is None else problem.status


@pytest.mark.parametrize(
    "host", ["127.0.0.1:8410", "localhost:8410", "LOCALHOST:8410", "[::1]:8410", "127.9.9.9:8410"]
)
def test_its_own_loopback_names_are_served(host: str):
    assert refused(GUARD, host=[host]) is None


@pytest.mark.parametrize(
    "host",
    [
        "evil.example:8410",
        "127.0.0.1.evil.example:8410",
        "localhost.evil.example:8410",
        "localhost.:8410",
        "127.0.0.1:8411",
        "127.0.0.1",
        "localhost",
        "127.0.0.1:",
        "127.0.0.1:8410:8410",
        "127.0.0.1:+8410",
        "127.0.0.1:8410/x",
        "u@127.0.0.1:8410",
        "127.1:8410",
        "2130706433:8410",
        "0x7f.0.0.1:8410",
        "0.0.0.0:8410",
        "192.168.1.9:8410",
        "[::]:8410",
        "[::1:8410",
        "::1:8410",
        "",
        " ",
        "127.0.0.1:8410, evil.example",
    ],
)
def test_any_other_host_is_refused(host: str):
    """S13: DNS rebinding shows the page's own name here."""
    assert refused(GUARD, host=[host]) == 421


def test_no_host_and_two_hosts_are_refused():
    assert refused(GUARD, host=[]) == 421
    assert refused(GUARD, host=["127.0.0.1:8410", "127.0.0.1:8410"]) == 421


@pytest.mark.parametrize(
    "origins, status",
    [
        ([], None),
        (["http://localhost:3000"], None),
        (["https://127.0.0.1"], None),
        (["http://[::1]:5173"], None),
        (["https://evil.example"], 403),
        (["null"], 403),
        ([""], 403),
        (["http://"], 403),
        (["file://"], 403),
        (["chrome-extension://localhost"], 403),
        (["http://localhost.evil.example"], 403),
        (["http://localhost@evil.example"], 403),
        (["http://evil.example#localhost"], 403),
        (["http://[::1"], 403),
        (["http://localhost:3000", "https://evil.example"], 403),
    ],
)
def test_web_pages_elsewhere_are_refused(origins: list[str], status: int | None):
    assert refused(GUARD, origin=origins) == status


@pytest.mark.parametrize("path", ["/v1/models", "/-/status", "/nowhere", "/health/", "/HEALTH"])
def test_without_the_token_nothing_is_told_not_even_what_exists(path: str):
    assert refused(GUARD, path, authorization=[]) == 401


def test_two_tokens_are_none():
    assert refused(GUARD, authorization=["Bearer wrong", "Bearer t"]) == 401


def test_health_needs_no_token_but_is_kept_from_web_pages_too():
    assert refused(GUARD, "/health", authorization=[]) is None
    assert refused(GUARD, "/health", host=["evil.example:8410"]) == 421
    assert refused(GUARD, "/health", origin=["https://evil.example"]) == 403


def test_a_remote_gateway_takes_literal_addresses_and_still_no_names():
    assert refused(REMOTE, host=["192.168.1.9:8410"]) is None
    assert refused(REMOTE, host=["evil.example:8410"]) == 421
    assert refused(REMOTE, host=["192.168.1.9:1"]) == 421

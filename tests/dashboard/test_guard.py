"""Which requests are looked at at all, by their headers alone."""

from __future__ import annotations

import pytest

from clorefleet.dashboard.guard import SECURITY_HEADERS, refusal

OURS = {"host": ["127.0.0.1:8430"]}
ORIGIN = {"origin": ["http://127.0.0.1:8430"]}


@pytest.mark.parametrize(
    ("method", "headers"),
    [
        ("GET", OURS),
        ("HEAD", OURS),
        ("GET", OURS | {"sec-fetch-site": ["none"]}),
        ("GET", OURS | {"sec-fetch-site": ["same-origin"]}),
        ("POST", OURS | ORIGIN),
        ("POST", OURS | ORIGIN | {"sec-fetch-site": ["same-origin"]}),
    ],
)
def test_the_users_own_browser_is_let_in(method: str, headers: dict[str, list[str]]):
    assert refusal(method, headers, 8430) is None


@pytest.mark.parametrize(
    ("status", "method", "headers"),
    [
        (421, "GET", {}),
        (421, "GET", {"host": ["evil.example:8430"]}),
        (421, "GET", {"host": ["localhost:8430"]}),
        (421, "GET", {"host": ["127.0.0.1"]}),
        (421, "GET", {"host": ["127.0.0.1:8431"]}),
        (421, "GET", {"host": ["127.0.0.1:8430.evil.example"]}),
        (421, "GET", {"host": ["127.0.0.1:8430", "127.0.0.1:8430"]}),
        (403, "GET", OURS | {"origin": ["http://evil.example"]}),
        (403, "GET", OURS | {"origin": ["http://127.0.0.1:9999"]}),
        (403, "POST", OURS | {"origin": ["https://127.0.0.1:8430"]}),
        (403, "POST", OURS | {"origin": ["null"]}),
        (403, "POST", OURS | {"origin": [*ORIGIN["origin"], "http://evil.example"]}),
        (403, "POST", OURS),
        (403, "GET", OURS | {"sec-fetch-site": ["cross-site"]}),
        (403, "GET", OURS | {"sec-fetch-site": ["same-site"]}),
        (403, "POST", OURS | ORIGIN | {"sec-fetch-site": ["same-site"]}),
        (405, "PUT", OURS | ORIGIN),
        (405, "OPTIONS", OURS),
        (405, "TRACE", OURS),
    ],
)
def test_everything_else_is_refused(status: int, method: str, headers: dict[str, list[str]]):
    found = refusal(method, headers, 8430)
    assert found is not None and found.status == status


def test_the_policy_lets_no_inline_script_and_nothing_from_elsewhere_run():
    policy = dict(
        each.partition(" ")[::2] for each in SECURITY_HEADERS["Content-Security-Policy"].split("; ")
    )
    assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == "'none'"
    assert {policy[name] for name in ("script-src", "style-src", "connect-src", "form-action")} == {"'self'"}

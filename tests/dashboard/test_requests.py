"""The dashboard over HTTP, as somebody meets it who can bend every header."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from clorefleet.dashboard.pages import STATIC
from clorefleet.dashboard.reading import DaemonSeen
from clorefleet.dashboard.sign_in import SESSION_LIFE
from clorefleet.domain.deployment import Desired, Origin
from clorefleet.domain.errors import DaemonError
from clorefleet.domain.identity import DeploymentId
from clorefleet.domain.lease import Phase
from clorefleet.domain.money import Money
from tests.dashboard.conftest import Client, Running
from tests.dashboard.seeded import COMING_UP, HOSTILE, TINY, fill_hostile
from tests.fleet.builders import deployment

PAGES = (
    "", "d/tiny", "d/glm", "d/old", "timeline", "timeline?span=7d", "costs", "costs?span=7d", "plans",
    "events", "events?deployment=glm", "hosts", "hosts/120", "hosts/555", "logs", "d/tiny/stop",
    "d/tiny/scale", "d/tiny/scale?replicas=3",
)  # fmt: skip


def wish_of(running: Running, name: str = TINY):
    with running.store.read() as tx:
        return tx.deployment(DeploymentId(name))


def test_each_page_is_shown_to_who_has_signed_in_and_to_nobody_else(running: Running, client: Client):
    stranger = Client(running)
    for path in PAGES:
        assert client(path).status == 200, path
        shown = stranger(path)
        assert shown.status == 401, path
        assert "tiny" not in shown.text and "RTX" not in shown.text


def test_every_answer_carries_the_policy(client: Client):
    for path in (*PAGES, "nothing", "static/dashboard.css", "static/../../app.py", "hosts/x"):
        headers = client(path).headers
        assert "script-src 'self'" in headers["content-security-policy"], path
        assert headers["x-frame-options"] == "DENY" and headers["cache-control"] == "no-store"


def test_nothing_is_answered_outside_the_path_that_nobody_can_guess(running: Running, client: Client):
    assert len(running.dashboard.base) > 20
    for path in ("/", "/events", "/static/dashboard.js", "/sign-in"):
        assert client(path).status == 404


def test_what_is_not_there_says_so(client: Client):
    for path in ("nothing", "d/nobody", "hosts/999", "d/nobody/stop", "static/nothing.js"):
        assert client(path).status == 404, path


def test_the_cookie_is_out_of_reach_of_scripts_other_sites_and_other_ports(running: Running):
    answer = Client(running).sign_in()
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie
    assert f"Path={running.dashboard.base}/" in cookie and "Domain" not in cookie


def test_a_wrong_code_opens_nothing(running: Running):
    for code in ("", "wrong", "x" * 500):
        answer = Client(running)("sign-in", form={"code": code})
        assert answer.status == 401 and "set-cookie" not in answer.headers


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 421),
        ({"Host": "localhost:1"}, 421),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
    ],
)
def test_pages_elsewhere_get_nothing_even_with_the_cookie(
    client: Client, headers: dict[str, str], status: int
):
    for path in ("", "sign-in", "static/dashboard.js", "d/tiny/stop"):
        assert client(path, headers=headers).status == status, path


@pytest.mark.parametrize(
    "bent",
    [
        {"headers": {"Origin": "http://evil.example"}},
        {"headers": {"Origin": ""}},
        {"headers": {"Host": "evil.example"}},
        {"headers": {"Sec-Fetch-Site": "same-site"}},
        {"headers": {"Cookie": ""}},
        {"headers": {"Cookie": "clorefleet-dashboard=guessed"}},
        {"form": {"csrf_token": ""}},
        {"form": {"csrf_token": "guessed"}},
        {"form": {"before": "changed since"}},
    ],
)
def test_a_bent_stop_stops_nothing(running: Running, client: Client, bent: dict[str, dict[str, str]]):
    form = client.token("d/tiny/stop") | bent.get("form", {})
    answer = client("d/tiny/stop", form=form, headers=bent.get("headers"))
    assert answer.status in (401, 403, 409, 421)
    assert wish_of(running).desired is Desired.RUNNING and running.wakes == []


def test_a_get_never_changes_anything(running: Running, client: Client):
    form = client.token("d/tiny/stop")
    for path in PAGES:
        client(path)
    client(f"d/tiny/stop?csrf_token={form['csrf_token']}&before={form['before']}")
    assert wish_of(running).desired is Desired.RUNNING and running.wakes == []


def test_the_form_of_another_session_is_refused(running: Running, client: Client):
    other = Client(running)
    other.sign_in()
    form = other.token("d/tiny/stop")
    assert client("d/tiny/stop", form=form).status == 403
    assert other("d/tiny/stop", form=form).status == 303


def test_a_stop_that_was_confirmed_is_written_down_with_its_event_and_wakes_the_daemon(
    running: Running, client: Client
):
    answer = client("d/tiny/stop", form=client.token("d/tiny/stop"))
    assert (answer.status, answer.headers["location"]) == (303, f"{running.dashboard.base}/d/tiny")
    assert wish_of(running).desired is Desired.STOPPED and running.wakes == [None]
    with running.store.read() as tx:
        assert tx.events(TINY)[-1][1].name == "stop_wished"
        assert tx.open_leases() != ()  # it only writes the wish: the daemon ends what bills


def test_a_wish_that_no_daemon_acts_on_is_kept_and_said(running: Running, client: Client):
    def wake() -> None:
        raise DaemonError(
            "The daemon did not start.", remedy="clorefleet doctor", money="Orders go on billing."
        )

    running.dashboard.wake = wake
    answer = client("d/tiny/stop", form=client.token("d/tiny/stop"))
    assert answer.status == 503 and "written down" in answer.text and "Orders go on billing." in answer.text
    assert wish_of(running).desired is Desired.STOPPED


def test_the_question_says_what_a_stop_means_for_the_money(client: Client):
    text = client("d/tiny/stop").text
    assert "1 server is given back" in text and "$0.3282 an hour" in text


def test_more_replicas_are_asked_about_with_their_price_then_written_down(running: Running, client: Client):
    shown = client("d/tiny/scale?replicas=3").text
    assert "2 more" in shown and "$15.75 a day more" in shown and "$16/day" in shown
    assert client("d/tiny/scale", form=client.token("d/tiny/scale?replicas=3")).status == 303
    assert wish_of(running).replicas == 3 and running.wakes == [None]


def test_a_number_that_cannot_be_kept_changes_nothing(running: Running, client: Client):
    form = client.token("d/tiny/scale?replicas=2")
    for replicas in ("0", "17", "-1", "1e3", "", "²", "9" * 30, "2; DROP TABLE lease"):
        assert client("d/tiny/scale", form=form | {"replicas": replicas}).status == 409, replicas
    assert wish_of(running).replicas == 1 and running.wakes == []


def test_a_wish_about_a_deployment_that_changed_meanwhile_is_refused(running: Running, client: Client):
    form = client.token("d/tiny/stop")
    with running.store.write() as tx:
        tx.put_deployment(deployment("tiny", replicas=4))
    answer = client("d/tiny/stop", form=form)
    assert answer.status == 409 and "has changed" in answer.text
    assert wish_of(running).desired is Desired.RUNNING


def test_what_a_fleet_file_keeps_is_said_to_come_back(running: Running, client: Client):
    with running.store.write() as tx:
        tx.put_deployment(deployment("tiny", origin=Origin.FILE))
    assert "clorefleet apply" in client("d/tiny/stop").text
    assert "clorefleet apply" in client("d/tiny/scale?replicas=2").text


def test_a_body_larger_than_any_form_is_not_read(client: Client):
    assert client("d/tiny/stop", form={"csrf_token": "x" * 100_000}).status == 413


def test_who_signs_out_is_out(running: Running, client: Client):
    assert client("sign-out", form=client.token("d/tiny/stop")).status == 303
    assert client("").status == 401


def test_a_session_ends_by_itself_in_its_pages_and_in_its_streams(running: Running, client: Client):
    running.clock.move(SESSION_LIFE + timedelta(seconds=1))
    assert client("").status == 401
    assert client("?live=1").status == 401


def test_no_secret_of_the_profile_is_in_any_page(running: Running, client: Client):
    """The store holds none; a session's own form token is all that a page shows, and never the cookie."""
    cookie = client.cookie.partition("=")[2]
    for path in PAGES:
        assert cookie not in client(path).text


def test_hostile_text_is_shown_as_text_bounded_and_without_controls(serve):
    running = serve(fill_hostile)
    client = Client(running)
    client.sign_in()
    for path in (
        "",
        "d/tiny",
        "timeline",
        "costs",
        "plans",
        "events",
        "hosts",
        "hosts/66",
        "hosts/67",
        "logs",
    ):
        page = client(path)
        assert page.status == 200
        assert "<img" not in page.text and "<script>" not in page.text
        assert "\x1b" not in page.text and "\u202e" not in page.text
        assert len(page.text) < 60_000
    assert HOSTILE[:8].replace("<", "&lt;") in client("").text


def test_the_front_end_library_is_the_one_that_was_published_and_is_documented():
    text = (Path(__file__).parents[2] / "docs" / "dashboard.md").read_text("utf-8")
    documented = dict(re.findall(r"^    ([0-9a-f]{64})  (\S+)", text, re.MULTILINE))
    digests = {hashlib.sha256(file.read_bytes()).hexdigest(): file.name for file in STATIC.glob("*.min.js")}
    assert digests == documented and len(digests) == 2


def test_the_costs_are_those_of_the_ledger(running: Running, client: Client):
    with running.store.read() as tx:
        spent = sum((each.cost_usd(running.clock.now()) for each in tx.segments()), Decimal(0))
    text = client("costs").text
    assert f"<dt>Spent</dt><dd>{Money.usd(spent)}</dd>" in text
    assert "host failed" in text and "For a million generated tokens" in text


def test_the_timeline_shows_the_phases_that_were_recorded(client: Client):
    text = client("timeline").text
    for phase in (*COMING_UP, Phase.SERVING, Phase.DRAINING):
        assert f'class="bar bar-{phase.name.lower()}"' in text, phase
    assert "bar-unrecorded" not in text


def test_the_last_lines_of_a_replicas_log_are_shown_the_newest_first(client: Client):
    for path in ("logs", "hosts/105"):
        assert "loading shard 4 of 59\nloading shard 3 of 59" in client(path).text


def test_hostile_lines_of_a_log_are_text(running: Running, client: Client):
    running.tails["l5"] = [HOSTILE] * 300
    running.log.append(HOSTILE)
    text = client("logs").text
    assert "<img" not in text and "<script>" not in text and "\x1b" not in text
    assert "&lt;img src=x" in text


def test_a_fault_of_ours_tells_no_internals_and_keeps_the_policy(running: Running, client: Client):
    def find_daemon() -> DaemonSeen | None:
        raise RuntimeError("internals")

    running.dashboard.sources = replace(running.dashboard.sources, find_daemon=find_daemon)
    answer = client("")
    assert answer.status == 500 and "RuntimeError" in answer.text and "internals" not in answer.text
    assert "script-src 'self'" in answer.headers["content-security-policy"]


def test_a_store_that_cannot_be_read_says_what_that_means_for_the_money(running: Running, client: Client):
    file = running.store.file
    running.store.dispose()
    file.write_bytes(b"no database" * 1000)
    answer = client("")
    assert answer.status == 503 and "clorefleet stop --all" in answer.text

"""`clorefleet cost` as a user meets it, on a store with money in it."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from clorefleet.domain.identity import OrderId
from clorefleet.domain.lease import Phase
from clorefleet.store.database import open_store
from tests.fleet.builders import deployment
from tests.report.builders import held, segment

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "json" / "cost.schema.json").read_text("utf-8"))
TODAY = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


@pytest.fixture
def spent(cli):
    """Two days ago two servers were rented for an hour each, at a dollar an hour."""
    folder = cli.home / "home" / "state" / "default"
    folder.mkdir(parents=True, mode=0o700)
    begin = TODAY - timedelta(days=2)
    store = open_store(f"sqlite:///{folder / 'clorefleet.db'}")
    with store.write() as tx:
        tx.put_deployment(deployment())
        for index, name in enumerate(("tiny", "tiny")):
            lease_id, order_id = f"l{index}", OrderId(900 + index)
            tx.put_lease(held(lease_id, name, phase=Phase.DRAINING, phase_since=begin))
            line = segment(0, 1, lease_id=lease_id, order_id=order_id)
            moved = {"started_at": begin, "ended_at": begin + timedelta(hours=1)}
            tx.put_order_segments(order_id, (type(line)(**{**_values(line), **moved}),))
    store.dispose()
    return cli


def _values(line):
    return {name: getattr(line, name) for name in line.__dataclass_fields__}


def test_the_table_is_by_deployment_and_states_whose_days_these_are(spent):
    run = spent("cost")
    assert run.code == 0
    assert "$2.00 in all." in run.out and "Days are those of UTC." in run.out
    assert next(line.split()[:4] for line in run.out.splitlines() if line.startswith("tiny")) == [
        "tiny", "2.00", "$2.00", "$2.00"
    ]  # fmt: skip


def test_json_is_as_its_schema_says_and_has_the_ledgers_lines(spent):
    document = spent("cost", "--by", "day,order", "--tz", "Asia/Tokyo", "--json").json
    Draft202012Validator(SCHEMA).validate(document)
    assert document["total_usd"] == "2.00000000" and document["time_zone"] == "Asia/Tokyo"
    assert [line["cost"] for line in document["segments"]] == ["1.00000000", "1.00000000"]
    assert {row["key"]["order"] for row in document["rows"]} == {"900", "901"}


def test_csv_has_a_line_for_each_group(spent):
    lines = spent("cost", "--by", "order", "--csv").out.splitlines()
    assert lines[0].startswith("order,usd,planned_usd,") and len(lines) == 3


def test_a_window_is_cut_out(spent):
    day = (TODAY - timedelta(days=2)).date().isoformat()
    inside = spent("cost", "--since", f"{day}T00:30+00:00", "--until", "yesterday", "--json").json
    assert Decimal(inside["total_usd"]) == 1
    assert spent("cost", "--since", "today", "--json").json["total_usd"] == "0"


def test_the_page_is_one_private_file(spent):
    run = spent("cost", "--html", "page.html")
    page = spent.home / "page.html"
    assert run.code == 0 and run.out == "" and "Wrote page.html" in run.err
    assert page.stat().st_mode & 0o077 == 0
    assert page.read_text("utf-8").startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (("--by", "dey"), "Did you mean “day”?"),
        (("--since", "tomorrow"), "7d (ago)"),
        (("--since", "2026-13-01"), "7d (ago)"),
        (("--since", "0001-01-01", "--tz", "Europe/Berlin"), "7d (ago)"),
        (("--until", "9999-12-31T23:59", "--tz", "America/Los_Angeles"), "7d (ago)"),
        (("--since", "1h", "--until", "2h"), "--since before --until"),
        (("--tz", "Europe/Berlim"), "Europe/Berlin"),
        (("nobody",), "clorefleet status"),
        (("--html", "no/such/folder/x.html"), "another file"),
        (("--csv", "--json"), "one of the two"),
    ],
)
def test_a_slip_is_told_with_the_way_out(spent, words, hint):
    run = spent("cost", *words)
    assert run.code == 2 and hint in run.err + run.out
    assert "Traceback" not in run.err


def test_the_last_whole_week_is_shown_by_hand(spent):
    run = spent("report", "--period", "month", "--json")
    Draft202012Validator(SCHEMA).validate(run.json)
    assert run.json["since"].endswith("-01T00:00:00+00:00")
    assert "Nothing was spent" in spent("report", "--period", "day").out


def test_a_report_is_sent_by_a_channel_of_the_fleet_file(spent):
    got = spent.home / "got"
    script = spent.home / "tell"
    script.write_text(f"#!/bin/sh\ncat > {got}\n")
    script.chmod(0o700)
    file = spent.home / "fleet.toml"
    file.write_text(f'[[notify.command]]\nname = "tell"\nargv = ["{script}"]\n')
    run = spent("report", "--to", "tell", "--period", "day")
    assert run.code == 0 and "Sent by tell." in run.err
    assert json.loads(got.read_text())["report"]["schema"] == "clorefleet.cost/1"
    for words, hint in (
        (("--to", "nobody"), "has tell"),
        (("--email",), "no such channel"),
        (("--period", "year"), "day, week, month"),
    ):
        slip = spent("report", *words)
        assert slip.code == 2 and hint in slip.err

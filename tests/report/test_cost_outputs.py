"""The report as table, JSON, CSV and page: exact, within 80 columns, and safe whatever a host is called."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from datetime import UTC
from decimal import Decimal
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from jsonschema import Draft202012Validator

from clorefleet.domain.dimension import Dimension, parse_dimensions
from clorefleet.domain.errors import BadInput
from clorefleet.domain.guard import WalletReading
from clorefleet.domain.lease import LeaseState, Phase
from clorefleet.domain.ledger import closed
from clorefleet.domain.money import Currency, ExchangeRate, Money
from clorefleet.domain.offer import OfferedGpu
from clorefleet.report import cost_plots
from clorefleet.report.charges import exact_sum
from clorefleet.report.cost_document import cost_csv, cost_document, spreadsheet_text
from clorefleet.report.cost_page import NO_PLOTS, cost_page
from clorefleet.report.cost_report import CostQuestion, cost_report
from clorefleet.report.cost_text import TextTable, as_text, blocks
from tests.report.builders import DAY, at, books, entered, held, segment, used
from tests.report.test_cost import groupings, some_books

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "json" / "cost.schema.json").read_text("utf-8"))
HOSTILE = "=1+1 <script>alert(1)</script> \x1b[31m $x$ \u202e & \"'"
RUNNING = (entered(Phase.RENTING, 0), entered(Phase.SERVING, 1))


def hostile_lease(**changes):
    lease = held(**changes)
    offer = replace(lease.plan.offer, gpus=(OfferedGpu(HOSTILE),) * 2)
    return replace(lease, plan=replace(lease.plan, offer=offer), reason=HOSTILE)


def some_report(*by: Dimension, now_h: float = 30):
    """A bill that is settled, a start that failed, one that runs and a coin's wallet."""
    settled = closed((segment(0, 4),), ended_at=at(4), settled=Decimal("4.01"), now=at(5))
    failed = segment(5, 6, lease_id="l2", order_id=901, name="other")
    runs = segment(7, None, lease_id="l3", order_id=902)
    ended = {"state": LeaseState.ENDED, "phase": Phase.ENDED}
    given_books = books(
        [*settled, failed, runs],
        hostile_lease(**ended),
        hostile_lease(lease_id="l2", name="other", blocks_host=True, **ended),
        hostile_lease(lease_id="l3"),
        phases=(*RUNNING, entered(Phase.RENTING, 5, "l2"), entered(Phase.SERVING, 7, "l3")),
        usage=(used(2), used(8, lease_id="l3")),
        wallets=(
            WalletReading(Money(Decimal(50), Currency.CLORE), DAY, Decimal(0), Decimal(5), Decimal(51), DAY,
                          Decimal(0)),
        ),
        rates=(ExchangeRate(Currency.CLORE, Decimal("0.01"), DAY, "market"),),
    )  # fmt: skip
    return cost_report(given_books, CostQuestion(by or (Dimension.GPU,), UTC, "UTC"), now=at(now_h))


def test_the_schema_is_one():
    Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("by", [(each,) for each in Dimension] + [tuple(Dimension)[:4]], ids=str)
def test_every_document_is_as_the_schema_says(by):
    document = json.loads(json.dumps(cost_document(some_report(*by))))
    Draft202012Validator(SCHEMA).validate(document)
    assert document["waste"] and document["wallets"] and document["replicas"] and document["segments"]


@given(some_books(), groupings.filter(bool))
@settings(max_examples=40)
def test_json_and_csv_add_up_to_the_total_as_text(given_books, by):
    report = cost_report(given_books, CostQuestion(by, UTC, "UTC"), now=at(90))
    document = json.loads(json.dumps(cost_document(report)))
    Draft202012Validator(SCHEMA).validate(document)
    total = Decimal(document["total_usd"])
    assert exact_sum(Decimal(row["usd"]) for row in document["rows"]) == total
    lines = list(csv.DictReader(io.StringIO(cost_csv(report))))
    rounded = total.quantize(Decimal("0.00000001"))
    assert exact_sum(Decimal(line["usd"]) for line in lines) == rounded
    parts = [name for name in lines[0] if name.endswith("_usd") and name != "planned_usd"]
    for line, row in zip(lines, document["rows"], strict=True):
        assert exact_sum(Decimal(line[name]) for name in parts) == Decimal(line["usd"])
        assert abs(Decimal(line["usd"]) - Decimal(row["usd"])) <= Decimal("0.00000001")


def test_a_spreadsheet_gets_eight_places_and_not_the_digits_of_a_coins_rate():
    third = segment(0, 5, per_day="1", currency=Currency.CLORE, usd_per_unit=Decimal(1) / 3)
    report = cost_report(books([third]), CostQuestion((Dimension.DAY,), UTC, "UTC"), now=at(6))
    [line] = csv.DictReader(io.StringIO(cost_csv(report)))
    assert line["usd"] == line["unrecorded_usd"] == "0.06944444" and line["idle_usd"] == "0.00000000"


def test_nothing_spent_is_a_document_and_a_sentence_too():
    report = cost_report(books([]), CostQuestion((Dimension.DAY,), UTC, "UTC"), now=at(1))
    Draft202012Validator(SCHEMA).validate(json.loads(json.dumps(cost_document(report))))
    assert as_text(blocks(report)) == "Nothing was spent in all. Days are those of UTC.\n"
    assert "Nothing was spent" in cost_page(report)


def test_a_spreadsheet_gets_no_formula_from_a_host():
    [line, *_] = csv.DictReader(io.StringIO(cost_csv(some_report(Dimension.GPU))))
    assert line["gpu"].startswith("2x =1+1")  # behind a count it is none
    assert [spreadsheet_text(text)[0] for text in ("=1", "+1", "-1", "@x", "x")] == ["'", "'", "'", "'", "x"]


@pytest.mark.parametrize("by", [(each,) for each in Dimension] + [tuple(Dimension)[3:7]], ids=str)
def test_tables_keep_within_80_columns(by):
    tables = [each for each in blocks(some_report(*by), bills=True) if isinstance(each, TextTable)]
    assert len(tables) == (2 if by == (Dimension.PHASE,) else 3)
    assert max(len(line) for line in as_text(tables).splitlines()) <= 80


def test_the_text_says_what_was_wasted_what_is_to_come_and_how_long_the_wallet_lasts():
    text = as_text(blocks(some_report(Dimension.DEPLOYMENT)))
    assert "hosts block 7" in text and "[deployments.tiny.idle]" in text
    assert "fleet, 2026-11: $28.01 so far" in text and "at the present $24.00/day" in text
    assert "CLORE wallet: 50 ($0.5000 at 0.01), lasts 10.0 days" in text
    assert "Settled bills are +$0.0100 beside our own count" in text
    assert "\x1b" not in text and "\u202e" not in text


# -- the page


class Page(HTMLParser):
    """What a browser would see of a page: elements, the addresses in them, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        for name, value in attrs:
            assert not name.startswith("on"), f"{tag} has {name}"
            if name in ("src", "href", "xlink:href", "action"):
                self.addresses.append(value or "")

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_page_needs_no_network_and_runs_no_script():
    text = cost_page(some_report())
    page = Page(text)
    assert "script" not in page.elements and "link" not in page.elements and "img" not in page.elements
    assert all(address.startswith("#") for address in page.addresses)
    assert "url(http" not in text and "@import" not in text
    assert "default-src 'none'" in text


def test_what_a_host_is_called_stays_text_in_tables_and_plots():
    page = Page(cost_page(some_report(Dimension.GPU)))
    assert "script" not in page.elements
    assert page.text.count("<script>") > 3
    assert "\x1b" not in page.text and "\u202e" not in page.text
    assert "$x$" in page.text, "a dollar is no formula"


def test_a_page_has_plots_that_take_its_colours():
    page = cost_page(some_report())
    assert page.count("<svg") == 2 and "var(--serving)" in page and "currentColor" in page
    assert "prefers-color-scheme: dark" in page and "@media print" in page
    ids = [part.split('"')[0] for part in page.split(' id="')[1:]]
    assert len(ids) == len({*ids}) or {each for each in ids if ids.count(each) > 1} <= _SHARED_BY_PLOTS


_SHARED_BY_PLOTS = {f"{name}_{i}" for name in ("figure", "axes", "patch", "text", "line2d", "matplotlib.axis",
                    "xtick", "ytick", "legend") for i in range(1, 200)}  # fmt: skip


def test_the_same_report_is_the_same_page():
    assert cost_page(some_report()) == cost_page(some_report())


def test_days_without_spending_keep_their_place_in_the_plot():
    report = cost_report(
        books([segment(0, 1), segment(72, 73, order_id=901)]),
        CostQuestion((Dimension.DAY,), UTC, "UTC"), now=at(80),
    )  # fmt: skip
    svg = cost_plots.timeline_svg(report)
    assert all(f">11-{day}<" in svg for day in (24, 25, 26, 27))


def test_without_the_plotting_library_the_page_says_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cost_plots, "is_available", lambda: False)
    page = Page(cost_page(some_report()))
    assert NO_PLOTS in page.text and "svg" not in page.elements


@pytest.mark.parametrize("text", ["", "dya", "day,planet", "day,week,month,gpu,host"])
def test_a_grouping_that_is_none_is_refused_with_the_way_out(text):
    with pytest.raises(BadInput) as caught:
        parse_dimensions(text)
    assert "day" in (caught.value.remedy or "")

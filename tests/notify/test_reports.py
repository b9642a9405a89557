"""A report that is due goes out once to each channel that the file names, and says what the ledger says."""

from __future__ import annotations

import html
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email import message_from_bytes
from pathlib import Path

import pytest

from clorefleet.domain.alert import (
    Alert,
    AlertKind,
    Command,
    DeliveryState,
    Email,
    MailSecurity,
    NotifyPolicy,
)
from clorefleet.domain.dimension import Dimension
from clorefleet.domain.fleet_file import AppliedFile
from clorefleet.domain.identity import OrderId
from clorefleet.domain.lease import LeaseState, Phase
from clorefleet.domain.report_policy import ReportFormat, ReportPeriod, ReportPolicy
from clorefleet.domain.schedule import parse_cron
from clorefleet.domain.secret import Secret
from clorefleet.notify.channels import TEXT_MAX_CHARS, Sent, as_document, as_mail
from clorefleet.notify.notifier import Notifier
from clorefleet.notify.reports import Reporter, last_due, question_of
from clorefleet.simulation.memory_store import MemoryStore
from clorefleet.store import leadership
from tests.fleet.builders import deployment
from tests.fleet.world import VirtualClock
from tests.report.builders import DAY, held, segment

MONDAYS = ReportPolicy(parse_cron("0 7 * * mon"), "Europe/Berlin", ("tell",))
HOUR = timedelta(hours=1)
MONDAY_7 = datetime(2026, 11, 30, 6, 0, tzinfo=UTC)
"""07:00 in Berlin."""


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text + "+00:00")


@pytest.mark.parametrize(
    ("now", "due"),
    [
        (MONDAY_7, MONDAY_7),
        (MONDAY_7 - timedelta(seconds=1), None),
        (MONDAY_7 + 23 * HOUR, MONDAY_7),
        (MONDAY_7 + 24 * HOUR, None),  # too late: the next is near
    ],
)
def test_a_report_is_due_from_its_moment_on_for_a_day(now, due):
    assert last_due(MONDAYS, now) == due


def test_a_time_that_the_clock_skips_is_due_when_it_has_passed_it():
    skipped = replace(MONDAYS, times=parse_cron("30 2 29 3 *"))
    assert last_due(skipped, moment("2026-03-29T12:00")) == moment("2026-03-29T01:00")


@pytest.mark.parametrize(
    ("period", "since", "until"),
    [
        (ReportPeriod.DAY, "2026-11-28T23:00", "2026-11-29T23:00"),
        (ReportPeriod.WEEK, "2026-11-22T23:00", "2026-11-29T23:00"),
        (ReportPeriod.MONTH, "2026-09-30T22:00", "2026-10-31T23:00"),  # summer time ends in between
    ],
)
def test_the_last_whole_period_of_the_time_zone_is_reported(period, since, until):
    question = question_of(replace(MONDAYS, period=period), MONDAY_7)
    assert (question.since, question.until) == (moment(since), moment(until))


def test_it_is_grouped_as_the_file_says_or_as_suits_the_period():
    assert question_of(MONDAYS, MONDAY_7).by == (Dimension.DAY, Dimension.DEPLOYMENT)
    by_host = replace(MONDAYS, by=(Dimension.HOST, Dimension.PHASE))
    assert question_of(by_host, MONDAY_7).by == (Dimension.HOST, Dimension.PHASE)


class Desk:
    """A daemon's reporter and notifier, on a store with a dollar spent last week."""

    def __init__(self) -> None:
        self.store, self.clock = MemoryStore(), VirtualClock()
        self.clock.current = MONDAY_7 - 12 * HOUR
        self.policy = MONDAYS
        self.sent: list[tuple[str, Alert]] = []
        with self.store.write() as tx:
            tx.put_deployment(deployment())
            tx.put_lease(held())
            tx.put_order_segments(segment(0, 1).order_id, (segment(0, 1),))
            tx.put_applied_file(AppliedFile("fleet.toml", "0", DAY))
        self.restart()

    def restart(self) -> None:
        token = leadership.acquire(self.store, "p", now=self.clock.now(), force=True)
        self.reporter = Reporter(self.store, lambda: token, self.clock, policy=lambda: self.policy)
        channels = NotifyPolicy((Command("tell", frozenset(), ("/bin/true",)),))
        self.notifier = Notifier(
            self.store, lambda: token, self.clock, policy=lambda: channels, send=self._send
        )

    def _send(self, channel, alert) -> Sent:
        self.sent.append((channel.name, alert))
        return Sent()

    def look(self) -> None:
        self.reporter.run()
        self.notifier.run()


def test_what_is_due_is_sent_once_also_by_the_next_process():
    desk = Desk()
    desk.look()
    assert desk.sent == []
    desk.clock.current = MONDAY_7 + timedelta(minutes=1)
    for _ in range(3):
        desk.look()
    desk.restart()
    desk.look()
    [(name, alert)] = desk.sent
    assert name == "tell" and alert.kind is AlertKind.REPORT and alert.at == MONDAY_7


def test_a_report_reaches_a_channel_whatever_it_is_on():
    desk = Desk()
    desk.clock.current = MONDAY_7 + HOUR
    desk.look()
    assert len(desk.sent) == 1  # its channel is on nothing


def test_a_schedule_that_is_new_sends_nothing_for_the_past():
    desk = Desk()
    with desk.store.write() as tx:
        tx.put_applied_file(AppliedFile("fleet.toml", "1", MONDAY_7 + HOUR))
    desk.clock.current = MONDAY_7 + 2 * HOUR
    desk.look()
    assert desk.sent == []


def test_without_a_report_in_the_file_nothing_is_written_down():
    desk = Desk()
    desk.policy = None
    desk.clock.current = MONDAY_7 + HOUR
    desk.look()
    with desk.store.read() as tx:
        assert tx.deliveries(*DeliveryState) == ()


# -- the letter


def letter(form: ReportFormat = ReportFormat.TEXT):
    desk = Desk()
    desk.clock.current = MONDAY_7
    return desk.reporter.letter(replace(MONDAYS, form=form), MONDAY_7)


MAIL = Email("mail", frozenset(), "localhost", 25, MailSecurity.NONE, "f@example.org", ("me@example.org",))
DUE = Alert("report:x", AlertKind.REPORT, MONDAY_7, "due")


def test_the_letter_says_what_was_spent_in_subject_text_and_document():
    made = letter()
    assert made.subject == "$1.00 in the week from 2026-11-23"
    assert "$1.00 from 2026-11-23 00:00 to 2026-11-30 00:00." in made.text
    assert "Europe/Berlin" in made.text
    assert made.document["total_usd"] == "1.00000000"


@pytest.mark.parametrize(
    ("form", "kind", "begins"),
    [(ReportFormat.HTML, "text/html", "<!doctype html>"), (ReportFormat.CSV, "text/csv", "day,deployment,")],
)
def test_mail_carries_what_was_asked_for_beside_the_text(form, kind, begins):
    message = message_from_bytes(bytes(as_mail(MAIL, DUE, letter(form))))
    text, attached = message.get_payload()
    assert "$1.00 from" in text.get_payload(decode=True).decode()
    assert attached.get_content_type() == kind
    assert attached.get_payload(decode=True).decode().startswith(begins)


def test_mail_of_text_alone_has_no_parts():
    assert not as_mail(MAIL, DUE, letter()).is_multipart()


def test_webhooks_get_a_text_of_bounded_length_and_the_whole_document():
    long = replace(letter(), text="x" * 10_000)
    document = as_document(DUE, long)
    assert len(document["text"]) == TEXT_MAX_CHARS == len(document["content"])
    assert document["report"]["schema"] == "clorefleet.cost/1" and document["kind"] == "report"


def fail(desk: Desk, reason: str) -> None:
    """Another server cost a dollar and never served, which the report tells as waste."""
    failing = held("l2", phase=Phase.WAITING, phase_since=DAY, measured_tokens_per_s=None, server_id=8)
    ending = failing.moved(LeaseState.ENDING)
    ended = ending.moved(LeaseState.ENDED).entered(Phase.ENDED, DAY + HOUR, reason=reason)
    with desk.store.write() as tx:
        tx.put_lease(failing)
        tx.put_lease(replace(ended, blocks_host=True, ended_at=DAY + HOUR))
        tx.put_order_segments(OrderId(901), (segment(0, 1, lease_id="l2", order_id=901),))


def test_a_command_that_is_told_names_the_profile_on_every_way_out(tmp_path: Path):
    """One that was pasted from a webhook's JSON or from an alert meant another profile."""
    desk = Desk()
    fail(desk, "it never answered")
    reporter = Reporter(desk.store, lambda: None, desk.clock, policy=lambda: MONDAYS, flag=" --profile work")
    made = reporter.letter(replace(MONDAYS, form=ReportFormat.HTML), MONDAY_7)
    wanted = "`clorefleet hosts block 8 --profile work`"
    for told in (made.text, html.unescape(made.attachment), made.document["waste"][0]["advice"]):
        assert wanted in told
    out = tmp_path / "got"
    script = tmp_path / "tell"
    script.write_text(f"#!/bin/sh\ncat > {out}\n")
    script.chmod(0o700)
    alert = replace(DUE, kind=AlertKind.FAILURE, text="It gave up. See `clorefleet logs chat`.")
    reporter.send(Command("tell", frozenset(), (str(script),)), alert)
    assert "`clorefleet logs chat --profile work`" in json.loads(out.read_text())["text"]


def test_a_secret_in_a_reason_does_not_leave_by_mail():
    desk = Desk()
    fail(desk, "canary-key was refused")
    reporter = Reporter(
        desk.store, lambda: None, desk.clock, policy=lambda: MONDAYS, secrets=(Secret("canary-key"),)
    )
    made = reporter.letter(replace(MONDAYS, form=ReportFormat.HTML), MONDAY_7)
    assert "was refused" in made.text
    assert "canary-key" not in made.text + made.attachment + json.dumps(made.document)


def test_the_sent_alert_of_another_kind_has_no_letter(tmp_path: Path):
    desk = Desk()
    out = tmp_path / "got"
    script = tmp_path / "tell"
    script.write_text(f"#!/bin/sh\ncat > {out}\n")
    script.chmod(0o700)
    other = replace(DUE, kind=AlertKind.FAILURE)
    assert desk.reporter.send(Command("tell", frozenset(), (str(script),)), other) == Sent()
    assert '"report"' not in out.read_text()
    desk.clock.current = MONDAY_7
    assert desk.reporter.send(Command("tell", frozenset(), (str(script),)), DUE) == Sent()
    assert '"total_usd": "1.00000000"' in out.read_text()

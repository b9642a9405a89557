"""Cost reports that are due by the fleet file's clock: written down as alerts, composed when they are sent.

The notifier brings them out like any alert, each to each channel at most once. A report that fell due while
no daemon ran is sent late, up to a day; older ones are left out, since the next one is near.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from clorefleet.clock import Clock
from clorefleet.domain.alert import Alert, AlertKind, Channel, Delivery, DeliveryState
from clorefleet.domain.dimension import Dimension
from clorefleet.domain.report_policy import ReportFormat, ReportPeriod, ReportPolicy
from clorefleet.domain.schedule import CronTimes
from clorefleet.domain.secret import Secret, redacted
from clorefleet.fleet.schedule import first_moment
from clorefleet.notify.channels import Letter, Outcome, send
from clorefleet.report.charges import midnight
from clorefleet.report.commands import for_profile
from clorefleet.report.cost_document import cost_csv, cost_document
from clorefleet.report.cost_report import CostQuestion, CostReport, books_since, cost_report
from clorefleet.report.cost_text import as_text, blocks, money
from clorefleet.store.books import load_books
from clorefleet.store.database import FencingToken, Store

LATE_MAX = timedelta(days=1)
_BY = {
    ReportPeriod.DAY: (Dimension.DEPLOYMENT,),
    ReportPeriod.WEEK: (Dimension.DAY, Dimension.DEPLOYMENT),
    ReportPeriod.MONTH: (Dimension.WEEK, Dimension.DEPLOYMENT),
}


class Reporter:
    """One per daemon; `run` is called from time to time, never twice at once."""

    def __init__(
        self,
        store: Store,
        token: Callable[[], FencingToken | None],
        clock: Clock,
        *,
        policy: Callable[[], ReportPolicy | None],
        secrets: tuple[Secret, ...] = (),
        flag: str = "",
    ) -> None:
        self._store = store
        self._token = token
        self._clock = clock
        self._policy = policy
        self._secrets = secrets
        self._flag = flag
        self._told = ""

    def run(self) -> None:
        """Write down the report that is due, if one is.

        Raises:
            LostLeadership: another process acts now.
        """
        policy, token = self._policy(), self._token()
        if policy is None or token is None:
            return
        now = self._clock.now()
        at = last_due(policy, now)
        if at is None or (key := f"report:{at.isoformat()}") == self._told:
            return
        with self._store.write(token) as tx:
            applied = tx.applied_file()
            # A schedule that is new says what comes, not what would have been.
            if applied is None or at <= applied.applied_at:
                return
            alert = Alert(key, AlertKind.REPORT, at, f"The cost report of the last {policy.period} is due.")
            for name in policy.to:
                tx.add_delivery(Delivery(alert, name, DeliveryState.WAITING, 0, now))
        self._told = key

    def send(self, channel: Channel, alert: Alert) -> Outcome:
        """As the notifier's way out: reports get their letter. Commands that are told name the profile."""
        policy = self._policy()
        alert = replace(alert, text=for_profile(alert.text, self._flag))
        if alert.kind is not AlertKind.REPORT or policy is None:
            return send(channel, alert)
        return send(channel, alert, self.letter(policy, alert.at))

    def letter(self, policy: ReportPolicy, at: datetime) -> Letter:
        question = question_of(policy, at)
        now = self._clock.now()
        with self._store.read() as tx:
            books = load_books(tx, since=books_since(question, now=now))
        return letter_of(cost_report(books, question, now=now), policy, self._secrets, flag=self._flag)


def last_due(policy: ReportPolicy, now: datetime) -> datetime | None:
    """The latest moment of the schedule that has come and is not too long ago."""
    due = (at for at in _moments(policy.times, ZoneInfo(policy.zone), now) if now - LATE_MAX < at <= now)
    return max(due, default=None)


def _moments(times: CronTimes, zone: ZoneInfo, now: datetime) -> Iterator[datetime]:
    today = now.astimezone(zone).date()
    for day in (today - timedelta(days=1), today):
        if times.has_date(day):
            for hour in times.hours:
                for minute in times.minutes:
                    yield first_moment(day, hour * 60 + minute, zone)


def question_of(policy: ReportPolicy, at: datetime) -> CostQuestion:
    """About the last day, week or month that was over at `at`."""
    zone = ZoneInfo(policy.zone)
    today = at.astimezone(zone).date()
    match policy.period:
        case ReportPeriod.DAY:
            until, since = today, today - timedelta(days=1)
        case ReportPeriod.WEEK:
            until = today - timedelta(days=today.weekday())
            since = until - timedelta(days=7)
        case ReportPeriod.MONTH:
            until = today.replace(day=1)
            since = (until - timedelta(days=1)).replace(day=1)
    return CostQuestion(
        policy.by or _BY[policy.period],
        zone,
        policy.zone,
        since=midnight(since, zone),
        until=midnight(until, zone),
    )


def letter_of(
    report: CostReport, policy: ReportPolicy, secrets: tuple[Secret, ...] = (), *, flag: str = ""
) -> Letter:
    """`flag` is the profile's, for the commands that the report advises."""
    attachment, name, subtype = "", "", "plain"
    if policy.form is ReportFormat.HTML:
        from clorefleet.report.cost_page import cost_page

        attachment, name, subtype = for_profile(cost_page(report), flag), "cost.html", "html"
    elif policy.form is ReportFormat.CSV:
        attachment, name, subtype = cost_csv(report), "cost.csv", "csv"
    since = report.question.since or report.at
    begun = since.astimezone(report.question.zone)
    return Letter(
        subject=f"{money(report.total.usd)} in the {policy.period} from {begun:%Y-%m-%d}",
        text=redacted(for_profile(as_text(blocks(report)), flag), secrets),
        document=json.loads(redacted(for_profile(json.dumps(cost_document(report)), flag), secrets)),
        attachment=redacted(attachment, secrets),
        attachment_name=name,
        attachment_subtype=subtype,
    )

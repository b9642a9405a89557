"""`clorefleet report`: the cost report of the last day, week or month; shown, or sent by hand."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import typer

from clorefleet.cli.context import options
from clorefleet.cli.output import note, print_json

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from clorefleet.domain.alert import Channel
    from clorefleet.domain.fleet_file import FleetFile
    from clorefleet.domain.report_policy import ReportPolicy
    from clorefleet.notify.channels import Letter

app = typer.Typer(rich_markup_mode=None, add_completion=False)
E = TypeVar("E", bound=StrEnum)


@app.command()
def report(
    period: str = typer.Option(
        "", "--period", metavar="WORD", help="day, week or month: the last whole one."
    ),
    by: str = typer.Option("", "--by", metavar="WORDS", help="Group by these: day,model (see cost --by)."),
    time_zone: str = typer.Option("", "--tz", metavar="ZONE", help="Whose days; default: the fleet file's."),
    form: str = typer.Option("", "--format", metavar="WORD", help="What mail carries: text, html or csv."),
    email: bool = typer.Option(False, "--email", help="Send it by every mail channel of the fleet file."),
    webhook: bool = typer.Option(False, "--webhook", help="Send it by every webhook of the fleet file."),
    to: list[str] = typer.Option([], "--to", metavar="NAME", help="Send it by one channel, by its name."),
    file: Path | None = typer.Option(None, "--file", metavar="PATH", help="The fleet file."),
) -> None:
    """Show the cost report of the last week, or send it now.

    What is not said here is as [report] of the fleet file says: the one named, else the one that was
    applied, else fleet.toml here. With a schedule there, the daemon sends it by itself.

    Examples:

      clorefleet report --period day

      clorefleet report --period month --email --format html
    """
    from dataclasses import replace

    from clorefleet.cli.cost import make_report, show
    from clorefleet.config.profile import clock_of
    from clorefleet.config.zone import parse_zone
    from clorefleet.domain.dimension import parse_dimensions
    from clorefleet.domain.report_policy import ReportFormat, ReportPeriod
    from clorefleet.notify.reports import letter_of, question_of

    is_sent = bool(email or webhook or to)
    fleet = _fleet_file(file, is_needed=is_sent)
    policy = _policy(fleet)
    if period:
        policy = replace(policy, period=_word(period, ReportPeriod))
    if by:
        policy = replace(policy, by=parse_dimensions(by))
    if form:
        policy = replace(policy, form=_word(form, ReportFormat))
    if time_zone:
        policy = replace(policy, zone=parse_zone(time_zone))
    now = clock_of(options.profile()).now()
    found = make_report(question_of(policy, now), now=now)
    if options.as_json:
        from clorefleet.report.cost_document import cost_document

        print_json(cost_document(found))
    elif not is_sent:
        show(found)
    if is_sent and fleet is not None:
        _send(
            _chosen(fleet, email=email, webhook=webhook, names=to),
            letter_of(found, policy, flag=options.flag),
            now,
        )


def _fleet_file(file: Path | None, *, is_needed: bool) -> FleetFile | None:
    from clorefleet.config.fleet_file import DEFAULT_NAME, load_fleet_file
    from clorefleet.config.profile import store_url
    from clorefleet.store.database import open_store

    if file is None:
        with open_store(store_url(options.profile())).read() as tx:
            applied = tx.applied_file()
        file = Path(DEFAULT_NAME if applied is None else applied.path)
        if not is_needed and not file.is_file():
            return None
    return load_fleet_file(file)


def _policy(fleet: FleetFile | None) -> ReportPolicy:
    from clorefleet.domain.report_policy import ReportPolicy
    from clorefleet.domain.schedule import daily_at

    if fleet is not None and fleet.report is not None:
        return fleet.report
    return ReportPolicy(daily_at(0), "UTC", ())


def _word(text: str, kind: type[E]) -> E:
    from clorefleet.domain.errors import BadInput

    known = [each.value for each in kind]
    if text not in known:
        raise BadInput(f"“{text[:30]}” is none of these.", remedy=f"Use {', '.join(known)}.")
    return kind(text)


def _chosen(fleet: FleetFile, *, email: bool, webhook: bool, names: Iterable[str]) -> list[Channel]:
    """
    Raises:
        BadInput: a name is none, or there is no channel of that kind.
    """
    from clorefleet.domain.alert import Email, Webhook
    from clorefleet.domain.errors import BadInput

    channels = {each.name: each for each in fleet.notify.channels}
    for name in names:
        if name not in channels:
            raise BadInput(
                f"There is no channel “{name[:40]}”.",
                remedy=f"{fleet.name} has {', '.join(channels) or 'none: see [notify]'}.",
            )
    chosen = [
        each
        for each in channels.values()
        if each.name in names
        or (email and isinstance(each, Email))
        or (webhook and isinstance(each, Webhook))
    ]
    if not chosen:
        raise BadInput(
            f"{fleet.name} has no such channel.", remedy="Write one into [notify]: docs/fleet-toml.md."
        )
    return chosen


def _send(channels: Iterable[Channel], letter: Letter, now: datetime) -> None:
    """
    Raises:
        ConfigError: one of them did not take it for certain; the others got it.
    """
    from clorefleet.domain.alert import Alert, AlertKind
    from clorefleet.domain.errors import ConfigError
    from clorefleet.notify.channels import NotSent, Unclear, send

    alert = Alert(f"report-by-hand:{now.isoformat()}", AlertKind.REPORT, now, "A cost report.")
    troubles = []
    for channel in channels:
        match send(channel, alert, letter):
            case NotSent(why):
                troubles.append(f"{channel.name}: {why}")
            case Unclear(why):
                troubles.append(f"{channel.name} may have got it: {why}")
            case _:
                note(f"Sent by {channel.name}.")
    if troubles:
        raise ConfigError(
            f"The report did not go out by all channels: {'; '.join(troubles)}.",
            remedy="Mend [notify] of the fleet file, and send it again by those: --to NAME.",
        )

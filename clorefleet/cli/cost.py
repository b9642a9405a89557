"""`clorefleet cost`: where the money went, what it bought, and what to change."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from clorefleet.cli.context import options
from clorefleet.cli.output import print_json, say, say_verbatim, table

if TYPE_CHECKING:
    from datetime import datetime

    from clorefleet.domain.books import Books
    from clorefleet.report.cost_report import CostQuestion, CostReport
    from clorefleet.store.glance import Look

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def cost(
    name: str = typer.Argument("", help="A deployment; default: all."),
    by: str = typer.Option(
        "deployment",
        "--by",
        metavar="WHAT",
        help="Group by day, week, month, deployment, model, replica, host, gpu, phase, kind (spot or "
        "on-demand), currency, order; several: day,model.",
    ),
    since: str = typer.Option(
        "", "--since", metavar="WHEN", help="7d (ago), today, week, month, 2026-11-01, 2026-11-01T08:30."
    ),
    until: str = typer.Option("", "--until", metavar="WHEN", help="Likewise; default: now."),
    time_zone: str = typer.Option(
        "UTC", "--tz", metavar="ZONE", help="Whose days these are: Europe/Berlin. Ceilings count UTC days."
    ),
    bills: bool = typer.Option(False, "--bills", help="List the ledger's lines, order by order, as well."),
    as_csv: bool = typer.Option(False, "--csv", help="Print the groups as CSV."),
    html: str = typer.Option("", "--html", metavar="FILE", help="Write one page with plots, for printing."),
) -> None:
    """Show where the money went, what it bought, and what to change.

    Every grouping adds up to the ledger exactly. A lease that has ended shows the market's own final bill;
    one that runs shows the larger of our count and the market's counter. USD at the rate recorded then.
    Idle are hours in which a ready replica got no request through the gateway.

    Examples:

      clorefleet cost --sandbox

      clorefleet cost --by day,model --since 7d --tz Europe/Berlin

      clorefleet cost glm-5.1 --by phase --json

      clorefleet cost --since month --html november.html
    """
    from clorefleet.config.profile import clock_of
    from clorefleet.domain.errors import BadInput

    if as_csv and options.as_json:
        raise BadInput("--csv and --json contradict each other.", remedy="Use one of the two.")
    now = clock_of(options.profile()).now()
    question = ask(name, by, since, until, time_zone, now=now)
    report = make_report(question, now=now)
    if html:
        write_page(report, Path(html))
    if as_csv:
        from clorefleet.report.cost_document import cost_csv

        say_verbatim(cost_csv(report), end="")
    elif options.as_json:
        from clorefleet.report.cost_document import cost_document

        print_json(cost_document(report))
    elif not html:
        show(report, bills=bills)


def ask(name: str, by: str, since: str, until: str, time_zone: str, *, now: datetime) -> CostQuestion:
    """
    Raises:
        BadInput: one of the words is none, or the window has no length.
    """
    from zoneinfo import ZoneInfo

    from clorefleet.cli.moment import parse_moment
    from clorefleet.config.zone import parse_zone
    from clorefleet.domain.dimension import parse_dimensions
    from clorefleet.domain.errors import BadInput
    from clorefleet.domain.identity import DeploymentId
    from clorefleet.report.cost_report import CostQuestion

    zone_name = parse_zone(time_zone)
    zone = ZoneInfo(zone_name)
    begin = parse_moment(since, now=now, zone=zone) if since else None
    end = parse_moment(until, now=now, zone=zone) if until else None
    if begin is not None and begin >= (end or now):
        raise BadInput("The window ends before it begins.", remedy="Set --since before --until and now.")
    return CostQuestion(
        parse_dimensions(by), zone, zone_name, begin, end, DeploymentId(name) if name else None
    )


def make_report(question: CostQuestion, *, now: datetime) -> CostReport:
    """
    Raises:
        BadInput: there is no deployment of that name, and never was.
    """
    from dataclasses import replace

    from clorefleet.config.profile import store_url
    from clorefleet.domain.errors import BadInput
    from clorefleet.report.cost_report import books_since, cost_report
    from clorefleet.store.books import load_books
    from clorefleet.store.glance import look

    profile = options.profile()
    name = question.deployment_id

    def read(tx: Look) -> Books:
        if name is not None and tx.deployment(name) is None and not tx.segments(name):
            raise BadInput(
                f"There is no deployment “{name[:60]}”.", remedy=f"See `clorefleet status{profile.flag}`."
            )
        books = load_books(tx, since=books_since(question, now=now))
        # A server that was rented a moment ago has no line in the ledger yet, and is committed all the same.
        open_leases = {lease.lease_id: lease for lease in tx.open_leases()}
        return replace(books, leases=open_leases | dict(books.leases))

    return cost_report(look(store_url(profile), read), question, now=now)


def show(report: CostReport, *, bills: bool = False) -> None:
    from clorefleet.report.cost_text import blocks

    is_first = True
    for block in blocks(report, bills=bills):
        if not is_first:
            say()
        is_first = False
        if isinstance(block, str):
            say(block)
        else:
            table(block.headings, block.rows, right=block.right)


def write_page(report: CostReport, file: Path) -> None:
    """
    Raises:
        BadInput: the file cannot be written.
    """
    from clorefleet.cli.output import note
    from clorefleet.config.places import write_private_file
    from clorefleet.domain.errors import BadInput
    from clorefleet.report.commands import for_profile
    from clorefleet.report.cost_page import NO_PLOTS, cost_page
    from clorefleet.report.cost_plots import is_available

    try:
        write_private_file(file, for_profile(cost_page(report), options.flag).encode())
    except OSError as error:
        raise BadInput(
            f"I cannot write {str(file)[:200]}: {error.strerror}.", remedy="Choose another file."
        ) from error
    note(f"Wrote {file}.")
    if not is_available():
        note(NO_PLOTS)

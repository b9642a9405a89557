"""The cost report as people read it: tables and sentences, for the terminal and for mail. Pure.

Money is rounded here and nowhere else: to cents, or to four places where a cent says too little.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, tzinfo
from decimal import Decimal

from clorefleet.domain.dimension import Dimension
from clorefleet.domain.text import clean_line
from clorefleet.report.charges import Stage
from clorefleet.report.cost import CostRow
from clorefleet.report.cost_report import CostReport
from clorefleet.report.outlook import Forecast
from clorefleet.report.words import age, usd

KEYS_CHARS_ONE, KEYS_CHARS_MORE = 26, 44
"""Columns left for the keys of one dimension, and of several, which show fewer figures."""
NOTHING = "-"


@dataclass(frozen=True, slots=True)
class TextTable:
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    right: tuple[int, ...]
    """The columns of numbers."""


Block = TextTable | str


def blocks(report: CostReport, *, bills: bool = False) -> Iterator[Block]:
    """The report from top to bottom; a text is a paragraph. `bills` lists the ledger's lines as well."""
    yield headline(report)
    if report.is_empty:
        yield from wallet_notes(report)
        return
    yield groups_table(report)
    if report.question.by != (Dimension.PHASE,):
        yield phases_table(report)
    if bills:
        yield bills_table(report)
    yield from count_notes(report)
    yield from _waste(report)
    yield from forecast_notes(report)
    yield from wallet_notes(report)


def count_notes(report: CostReport) -> Iterator[str]:
    """How far our own figures are from the market's and the plans', and what was not counted."""
    drift = report.settled_drift_usd
    if drift is not None:
        yield (
            f"Settled bills are {signed(drift)} beside our own count of minutes; the plans had said "
            f"{money(report.total.planned_usd)} for what cost {money(report.total.usd)}."
        )
    if report.total.used.uncounted:
        yield (
            f"{report.total.used.uncounted} answered request(s) came without token counts: their tokens are "
            "in no figure here."
        )


def headline(report: CostReport) -> str:
    question = report.question
    zone = f"Days are those of {question.zone_name}."
    if report.is_empty:
        return f"Nothing was spent {_window(report)}. {zone}"
    open_bills = ""
    if report.unsettled_usd:
        open_bills = f" The market's final bill is still to come for {money(report.unsettled_usd)} of it."
    return f"{money(report.total.usd)} {_window(report)}.{open_bills} {zone}"


def _window(report: CostReport) -> str:
    since, until, zone = report.question.since, report.question.until, report.question.zone
    if since is None:
        return "in all" if until is None else f"until {moment(until, zone)}"
    if until is None:
        return f"since {moment(since, zone)}"
    return f"from {moment(since, zone)} to {moment(until, zone)}"


def moment(at: datetime, zone: tzinfo) -> str:
    return f"{at.astimezone(zone):%Y-%m-%d %H:%M}"


def money(amount: Decimal) -> str:
    return usd(amount) if abs(amount) >= 1 or not amount else usd(amount, 4)


def signed(amount: Decimal) -> str:
    return f"{'-' if amount < 0 else '+'}{usd(abs(amount), 4)}"


def hours(lasted: timedelta) -> str:
    """Server time: two servers for an hour are two hours."""
    count = lasted / timedelta(hours=1)
    return f"{count:,.1f}" if count >= 10 else f"{count:.2f}"


def share(part: Decimal, whole: Decimal) -> str:
    return f"{100 * part / whole:.0f} %" if whole else NOTHING


def per_million_tokens(row: CostRow) -> str:
    price = row.usd_per_million_tokens
    return NOTHING if price is None else money(price)


def groups_table(report: CostReport) -> TextTable:
    by = report.question.by
    is_single = len(by) == 1
    width = KEYS_CHARS_ONE if is_single else KEYS_CHARS_MORE // len(by) - 2
    headings = [each.upper() for each in by]
    figures = ["HOURS", "PLANNED", "USD", "IDLE", "$/MTOK"] if is_single else ["HOURS", "USD", "$/MTOK"]
    rows = [(*(cut(key, width) for key in row.key), *_figures(row, is_single)) for row in report.rows]
    if len(report.rows) > 1:
        total = ("total", *[""] * (len(by) - 1), *_figures(report.total, is_single))
        rows.append(total)
    return TextTable((*headings, *figures), tuple(rows), tuple(range(len(by), len(by) + len(figures))))


def _figures(row: CostRow, is_single: bool) -> tuple[str, ...]:
    if not is_single:
        return hours(row.lasted), money(row.usd), per_million_tokens(row)
    return (
        hours(row.lasted),
        money(row.planned_usd),
        money(row.usd),
        share(row.stage_usd(Stage.IDLE), row.usd),
        per_million_tokens(row),
    )


def phases_table(report: CostReport) -> TextTable:
    return TextTable(
        ("PHASE", "HOURS", "USD", "SHARE"),
        tuple(
            (stage, hours(lasted), money(spent), share(spent, report.total.usd))
            for stage, (spent, lasted) in report.total.stages.items()
        ),
        (1, 2, 3),
    )


def bills_table(report: CostReport) -> TextTable:
    return TextTable(
        ("ORDER", "DEPLOYMENT", "GPUS", "PRICE", "LASTED", "BILL", "USD"),
        tuple(
            (
                str(bill.order_id),
                cut(bill.deployment_id, 14),
                cut(bill.gpus, 14),
                bill.price,
                age(bill.lasted),
                bill.state,
                usd(bill.cost_usd, 4),
            )
            for bill in report.bills
        ),
        (0, 4, 6),
    )


def _waste(report: CostReport) -> Iterator[str]:
    if not report.waste:
        return
    lines = [f"{money(report.wasted_usd)} of it bought nothing, or little:"]
    for each in report.waste:
        lines += [f"  {money(each.usd):>8}  {each.kind}: {each.what}", f"            {each.advice}"]
    yield "\n".join(lines)


def forecast_notes(report: CostReport) -> Iterator[str]:
    fleet, *others = report.forecasts
    if not fleet.spent_usd and not fleet.running_usd_per_day:
        return
    shown = others if len(others) > 1 or (others and others[0].ceiling_usd is not None) else []
    lines = [_forecast(fleet, "fleet", report), *(_forecast(each, None, report) for each in shown)]
    lines.append("Forecasts know of no schedule: what runs now, or the last seven days, go on as they are.")
    yield "\n".join(lines)


def _forecast(forecast: Forecast, name: str | None, report: CostReport) -> str:
    parts = [
        f"{name or forecast.deployment_id}, {forecast.month}: {money(forecast.spent_usd)} so far; "
        f"{money(forecast.at_present_usd)} at the end of the month at the present "
        f"{money(forecast.running_usd_per_day)}/day"
    ]
    if forecast.at_recent_usd is not None:
        parts.append(f", {money(forecast.at_recent_usd)} with days like the last")
    if forecast.ceiling_usd is not None:
        parts.append(f"; the ceilings of its days come to {money(forecast.ceiling_usd)}")
    return "".join(parts) + "."


def wallet_notes(report: CostReport) -> Iterator[str]:
    lines = []
    for each in report.wallets:
        if not each.balance and not each.burn_per_day:
            continue
        worth = ""
        if each.currency != "USD" and each.balance_usd is not None and each.usd_per_unit is not None:
            worth = f" ({money(each.balance_usd)} at {rate(each.usd_per_unit)})"
        lasts = "nothing bills in it" if each.runway_days is None else f"lasts {each.runway_days:.1f} days"
        lines.append(
            f"{each.currency} wallet: {plain(each.balance)}{worth}, {lasts}; "
            f"read {moment(each.read_at, report.question.zone)}."
        )
        if each.drift:
            lines.append(
                f"  It and the ledger differ by {plain(each.drift)} since "
                f"{moment(each.since, report.question.zone)}: orders made by hand, a deposit, or rounding."
            )
    if lines:
        yield "\n".join(lines)


def plain(amount: Decimal) -> str:
    """All digits that say something, without exponent."""
    return f"{amount.normalize():f}"


def rate(usd_per_unit: Decimal) -> str:
    """Six digits: what is shown is near enough, what is counted has all."""
    return f"{usd_per_unit:.6g}"


def cut(text: str, chars: int) -> str:
    clean = clean_line(text)
    return clean if len(clean) <= chars else clean[: chars - 1] + "…"


def as_text(found: Iterable[Block]) -> str:
    """Blocks one under another, a blank line between; for mail."""
    return "\n\n".join("\n".join(_lines(block)) for block in found) + "\n"


def _lines(block: Block) -> Sequence[str]:
    if isinstance(block, str):
        return [block]
    cells = [block.headings, *block.rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(block.headings))]
    return [
        "  ".join(
            cell.rjust(widths[i]) if i in block.right else cell.ljust(widths[i]) for i, cell in enumerate(row)
        ).rstrip()
        for row in cells
    ]

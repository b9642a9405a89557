"""The cost report as one page that needs nothing else: no network, no script; for screens and for paper.

Text from strangers (GPU names, reasons) is escaped by the template, which escapes everything that is not
marked; only our own plots are.
"""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from clorefleet.domain.text import clean_line
from clorefleet.report import cost_plots
from clorefleet.report.charges import Stage
from clorefleet.report.cost import CostRow
from clorefleet.report.cost_report import CostReport
from clorefleet.report.cost_text import (
    TextTable,
    bills_table,
    count_notes,
    cut,
    forecast_notes,
    groups_table,
    headline,
    hours,
    moment,
    money,
    phases_table,
    wallet_notes,
)

_TEMPLATE = Path(__file__).with_name("cost_page.html.j2")
GPUS_MAX_CHARS = 28
ROWS_MAX = 400
"""Of a table; the rest is in JSON and CSV."""
NO_PLOTS = "Plots need matplotlib: pip install 'clorefleet[plots]'."


def cost_page(report: CostReport, *, title: str = "") -> str:
    """HTML. `title` is what the reader calls it; the window otherwise."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"money": money, "clean": clean_line, "short": _short, "hours": hours}
    has_plots = cost_plots.is_available()
    shown = () if report.is_empty else (groups_table(report), phases_table(report), bills_table(report))
    titles = ("Groups", "What the time went to", "Bills")
    return environment.from_string(_TEMPLATE.read_text("utf-8")).render(
        report=report,
        title=title or headline(report),
        headline=headline(report),
        made_at=moment(report.at, report.question.zone),
        stages=[stage for stage in Stage if stage in report.total.stages],
        tables=[(titles[i], *_bounded(table)) for i, table in enumerate(shown)],
        bars_max=cost_plots.BARS_MAX,
        notes=[*count_notes(report), *forecast_notes(report), *wallet_notes(report)],
        kept=report.kept[:ROWS_MAX],
        no_plots="" if has_plots else NO_PLOTS,
        timeline=_plot(cost_plots.timeline_svg(report)) if has_plots and report.timeline else None,
        groups=_plot(cost_plots.bars_svg(report.rows, "groups")) if has_plots and report.rows else None,
        day=_day,
    )


def _plot(svg: str) -> Markup:
    """Our own drawing: its texts were escaped by the library that drew it."""
    return Markup(svg)  # noqa: S704


def _short(text: str) -> str:
    return cut(text, GPUS_MAX_CHARS)


def _bounded(table: TextTable) -> tuple[TextTable, int]:
    """With how many rows are left out."""
    rows = table.rows[:ROWS_MAX]
    return TextTable(table.headings, rows, table.right), len(table.rows) - len(rows)


def _day(row: CostRow) -> str:
    return row.key[0]

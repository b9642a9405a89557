"""`clorefleet prices`: what GPUs cost now, what they cost before, and whether now is a good time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from clorefleet.cli.context import options
from clorefleet.cli.output import note, print_json, say, say_verbatim, table

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime, timedelta
    from decimal import Decimal

    from clorefleet.domain.price import PriceSnapshot
    from clorefleet.planner.prices import Standing

app = typer.Typer(rich_markup_mode=None, add_completion=False)
FRESH_MINUTES = 10
_WIDTH, _HEIGHT = 54, 12
_HOURS_UP_TO_DAYS = 2
"""A shorter history is drawn over hours."""


@app.command()
def prices(
    gpu: str = typer.Argument("", help="A GPU, for instance 4090; default: all."),
    spot: bool = typer.Option(False, "--spot", help="Least bids instead of on-demand prices."),
    days: int = typer.Option(30, "--days", min=1, max=3660, help="How far back now is compared."),
    plot: bool = typer.Option(True, "--plot/--no-plot", help="Draw one GPU's prices over time."),
) -> None:
    """Show what GPUs cost now, what they cost before, and whether now is a good time.

    USD per GPU and day as offered, without the renter's fee; free servers of one kind of GPU only. Now is
    compared by the tenth percentile with every reading of the last days. The daemon notes prices when it
    reads offers anyway; this command reads the market where the last reading is older than ten minutes.

    Examples:

      clorefleet prices --sandbox

      clorefleet prices 4090 --days 7
    """
    from datetime import timedelta

    from clorefleet.config.profile import clock_of
    from clorefleet.planner.prices import standing

    now = clock_of(options.profile()).now()
    current, rows = _read(now)
    shown = _chosen(current, gpu, spot)
    since = now - timedelta(days=days)
    past: dict[str, list[PriceSnapshot]] = {}
    for row in rows:
        if row.is_spot is spot and row.at >= since:
            past.setdefault(row.gpu, []).append(row)
    found = [standing(each, past.get(each.gpu, ()), since=since) for each in shown]
    if options.as_json:
        print_json(
            {
                "at": now,
                "days": days,
                "kind": "spot" if spot else "on-demand",
                "prices": [_document(each) for each in found],
                "history": [_row(each) for each in past.get(found[0].now.gpu, ())] if len(found) == 1 else [],
            }
        )
        return
    _show(found)
    if len(found) == 1:
        _show_one(found[0], past.get(found[0].now.gpu, []), plot=plot)
    note(_rests_on(found, days))


def _read(now: datetime) -> tuple[tuple[PriceSnapshot, ...], tuple[PriceSnapshot, ...]]:
    """The present prices, and all that are kept; read now where none is fresh."""
    from datetime import timedelta

    from clorefleet.config.profile import connect, store_url
    from clorefleet.planner.gpus import load_gpus
    from clorefleet.planner.prices import price_snapshots
    from clorefleet.store.database import open_store
    from clorefleet.wiring import make_market

    store = open_store(store_url(options.profile()))
    with store.read() as tx:
        rows = tx.prices()
    newest = max((row.at for row in rows), default=None)
    if newest is not None and timedelta(0) <= now - newest < timedelta(minutes=FRESH_MINUTES):
        return tuple(row for row in rows if row.at == newest), rows
    view = make_market(connect(options.profile(), needs_key=False)).fetch_view()
    current = price_snapshots(view, load_gpus())
    with store.write() as tx:
        tx.add_prices(current)
    return current, rows


def _chosen(current: Iterable[PriceSnapshot], gpu: str, spot: bool) -> list[PriceSnapshot]:
    """The one GPU that is meant, or all whose names have the words.

    Raises:
        BadInput: no free server has such a GPU.
    """
    from difflib import get_close_matches

    from clorefleet.domain.errors import BadInput
    from clorefleet.planner.gpus import load_gpus

    rows = [row for row in current if row.is_spot is spot]
    words = gpu.lower().split()
    model = load_gpus().find(gpu) if words else None
    exact = [row for row in rows if model is not None and row.gpu == model.name]
    found = exact or [row for row in rows if all(word in row.gpu.lower() for word in words)]
    if not found:
        near = get_close_matches(gpu.lower(), [row.gpu.lower() for row in rows], n=1, cutoff=0.4)
        hint = f"Did you mean “{near[0]}”? " if near else ""
        raise BadInput(
            f"No free server with “{gpu[:40]}” has a {'bid' if spot else 'price'} now.",
            remedy=f"{hint}`clorefleet prices` lists what there is.",
        )
    return found


def _show(found: Sequence[Standing]) -> None:
    table(
        ("GPU", "FREE", "LEAST", "P10", "MEDIAN", "P90", "CHEAPER BEFORE", "NOW IS"),
        [
            (
                each.now.gpu,
                each.now.offers,
                _usd(each.now.least),
                _usd(each.now.p10),
                _usd(each.now.median),
                _usd(each.now.p90),
                "-" if each.share_cheaper is None else f"{each.share_cheaper:.0%}",
                "?" if each.verdict == "too little history to say" else each.verdict.value,
            )
            for each in found
        ],
        right=(1, 2, 3, 4, 5, 6),
    )


def _show_one(found: Standing, rows: list[PriceSnapshot], *, plot: bool) -> None:
    now = found.now
    say()
    say(
        f"{now.gpu}: a tenth of {now.offers} free server(s) ask {_usd(now.p10)} or less per GPU and day, "
        f"a quarter {_usd(now.p25)}, half {_usd(now.median)}, three quarters {_usd(now.p75)}."
    )
    if found.least is not None and found.median is not None and found.most is not None:
        say(
            f"Before, that tenth was {_usd(found.least)} to {_usd(found.most)}, mostly {_usd(found.median)}. "
            f"Now is: {found.verdict}."
        )
    if plot and len({row.at for row in rows} | {now.at}) > 1:
        say()
        say_verbatim(drawn([*rows, now]))


def drawn(rows: Iterable[PriceSnapshot]) -> str:
    """The tenth percentile over days or hours, the present on the right."""
    import plotille

    ordered = sorted(rows, key=lambda row: row.at)
    end = ordered[-1].at
    is_long = (end - ordered[0].at).days >= _HOURS_UP_TO_DAYS
    unit, unit_s = ("days", 86_400) if is_long else ("hours", 3_600)
    ago = [(row.at - end).total_seconds() / unit_s for row in ordered]
    # Floats: a picture has no cents.
    values = [float(row.p10) for row in ordered]
    figure = plotille.Figure()
    figure.width, figure.height = _WIDTH, _HEIGHT
    figure.origin = False
    figure.x_label, figure.y_label = unit, "USD"
    figure.x_ticks_fkt = lambda value, _: f"{value:.1f}".replace("-0.0", "0.0")
    figure.y_ticks_fkt = lambda value, _: f"{value:.2f}"
    figure.set_x_limits(min_=min(ago[0], -0.01), max_=0)
    figure.set_y_limits(min_=0, max_=max(*values, 0.01) * 1.1)
    figure.plot(ago, values)
    return "\n".join(line.rstrip(" \u2800") for line in str(figure.show()).splitlines())


def _rests_on(found: Sequence[Standing], days: int) -> str:
    most = max(found, key=lambda each: each.readings)
    if not most.readings:
        return "No earlier reading to compare with yet: this one was kept."
    return (
        f"Compared with {most.readings} reading(s) over {_span(most.span)} (asked for: {days} day(s)); "
        "between them nothing was seen."
    )


def _span(span: timedelta) -> str:
    from clorefleet.report.words import age

    return age(span)


def _usd(amount: Decimal) -> str:
    return f"${amount:.2f}"


def _document(each: Standing) -> dict[str, Any]:
    return {
        **_row(each.now),
        "share_cheaper_before": each.share_cheaper,
        "verdict": each.verdict.value,
        "readings_before": each.readings,
        "span_s": int(each.span.total_seconds()),
        "p10_least_before": each.least,
        "p10_median_before": each.median,
        "p10_most_before": each.most,
    }


def _row(each: PriceSnapshot) -> dict[str, Any]:
    return {
        "gpu": each.gpu,
        "at": each.at,
        "lasts_s": int(each.lasts.total_seconds()),
        "readings": each.readings,
        "offers": each.offers,
        "least_usd_per_day": each.least,
        "p10_usd_per_day": each.p10,
        "p25_usd_per_day": each.p25,
        "median_usd_per_day": each.median,
        "p75_usd_per_day": each.p75,
        "p90_usd_per_day": each.p90,
    }

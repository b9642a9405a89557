"""The plans and their front, USD a day against tokens/s: in the terminal, or as an image file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from clorefleet.cli.output import note, say, say_verbatim

if TYPE_CHECKING:
    from clorefleet.domain.plan import Plan, PlanReport

TERMINAL = "-"
SUFFIXES = (".png", ".svg")
_WIDTH, _HEIGHT = 58, 16
_X, _Y = "USD/day, all in", "tok/s, one stream, predicted"


def check_target(target: str) -> None:
    """Before anything is fetched: can it be drawn there?

    Raises:
        BadInput: neither `-` nor a file that we can write; or the library for images is not installed.
    """
    from importlib.util import find_spec

    from clorefleet.domain.errors import BadInput

    if target in ("", TERMINAL):
        return
    file = Path(target)
    if file.suffix.lower() not in SUFFIXES:
        raise BadInput(f"I cannot plot to “{target[:200]}”.", remedy="Use --plot FILE.png, FILE.svg or -.")
    if not file.absolute().parent.is_dir():
        raise BadInput(f"There is no folder {str(file.absolute().parent)[:200]}.", remedy="Make it first.")
    if find_spec("matplotlib") is None:
        raise BadInput(
            "Images need matplotlib, which is not installed.",
            remedy="Run: pip install 'clorefleet[plots]'. Or use --plot - to draw in the terminal.",
        )


def plot(report: PlanReport, target: str) -> None:
    if target == TERMINAL:
        say()
        say_verbatim(in_terminal(report))
    else:
        to_file(report, Path(target))
        note(f"Wrote {target}.")


def _points(report: PlanReport, *, of_front: bool) -> tuple[list[float], list[float]]:
    """Floats: a picture has no cents."""
    chosen = [plan for plan in report.plans if (plan.key in report.pareto) is of_front]
    chosen.sort(key=lambda plan: plan.price.all_in_usd_per_day.amount)
    return (
        [float(plan.price.all_in_usd_per_day.amount) for plan in chosen],
        [plan.speed.decode_tokens_per_s for plan in chosen],
    )


def in_terminal(report: PlanReport) -> str:
    """Dots are plans; `+` are those that nothing beats on both price and speed."""
    import plotille

    figure = plotille.Figure()
    figure.width, figure.height = _WIDTH, _HEIGHT
    figure.origin = False
    figure.x_label, figure.y_label = _X, _Y
    figure.x_ticks_fkt = figure.y_ticks_fkt = _tick
    rest, front = _points(report, of_front=False), _points(report, of_front=True)
    figure.set_x_limits(min_=0, max_=max(*rest[0], *front[0], 0.01) * 1.05)
    figure.set_y_limits(min_=0, max_=max(*rest[1], *front[1], 0.01) * 1.05)
    if rest[0]:
        figure.scatter(*rest)
    figure.scatter(*front, marker="+")
    lines = str(figure.show()).splitlines()
    return "\n".join(line.rstrip(" \u2800") for line in lines)


def _tick(value: float, _: object) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def to_file(report: PlanReport, file: Path) -> None:
    """
    Raises:
        BadInput: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from clorefleet.domain.errors import BadInput

    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.scatter(*_points(report, of_front=False), s=18, color="0.6", label="plans")
    front = _points(report, of_front=True)
    axes.step(*front, where="post", marker="o", color="tab:blue", label="nothing is both cheaper and faster")
    for usd, speed, plan in zip(*front, _front(report), strict=True):
        axes.annotate(
            f"{plan.setup.checkpoint}, {plan.offer.gpu_summary}",
            (usd, speed), textcoords="offset points", xytext=(4, 4), fontsize=7, parse_math=False,
        )  # fmt: skip
    axes.set(xlabel=_X, ylabel=_Y, title=f"{report.requirement.model}, {report.offers_seen} offers")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.legend(loc="best", fontsize=8)
    try:
        figure.savefig(file, dpi=150)
    except OSError as error:
        raise BadInput(
            f"I cannot write {str(file)[:200]}: {error.strerror}.", remedy="Choose another."
        ) from error


def _front(report: PlanReport) -> list[Plan]:
    front = [plan for plan in report.plans if plan.key in report.pareto]
    return sorted(front, key=lambda plan: plan.price.all_in_usd_per_day.amount)

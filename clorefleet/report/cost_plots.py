"""Plots of a cost report as SVG to stand inside a page. Pure: the same report gives the same text.

Drawn by matplotlib, which is an extra: `is_available` tells. Colours are named, not fixed, so that the page
decides them for light, dark and paper: each is drawn as a placeholder and replaced by a CSS variable.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from datetime import date, timedelta
from importlib.util import find_spec
from typing import Any

from clorefleet.domain.dimension import Dimension
from clorefleet.domain.text import clean_line
from clorefleet.report.charges import Stage
from clorefleet.report.cost import CostRow
from clorefleet.report.cost_report import CostReport
from clorefleet.report.cost_text import money

BARS_MAX = 12
_ROOM_FOR_FIGURES = 1.12
_LABEL_MAX_CHARS = 32
_TEXT = "#010101"
_PLACEHOLDERS = {stage: f"#0101{index + 16:02x}" for index, stage in enumerate(Stage)}
_DRAWN_AS: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: it can be searched, and takes the page's font
    "text.parse_math": False,  # a `$` in a stranger's name is a dollar
    "text.color": _TEXT,
    "axes.labelcolor": _TEXT,
    "axes.edgecolor": _TEXT,
    "xtick.color": _TEXT,
    "ytick.color": _TEXT,
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def is_available() -> bool:
    return find_spec("matplotlib") is not None


def timeline_svg(report: CostReport) -> str:
    """USD by day or month, stacked by what it went to. Days without spending keep their place."""
    rows = {row.key[0]: row for row in report.timeline}
    keys = _all_days(list(rows)) if report.timeline_by is Dimension.DAY else list(rows)
    places = range(len(keys))

    def draw(axes: Any) -> None:
        heights = [0.0] * len(keys)
        for stage in Stage:
            # Floats: a picture has no cents.
            values = [float(rows[key].stage_usd(stage)) if key in rows else 0.0 for key in keys]
            if any(values):
                axes.bar(
                    places, values, bottom=heights, color=_PLACEHOLDERS[stage], label=stage.value, width=0.8
                )
            heights = [below + value for below, value in zip(heights, values, strict=True)]
        step = max(1, len(keys) // 8)
        axes.set_xticks(list(places)[::step], [_short(key) for key in keys][::step])
        if any(heights):
            axes.legend(loc="upper left", bbox_to_anchor=(0, 1.18), ncols=len(Stage), frameon=False)

    return _svg(draw, salt="timeline", height=3.2)


def bars_svg(rows: Sequence[CostRow], salt: str) -> str:
    """The dearest groups, their stages side by side."""
    shown = sorted(rows, key=lambda row: -row.usd)[:BARS_MAX][::-1]
    names = [clean_line(" / ".join(row.key), max_chars=_LABEL_MAX_CHARS) for row in shown]
    places = range(len(shown))

    def draw(axes: Any) -> None:
        left = [0.0] * len(shown)
        for stage in Stage:
            values = [float(row.stage_usd(stage)) for row in shown]
            if any(values):
                axes.barh(places, values, left=left, color=_PLACEHOLDERS[stage], height=0.7)
            left = [before + value for before, value in zip(left, values, strict=True)]
        axes.set_yticks(list(places), names)
        most = max(left, default=0.0)
        for place, row, end in zip(places, shown, left, strict=True):
            axes.text(end + most / 100, place, money(row.usd), va="center")
        axes.set_xlim(right=most * _ROOM_FOR_FIGURES or None)

    return _svg(draw, salt=salt, height=0.9 + 0.32 * max(1, len(shown)))


def _all_days(keys: list[str]) -> list[str]:
    if not keys:
        return []
    first, last = date.fromisoformat(min(keys)), date.fromisoformat(max(keys))
    return [(first + timedelta(days=index)).isoformat() for index in range((last - first).days + 1)]


def _short(key: str) -> str:
    """`11-28` of a day: the year stands above."""
    return key[5:] if len(key) == len("2026-11-28") else key


def _svg(draw: Any, *, salt: str, height: float) -> str:
    """What `draw` does to axes, as one `svg` element."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    # The salt makes ids that are the same each time and differ between the plots of a page.
    with matplotlib.rc_context({**_DRAWN_AS, "svg.hashsalt": f"clorefleet-{salt}"}):
        figure = Figure(figsize=(8, height), layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0)
        draw(axes)
        out = io.StringIO()
        FigureCanvasSVG(figure)
        nothing_else = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(out, format="svg", metadata=nothing_else)
    text = out.getvalue()
    text = text[text.index("<svg") :].replace(_TEXT, "currentColor")
    for stage, placeholder in _PLACEHOLDERS.items():
        text = text.replace(placeholder, f"var(--{stage})")
    return text

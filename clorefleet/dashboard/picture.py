"""Shapes for the pages' pictures: where a bar or a point stands, in thousandths of the drawing. Pure.

The templates stretch a drawing to its box (`preserveAspectRatio="none"`), so that it fits a phone, and write
its words beside it as text. Floats: a picture has no cents.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from clorefleet.domain.planning import PlanOption

FULL = 1000.0
_HEADROOM = 1.08
BAR_LEAST = 3.0
"""A lease of some seconds is still seen."""


@dataclass(frozen=True, slots=True)
class Bar:
    """A stretch of time, from left to right."""

    x: float
    width: float
    kind: str
    """The name of its style."""
    label: str


@dataclass(frozen=True, slots=True)
class Column:
    """One of several amounts, side by side, standing on the ground."""

    x: float
    width: float
    y: float
    height: float
    label: str


@dataclass(frozen=True, slots=True)
class Point:
    x: float
    y: float
    option: PlanOption


@dataclass(frozen=True, slots=True)
class Front:
    """Price against speed of a planning's options."""

    points: tuple[Point, ...]
    line: str
    """SVG path of the steps along the front; "" with fewer than two points."""
    usd_max: float
    tokens_per_s_max: float


def bar(
    begin: datetime, end: datetime, *, since: datetime, until: datetime, kind: str, label: str
) -> Bar | None:
    """None for what lies outside the window."""
    if end < since or begin > until:
        return None
    begin, end = max(begin, since), min(end, until)
    span = until - since
    x = _share(begin - since, span)
    width = max(BAR_LEAST, _share(end - begin, span))  # also where a clock jumped back
    return Bar(min(x, FULL - width), width, kind, label)


def _share(part: timedelta, whole: timedelta) -> float:
    return round(part / whole * FULL, 2)


def columns(amounts: Sequence[tuple[float, str]]) -> tuple[tuple[Column, ...], float]:
    """Columns for amounts with their labels, and the amount that the drawing's top stands for."""
    top = max([amount for amount, _ in amounts] or [0.0]) * _HEADROOM
    if not amounts or top <= 0:
        return (), 0.0
    step = FULL / len(amounts)
    found = []
    for i, (amount, label) in enumerate(amounts):
        height = round(amount / top * FULL, 2)
        found.append(Column(round(i * step, 2), round(step * 0.8, 2), round(FULL - height, 2), height, label))
    return tuple(found), top


def front(options: Iterable[PlanOption]) -> Front:
    options = tuple(options)
    usd_max = max([float(each.all_in_usd_per_day) for each in options] or [1.0]) * _HEADROOM or 1.0
    speed_max = max([each.tokens_per_s for each in options] or [1.0]) * _HEADROOM or 1.0

    def place(option: PlanOption) -> Point:
        x = float(option.all_in_usd_per_day) / usd_max * FULL
        return Point(round(x, 1), round(FULL - option.tokens_per_s / speed_max * FULL, 1), option)

    on_front = sorted((place(each) for each in options if each.is_on_front), key=lambda each: each.x)
    rest = (place(each) for each in options if not each.is_on_front)
    return Front((*rest, *on_front), _steps(on_front), usd_max, speed_max)


def _steps(points: Sequence[Point]) -> str:
    if len(points) < 2:
        return ""
    first, *others = points
    return f"M{first.x} {first.y}" + "".join(f"H{each.x}V{each.y}" for each in others)

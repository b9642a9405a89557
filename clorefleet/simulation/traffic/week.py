"""Weeks of load, minute by minute, composed from a trace.

A public trace is an hour or so. A week is made of it by a *profile*: for each minute, the share of the
trace's own rate that arrives then. The trace is played round and round, from another place in each hour; of
each request, `share x scale` copies arrive, the broken part by chance. Two seeded factors make days and
hours differ from week to week, so that no forecast can be perfect. Whoever shows a figure says `Weeks.how`
with it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime, timedelta

from clorefleet.domain.errors import BadInput
from clorefleet.domain.load import MINUTE_S
from clorefleet.simulation.traffic.trace import Trace

MINUTES_A_DAY, MINUTES_A_WEEK = 1440, 10_080
DAY_SPREAD, HOUR_SPREAD = 0.10, 0.08
"""Standard deviations of the logarithms of the factors by day and by hour [assumed]."""
_OFFICE_DAY = (
    0.06, 0.05, 0.04, 0.04, 0.05, 0.08, 0.18, 0.40, 0.72, 0.94, 1.00, 0.96,
    0.82, 0.88, 0.97, 1.00, 0.94, 0.78, 0.52, 0.36, 0.28, 0.20, 0.13, 0.08,
)  # fmt: skip
_EVENING_DAY = (
    0.45, 0.28, 0.16, 0.10, 0.08, 0.08, 0.12, 0.22, 0.34, 0.42, 0.48, 0.52,
    0.56, 0.55, 0.54, 0.56, 0.60, 0.68, 0.78, 0.90, 1.00, 0.98, 0.86, 0.66,
)  # fmt: skip
PROFILES: dict[str, tuple[tuple[float, ...], float]] = {
    "office": (_OFFICE_DAY, 0.25),
    "evening": (_EVENING_DAY, 1.15),
    "flat": ((1.0,) * 24, 1.0),
}
"""Share of the peak by hour of a weekday (UTC), and Saturday's and Sunday's share of that [assumed
shapes]."""
LONG_TRACE_S = 20 * 3600
"""A trace from this length on has days of its own, and is repeated as it is."""


@dataclass(frozen=True, slots=True)
class Weeks:
    """Load by the minute: requests that arrive, and their tokens."""

    begins_at: datetime
    """A Monday, midnight UTC."""
    requests: tuple[int, ...]
    prompt_tokens: tuple[int, ...]
    generated_tokens: tuple[int, ...]
    how: str
    """How it was composed, for whoever reads a figure made of it."""

    @property
    def minutes(self) -> int:
        return len(self.requests)


def compose(trace: Trace, *, weeks: int, scale: float, profile: str, seed: int, begins_at: datetime) -> Weeks:
    """
    Raises:
        BadInput: an unknown profile, or a trace that is too short.
    """
    import numpy as np

    if profile not in PROFILES:
        raise BadInput(f"There is no profile “{profile[:30]}”; there is {', '.join(PROFILES)}.")
    rng = np.random.default_rng(seed)
    minute_of = np.asarray(trace.offsets_s) // MINUTE_S
    length = int(trace.length_s // MINUTE_S)
    kept = minute_of < length  # the last minute is not a whole one
    starts = np.searchsorted(minute_of[kept], np.arange(length + 1))
    prompts = np.asarray(trace.prompt_tokens)[kept]
    outputs = np.asarray(trace.generated_tokens)[kept]
    has_days = trace.length_s >= LONG_TRACE_S
    total = weeks * MINUTES_A_WEEK
    day, weekend = PROFILES["flat" if has_days else profile]
    by_day = np.exp(rng.normal(0.0, DAY_SPREAD, weeks * 7))
    by_hour = np.exp(rng.normal(0.0, HOUR_SPREAD, weeks * 168 + 1))
    turns = rng.integers(0, length, weeks * 168)
    counts, into, out = [0] * total, [0] * total, [0] * total
    for minute in range(total):
        hour = minute // 60
        source = (minute if has_days else minute + int(turns[hour])) % length
        share = _share(day, weekend, minute) * by_day[minute // MINUTES_A_DAY] * scale
        within = minute % 60 / 60
        share *= by_hour[hour] * (1 - within) + by_hour[hour + 1] * within
        whole = math.floor(share)
        first, last = starts[source], starts[source + 1]
        copies = whole + (rng.random(last - first) < share - whole)
        counts[minute] = int(copies.sum())
        into[minute] = int((copies * prompts[first:last]).sum())
        out[minute] = int((copies * outputs[first:last]).sum())
    made = (
        "repeated as it is"
        if has_days
        else f"an assumed {profile} profile of day and week, the trace played round and round, from another "
        f"minute in each hour, at {scale:g} x its rate at the peak"
    )
    how = (
        f"{weeks} week(s) composed from {trace.name} ({trace.summary}): {made}; seeded chance (seed {seed}) "
        f"makes days differ by {DAY_SPREAD:.0%} and hours by {HOUR_SPREAD:.0%}"
    )
    return Weeks(begins_at, tuple(counts), tuple(into), tuple(out), how)


def _share(day: tuple[float, ...], weekend: float, minute: int) -> float:
    """Between the middles of hours, in a straight line."""
    position = minute / 60 - 0.5
    before = math.floor(position)
    within = position - before

    def at(hour: int) -> float:
        weekday = hour // 24 % 7
        return day[hour % 24] * (weekend if weekday >= 5 else 1.0)

    return at(before) * (1 - within) + at(before + 1) * within


def a_monday(at: datetime) -> datetime:
    """The midnight at which the week of `at` began."""
    midnight = at.replace(hour=0, minute=0, second=0, microsecond=0)
    return midnight - timedelta(days=midnight.weekday())

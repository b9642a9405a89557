"""What is asked of a deployment, out of its samples. Pure.

Demand is what was served plus what was not: requests that wait or were turned away count as well, since a
saturated fleet serves the same however much is asked of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from clorefleet.domain.load import MINUTE_S, LoadSample, weighted_tokens
from clorefleet.planner.capacity import ReplicaCapacity

SMOOTH_LEAST, SMOOTH_MOST = 3, 30
"""Minutes that demand is a mean over: as long as a server takes to start, within these. A burst that is over
before a server could help is no reason to start one; it counts as variation, for which all are sized."""
DRAIN_S = 300
"""A queue is to be gone after this time."""
TREND_MINUTES = 30
TREND_MOST = 2.0
"""No trend is believed that doubles the demand before a server has started."""
VARIATION_MINUTES = 120
VARIATION_MOST = 1.0
LEARN_FROM, LEARN_WINDOW = 60, 5
"""Samples that a replica's speed is learned from, five at a time: requests count when they end, so that one
minute may show the tokens of several."""
NOTHING = 1e-6
"""Tokens/s that only rounding leaves."""


@dataclass(frozen=True, slots=True)
class Demand:
    """Weighted tokens/s by the minute, oldest first."""

    raw: tuple[float, ...]
    smoothed: tuple[float, ...]
    variation: float
    """Standard deviation of a minute about its surroundings, as a share of them: how much comes in bursts."""
    width: int = SMOOTH_LEAST
    """Minutes that `smoothed` is a mean over."""

    @property
    def now(self) -> float:
        return self.smoothed[-1] if self.smoothed else 0.0

    def lasting(self, minutes: int) -> float:
        """What was asked for all the time in the last `minutes`."""
        return min(self.smoothed[-minutes:], default=0.0)

    def most(self, minutes: int) -> float:
        return max(self.smoothed[-minutes:], default=0.0)

    def rising_to(self, ahead_s: float) -> float:
        """Where a rise of the last half hour leads in `ahead_s`; what is asked now where there is none."""
        recent = self.raw[-TREND_MINUTES:]
        if len(recent) < TREND_MINUTES or self.now < NOTHING:
            return self.now
        slope, spread = _slope(recent)
        if slope <= 2 * spread:  # less than twice its standard error is no trend
            return self.now
        # A mean lags by half its length.
        return min(TREND_MOST * self.now, self.now + slope * (ahead_s / MINUTE_S + self.width / 2))


def smooth_minutes(ready_after_s: float) -> int:
    return int(min(SMOOTH_MOST, max(SMOOTH_LEAST, ready_after_s / MINUTE_S)))


def demand_of(
    samples: Sequence[LoadSample], tokens_per_request: float, *, width: int = SMOOTH_LEAST
) -> Demand:
    """`width` is `smooth_minutes` of the time that a server takes to start."""
    raw = tuple(
        each.tokens_per_s
        + each.waiting * tokens_per_request / DRAIN_S
        + each.turned_away * tokens_per_request / each.length_s
        for each in samples
    )
    sums = (0.0, *accumulate(raw))
    smoothed = tuple(
        max(0.0, (sums[end] - sums[max(0, end - width)]) / min(end, width)) for end in range(1, len(sums))
    )
    return Demand(raw, smoothed, _variation(raw[-VARIATION_MINUTES:], width), width)


def _variation(raw: Sequence[float], width: int) -> float:
    """About the mean of each stretch of `width` minutes, so that a trend hardly counts."""
    mean = sum(raw) / len(raw) if raw else 0.0
    if len(raw) < 2 or mean < NOTHING:
        return 0.0
    squares, free = 0.0, 0
    for start in range(0, len(raw) - 1, width):
        stretch = raw[start : start + width]
        middle = sum(stretch) / len(stretch)
        squares += sum((value - middle) ** 2 for value in stretch)
        free += len(stretch) - 1
    return min(VARIATION_MOST, float((squares / max(1, free)) ** 0.5) / mean)


def _slope(values: Sequence[float]) -> tuple[float, float]:
    """Of a straight line through the values, and its standard error; both per step."""
    count = len(values)
    middle = (count - 1) / 2
    mean = sum(values) / count
    squares = count * (count * count - 1) / 12
    slope = sum((index - middle) * value for index, value in enumerate(values)) / squares
    left = sum((value - mean - slope * (index - middle)) ** 2 for index, value in enumerate(values))
    return slope, float((left / (count - 2) / squares) ** 0.5)


def mean_tokens_per_request(samples: Sequence[LoadSample], otherwise: float) -> float:
    """Weighted tokens; `otherwise` where no request was counted."""
    requests = sum(each.requests for each in samples)
    tokens = sum(weighted_tokens(each.prompt_tokens, each.generated_tokens) for each in samples)
    return tokens / requests if requests and tokens else otherwise


def learned(capacity: ReplicaCapacity, samples: Sequence[LoadSample]) -> ReplicaCapacity:
    """`capacity` corrected by what replicas did: at least that; no more than that while a queue stood."""
    recent = samples[-LEARN_FROM:]
    best = 0.0
    for start in range(len(recent) % LEARN_WINDOW, len(recent), LEARN_WINDOW):
        window = recent[start : start + LEARN_WINDOW]
        serving = max(each.serving for each in window)
        if serving > 0:
            best = max(best, sum(each.tokens_per_s for each in window) / LEARN_WINDOW / serving)
    if best > capacity.tokens_per_s:
        return replace(capacity, tokens_per_s=best, is_measured=True)
    last = recent[-LEARN_WINDOW:]
    is_full = len(last) == LEARN_WINDOW and all(
        each.waiting > 0 and each.serving == last[0].serving > 0 for each in last
    )
    seen = sum(each.tokens_per_s for each in last) / LEARN_WINDOW / last[0].serving if is_full else 0.0
    return replace(capacity, tokens_per_s=seen, is_measured=True) if seen > 0 else capacity

"""What is asked of a deployment, out of its samples. Pure.

Demand is what was served plus what was not: requests that wait or were turned away count as well, since a
saturated fleet serves the same however much is asked of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import accumulate
from operator import mul

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


@dataclass(slots=True)
class Minutes:
    """Samples, oldest first and a minute each, and by column what every decision sums up over hours of them.

    Columns, since a simulated month decides some 40,000 times, each time about two hours of minutes.
    """

    samples: list[LoadSample] = field(default_factory=list)
    served: list[float] = field(default_factory=list)
    """Weighted tokens/s."""
    unmet: list[float] = field(default_factory=list)
    """Requests/s that were turned away, or that wait and are to be gone within `DRAIN_S`."""
    per_replica: list[float] = field(default_factory=list)
    """`served` by each of those that serve."""

    @staticmethod
    def of(samples: Iterable[LoadSample]) -> Minutes:
        made = Minutes()
        for each in samples:
            made.append(each)
        return made

    def append(self, sample: LoadSample) -> None:
        self.samples.append(sample)
        self.served.append(sample.tokens_per_s)
        self.unmet.append(sample.waiting / DRAIN_S + sample.turned_away / sample.length_s)
        self.per_replica.append(self.served[-1] / max(1, sample.serving))

    def forget_before(self, kept: int) -> None:
        """All but the last `kept`."""
        for column in (self.samples, self.served, self.unmet, self.per_replica):
            del column[:-kept]

    @property
    def last(self) -> LoadSample | None:
        return self.samples[-1] if self.samples else None


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
    minutes: Minutes, tokens_per_request: float, *, watched: int, width: int = SMOOTH_LEAST
) -> Demand:
    """
    Args:
        watched: minutes back that are asked about.
        width: `smooth_minutes` of the time that a server takes to start.
    """
    looked_at = max(watched + width, VARIATION_MINUTES)
    served, unmet = minutes.served[-looked_at:], minutes.unmet[-looked_at:]
    raw = served
    if any(unmet):
        raw = [rate + more * tokens_per_request for rate, more in zip(served, unmet, strict=True)]
    return Demand(
        tuple(raw),
        _smoothed(raw[-watched - width :], width),
        _variation(raw[-VARIATION_MINUTES:], width),
        width,
    )


def _smoothed(raw: Sequence[float], width: int) -> tuple[float, ...]:
    """Means of `width` minutes up to each; of fewer where the record begins."""
    sums = [0.0, *accumulate(raw)]
    means = [total / minute for minute, total in enumerate(sums[1 : width + 1], 1)]
    means += [(end - start) / width for start, end in zip(sums[1:], sums[width + 1 :], strict=False)]
    # What is left of nothing may be a little less than nothing.
    return tuple([mean if mean > 0.0 else 0.0 for mean in means])


def _variation(raw: Sequence[float], width: int) -> float:
    """About the mean of each stretch of `width` minutes, so that a trend hardly counts."""
    mean = sum(raw) / len(raw) if raw else 0.0
    if len(raw) < 2 or mean < NOTHING:
        return 0.0
    squares, free = 0.0, 0
    for start in range(0, len(raw) - 1, width):
        stretch = raw[start : start + width]
        squares += _squares(stretch)
        free += len(stretch) - 1
    return min(VARIATION_MOST, float((squares / max(1, free)) ** 0.5) / mean)


def _squares(values: Sequence[float]) -> float:
    """Of the distances from the mean."""
    total = sum(values)
    squared: float = sum(map(mul, values, values))
    return max(0.0, squared - total * total / len(values))


def _slope(values: Sequence[float]) -> tuple[float, float]:
    """Of a straight line through the values, and its standard error; both per step."""
    count = len(values)
    squares = count * (count * count - 1) / 12
    slope = sum(map(mul, _about_zero(count), values)) / squares
    left = max(0.0, _squares(values) - slope * slope * squares)
    return slope, float((left / (count - 2) / squares) ** 0.5)


@lru_cache(maxsize=8)
def _about_zero(count: int) -> tuple[float, ...]:
    return tuple(index - (count - 1) / 2 for index in range(count))


def mean_tokens_per_request(samples: Sequence[LoadSample], otherwise: float) -> float:
    """Weighted tokens; `otherwise` where no request was counted."""
    requests = sum(each.requests for each in samples)
    tokens = sum(weighted_tokens(each.prompt_tokens, each.generated_tokens) for each in samples)
    return tokens / requests if requests and tokens else otherwise


def learned(capacity: ReplicaCapacity, minutes: Minutes) -> ReplicaCapacity:
    """`capacity` corrected by what replicas did: at least that; no more than that while a queue stood."""
    if max(minutes.per_replica[-LEARN_FROM:], default=0.0) > capacity.tokens_per_s:
        best = _best(minutes.samples[-LEARN_FROM:])
        if best > capacity.tokens_per_s:
            return replace(capacity, tokens_per_s=best, is_measured=True)
    last = minutes.samples[-LEARN_WINDOW:]
    is_full = len(last) == LEARN_WINDOW and all(
        each.waiting > 0 and each.serving == last[0].serving > 0 for each in last
    )
    seen = sum(minutes.served[-LEARN_WINDOW:]) / LEARN_WINDOW / last[0].serving if is_full else 0.0
    return replace(capacity, tokens_per_s=seen, is_measured=True) if seen > 0 else capacity


def _best(samples: Sequence[LoadSample]) -> float:
    """Weighted tokens/s of a replica in the best `LEARN_WINDOW` minutes."""
    best = 0.0
    for start in range(len(samples) % LEARN_WINDOW, len(samples), LEARN_WINDOW):
        window = samples[start : start + LEARN_WINDOW]
        serving = max(each.serving for each in window)
        if serving > 0:
            best = max(best, sum(each.tokens_per_s for each in window) / LEARN_WINDOW / serving)
    return best

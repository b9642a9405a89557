"""The demand to come, from the deployment's own past: the same quarter of an hour of earlier weeks. Pure.

People work by the week, so that the best simple guess of next Tuesday at ten is last Tuesday at ten. What
this week does otherwise is corrected by how the last hour compares with its own guess, and that correction
fades with distance. Before a week has passed, yesterday stands in; before a day has, there is no forecast.

Weeks are counted in UTC: after a change of the clocks the guess is an hour off until a week has passed, which
the correction mostly hides.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from clorefleet.domain.load import LoadSample

BUCKET_S = 900
_DAY = 86_400 // BUCKET_S
_WEEK = 7 * _DAY
WEEKS_BACK = 4
OLDER_WEEK_SHARE = 0.5
"""Each week counts half as much as the one after it."""
CORRECTION_BUCKETS = 4
CORRECTION_LEAST, CORRECTION_MOST = 0.5, 2.0
ERROR_BUCKETS = _DAY
ERROR_UNKNOWN, ERROR_MOST = 0.2, 0.5
CORRECTION_FADES_S = 3 * 3600.0
HISTORY_KEPT = timedelta(weeks=WEEKS_BACK, hours=1)


def bucket_of(at: datetime) -> int:
    return int(at.timestamp()) // BUCKET_S


@dataclass(frozen=True, slots=True)
class Forecast:
    """Guesses made at `now` from a mean demand per past bucket (weighted tokens/s)."""

    past: Mapping[int, float]
    now_bucket: int
    correction: float
    """How the last hour compares with what was guessed for it."""
    error: float = 0.0
    """Standard deviation of what came about what was guessed, as a share of it, over the last day."""
    _guessed: dict[int, float | None] = field(default_factory=dict, repr=False, compare=False)
    """By bucket, once asked for."""

    def demand(self, bucket: int) -> float | None:
        """Weighted tokens/s, or None where the past has nothing to say."""
        if bucket not in self._guessed:
            self._guessed[bucket] = self._guess(bucket)
        return self._guessed[bucket]

    def _guess(self, bucket: int) -> float | None:
        guess = _same_time(self.past, bucket, self.now_bucket)
        if guess is None:
            return None
        ahead_s = max(0, bucket - self.now_bucket) * BUCKET_S
        return guess * (1 + (self.correction - 1) * math.exp(-ahead_s / CORRECTION_FADES_S))

    def most_within(self, start_s: float, end_s: float, *, now: datetime) -> float | None:
        """The most demand from `start_s` to `end_s` after `now`; None unless all of it can be guessed."""
        first = int(now.timestamp() + start_s) // BUCKET_S
        last = int(now.timestamp() + max(start_s, end_s)) // BUCKET_S
        guesses = [self.demand(bucket) for bucket in range(first, last + 1)]
        known = [guess for guess in guesses if guess is not None]
        return max(known) if known and len(known) == len(guesses) else None


def forecast(past: Mapping[int, float], now: datetime) -> Forecast | None:
    """None until there is a day to look back on."""
    bucket = bucket_of(now)
    if _same_time(past, bucket, bucket) is None:
        return None
    compared = _compared(past, bucket)
    lately = compared[-CORRECTION_BUCKETS:]
    correction = _ratio(sum(was for was, _ in lately), sum(guess for _, guess in lately))
    return Forecast(past, bucket, correction, _error(compared))


def _compared(past: Mapping[int, float], bucket: int) -> list[tuple[float, float]]:
    """What came and what had been guessed, over the last day."""
    pairs = []
    for each in range(bucket - ERROR_BUCKETS, bucket):
        guess = _same_time(past, each, each)
        if guess is not None and guess > 0 and each in past:
            pairs.append((past[each], guess))
    return pairs


def _ratio(was: float, guessed: float) -> float:
    ratio = was / guessed if guessed > 0 else 1.0
    return min(CORRECTION_MOST, max(CORRECTION_LEAST, ratio))


def _error(compared: list[tuple[float, float]]) -> float:
    """Of the corrected guesses, each weighed by its size: the night's few requests say little of the day."""
    squares = weights = was_before = guessed_before = 0.0
    for index, (was, guess) in enumerate(compared):
        if index >= CORRECTION_BUCKETS:
            corrected = guess * _ratio(was_before, guessed_before)
            squares += (was - corrected) ** 2
            weights += corrected**2
            first = compared[index - CORRECTION_BUCKETS]
            was_before, guessed_before = was_before - first[0], guessed_before - first[1]
        was_before, guessed_before = was_before + was, guessed_before + guess
    return min(ERROR_MOST, math.sqrt(squares / weights)) if weights else ERROR_UNKNOWN


def _same_time(past: Mapping[int, float], bucket: int, known_before: int) -> float | None:
    total = weights = 0.0
    weight = 1.0
    for week in range(1, WEEKS_BACK + 1):
        earlier = bucket - week * _WEEK
        if earlier < known_before and earlier in past:
            total += weight * past[earlier]
            weights += weight
        weight *= OLDER_WEEK_SHARE
    if weights:
        return total / weights
    yesterday = bucket - _DAY
    return past.get(yesterday) if yesterday < known_before else None


def buckets(samples: Iterable[LoadSample]) -> dict[int, float]:
    """Mean weighted tokens/s per bucket of a quarter of an hour."""
    tokens: dict[int, float] = {}
    seconds: dict[int, int] = {}
    for sample in samples:
        bucket = bucket_of(sample.started_at)
        tokens[bucket] = tokens.get(bucket, 0.0) + sample.tokens_per_s * sample.length_s
        seconds[bucket] = seconds.get(bucket, 0) + sample.length_s
    return {bucket: tokens[bucket] / seconds[bucket] for bucket in tokens}

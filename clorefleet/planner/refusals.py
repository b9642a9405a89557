"""Why offers are not taken, counted by reason; the nearest miss of each gives the words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from clorefleet.domain.offer import Offer
from clorefleet.domain.plan import Fit, Refusal

_WORDS = {
    "vram": "too little GPU memory; the nearest lacks {}",
    "ram": "too little RAM; the nearest lacks {}",
    "disk": "too little free disk; the nearest lacks {}",
    "speed": "too slow: {}",
}

Words = str | Callable[[], str]
"""Written at once, or only if this turns out to be the nearest miss."""


@dataclass(frozen=True, slots=True)
class _Nearest:
    distance: int
    offer: Offer
    words: Words

    @property
    def rank(self) -> tuple[int, int]:
        return self.distance, self.offer.server_id


@dataclass(slots=True)
class Refusals:
    _counts: dict[str, int] = field(default_factory=dict)
    _nearest: dict[str, _Nearest] = field(default_factory=dict)

    def add(self, code: str, words: Words, offer: Offer, distance: int = 0) -> None:
        """`distance`: how far off, in whatever unit the code has; the smaller the nearer."""
        self._counts[code] = self._counts.get(code, 0) + 1
        miss = _Nearest(distance, offer, words)
        known = self._nearest.get(code)
        if known is None or miss.rank < known.rank:
            self._nearest[code] = miss

    def add_counts(self, counts: Mapping[str, int]) -> None:
        """Offers that were refused in bulk. Their nearest came one by one."""
        for code, count in counts.items():
            self._counts[code] = self._counts.get(code, 0) + count

    def listed(self) -> tuple[Refusal, ...]:
        """The most frequent first."""
        rows = []
        for code, miss in self._nearest.items():
            words = miss.words if isinstance(miss.words, str) else miss.words()
            example = f"server {miss.offer.server_id}, {miss.offer.gpu_summary}"
            rows.append(Refusal(code, words, self._counts[code], example))
        return tuple(sorted(rows, key=lambda row: (-row.count, row.code)))


def words_of(miss: Fit | None) -> str:
    if miss is None:
        return "no checkpoint of the wanted precision"
    text = _WORDS.get(miss.binding, "{}").format(miss.shortfall)
    return text + (f" (cure: {miss.cure})" if miss.cure else "")

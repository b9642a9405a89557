"""How long weights take to reach a server, and whence they come faster. Estimates; no clock."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from clorefleet.domain.duration import in_words

if TYPE_CHECKING:
    from clorefleet.domain.node import NodeFacts
    from clorefleet.domain.offer import Offer
    from clorefleet.domain.setup import Setup

EFFICIENCY = 0.7
"""Share of the offered line that a download reaches [assumed]."""
UNKNOWN_LINE_MBIT_S = 100.0
UNKNOWN_DISK_MB_S = 500.0
"""Where the market has not measured [assumed]."""
SIBLING_GAIN_MIN = 1.25
"""A sibling is asked only where it is faster by this: the hub uses no line of ours [assumed]."""
BYTES_PER_MBIT = 125_000
SECONDS_MAX = 10 * 365 * 86_400.0
"""What a server measures of itself may be any number: no estimate is longer than this."""
LOCAL = "file://"
"""What the repository of weights on this machine begins with."""


@dataclass(frozen=True, slots=True)
class DownloadEstimate:
    size_bytes: int
    bytes_per_s: float
    disk_free_bytes: int | None
    line: str
    """Whose speed this is: `measured`, `simulated`, `offered` or `assumed`; "" for weights of this machine,
    whose own line nobody knows."""

    @property
    def seconds(self) -> float:
        return min(SECONDS_MAX, self.size_bytes / self.bytes_per_s)

    def text(self, now: datetime | None = None) -> str:
        """`105.4 GB of weights, about 14 min by its offered line, until 15:32 UTC; 2,000 GB of disk free`.

        `now` is when the download begins; without it no hour is named.
        """
        if not self.line:
            return f"{self.size_bytes / 1e9:,.1f} GB of weights come from this machine, as fast as it sends"
        until = "" if now is None else f", until {now + timedelta(seconds=self.seconds):%H:%M} UTC"
        free = self.disk_free_bytes
        disk = "" if free is None else f"; {free / 1e9:,.0f} GB of disk free"
        took = in_words(timedelta(seconds=max(1.0, self.seconds)))
        return (
            f"{self.size_bytes / 1e9:,.1f} GB of weights, about {took} by its {self.line} line{until}{disk}"
        )


def estimate(offer: Offer, setup: Setup, facts: NodeFacts | None = None) -> DownloadEstimate:
    """By the line that was measured on the server, else by the offered one; a slow disk holds both back."""
    measured = None if facts is None else facts.measured
    disk_mb_s = float(offer.disk_mb_s or 0) or UNKNOWN_DISK_MB_S
    if measured is not None and measured.download_mbit_s:
        line_bytes_s = measured.download_mbit_s * BYTES_PER_MBIT
        line = "simulated" if measured.is_simulated else "measured"
        disk_mb_s = measured.disk_write_mb_s or disk_mb_s
    else:
        line_bytes_s = (float(offer.down_mbit_s or 0) or UNKNOWN_LINE_MBIT_S) * EFFICIENCY * BYTES_PER_MBIT
        line = "offered" if offer.down_mbit_s else "assumed"
    if setup.repo.startswith(LOCAL):
        line = ""
    free = None if facts is None else facts.disk_free_bytes
    return DownloadEstimate(
        setup.checkpoint_bytes,
        min(line_bytes_s, disk_mb_s * 1e6),
        offer.disk_free_bytes if free is None else free,
        line,
    )


def sibling_bytes_per_s(sibling: Offer, offer: Offer, relay_bytes_per_s: float) -> float:
    """From the sibling's up-line through this machine's share to the new server's down-line.

    0 where this machine relays nothing, or nobody knows the sibling's up-line.
    """
    up = float(sibling.up_mbit_s or 0) * EFFICIENCY * BYTES_PER_MBIT
    down = (float(offer.down_mbit_s or 0) or UNKNOWN_LINE_MBIT_S) * EFFICIENCY * BYTES_PER_MBIT
    return min(up, down, relay_bytes_per_s)


def is_sibling_faster(hub_bytes_per_s: float, sibling_path_bytes_per_s: float) -> bool:
    return sibling_path_bytes_per_s >= SIBLING_GAIN_MIN * hub_bytes_per_s

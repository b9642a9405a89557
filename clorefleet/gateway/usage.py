"""What one request used.

The counts are the engine's own words, and a host can lie: they feed reports, never money.

Streams carry counts only when the client asked for them (`stream_options.include_usage`); then they are None
and so they stay. The gateway does not change a prompt to learn more.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from clorefleet.domain.identity import LeaseId
from clorefleet.domain.usage import WAIT_BOUNDS_S, UsageHour, hour_of, wait_class

TAIL_MAX_BYTES = 64 * 1024
"""The end of an answer that is searched for its counts: all engines write them last or nearly so."""
TOKENS_MAX = 1_000_000_000
"""More than that in one request is a lie."""
_USAGE = re.compile(rb'"usage"\s*:\s*(?=\{)')
"""Cannot match inside a JSON string: there the closing quote has a backslash before it."""


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """One request that went to a replica.

    Attributes:
        started_at: when it was sent to the replica, UTC.
        first_byte_s: from then to the first byte of the answer's body; None when none came.
        total_s: from then to the end.
        status: what the client was told. 499 when it left first, or the gateway was stopped; where the
            answer broke off after its head had gone out, the status that it should have had (502, 504).
        prompt_tokens, completion_tokens: as the engine says; None where it does not.
        was_streamed: the answer was an event stream.
        events: of that stream; about one a token.
    """

    lease_id: str
    model: str
    started_at: datetime
    first_byte_s: float | None
    total_s: float
    status: int
    prompt_tokens: int | None
    completion_tokens: int | None
    was_streamed: bool
    events: int = 0


OnFinished = Callable[[RequestRecord], None]
"""Called on the gateway's event loop after each request. Must not block: put the record in a queue."""


class UsageMeter:
    """Sums finished requests until somebody writes them down.

    Thread-safe: the gateway counts on its thread, the daemon takes on its own. What was counted since the
    last `take` is lost when the process dies: it feeds reports, and a write per request would cost more.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._hours: dict[tuple[LeaseId, datetime], UsageHour] = {}

    def count(self, record: RequestRecord) -> None:
        """An `OnFinished`."""
        self._add([hour_of_request(record)])

    def take(self) -> tuple[UsageHour, ...]:
        """All that was counted since the last call, oldest first; the meter stands at zero afterwards."""
        with self._lock:
            taken, self._hours = self._hours, {}
        return tuple(sorted(taken.values(), key=lambda each: (each.hour, each.lease_id)))

    def put_back(self, hours: Iterable[UsageHour]) -> None:
        """What was taken could not be written down: it counts on."""
        self._add(hours)

    def _add(self, hours: Iterable[UsageHour]) -> None:
        with self._lock:
            for added in hours:
                key = (added.lease_id, added.hour)
                before = self._hours.get(key)
                self._hours[key] = added if before is None else before.plus(added)


def hour_of_request(record: RequestRecord) -> UsageHour:
    """One request as a sum of one, in the hour in which it ended."""
    ended_at = record.started_at + timedelta(seconds=record.total_s)
    is_answered = record.status < 400 and record.first_byte_s is not None
    waits = [0] * (len(WAIT_BOUNDS_S) + 1)
    if is_answered and record.first_byte_s is not None:
        waits[wait_class(record.first_byte_s)] = 1
    has_counts = record.completion_tokens is not None
    return UsageHour(
        lease_id=LeaseId(record.lease_id),
        hour=hour_of(ended_at),
        model=record.model,
        last_at=ended_at,
        requests=1,
        failures=int(record.status >= 500),
        uncounted=int(is_answered and not has_counts),
        prompt_tokens=record.prompt_tokens or 0,
        completion_tokens=record.completion_tokens or 0,
        uncounted_events=0 if has_counts else record.events,
        first_byte_s=(record.first_byte_s or 0.0) if is_answered else 0.0,
        total_s=record.total_s if is_answered else 0.0,
        waits=tuple(waits),
    )


class Tail:
    """The last bytes of a long answer, at a constant cost per byte."""

    def __init__(self) -> None:
        self._kept = bytearray()
        self.events = 0
        """Ends of events so far, counted as blank lines; about one a token."""

    def add(self, piece: bytes) -> None:
        self.events += piece.count(b"\n\n") + (self._kept.endswith(b"\n") and piece.startswith(b"\n"))
        self._kept += piece[-TAIL_MAX_BYTES:]
        if len(self._kept) > 2 * TAIL_MAX_BYTES:
            del self._kept[:-TAIL_MAX_BYTES]

    def ends_event(self) -> bool:
        """Whether an event stream could go on with a new event here."""
        return not self._kept or self._kept.endswith((b"\n\n", b"\r\n\r\n"))

    def token_counts(self) -> tuple[int | None, int | None]:
        return token_counts(bytes(self._kept[-TAIL_MAX_BYTES:]))


def token_counts(tail: bytes) -> tuple[int | None, int | None]:
    """Prompt and completion tokens from the end of an answer, plain or streamed; None where it has none."""
    ends = [found.end() for found in _USAGE.finditer(tail)]
    if not ends:
        return None, None
    try:
        usage, _ = json.JSONDecoder().raw_decode(tail[ends[-1] :].decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None, None
    return _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))


def _count(value: object) -> int | None:
    is_count = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= TOKENS_MAX
    return value if is_count and isinstance(value, int) else None

"""What one request used.

The counts are the engine's own words, and a host can lie: they feed reports, never money.

Streams carry counts only when the client asked for them (`stream_options.include_usage`); then they are None
and so they stay. The gateway does not change a prompt to learn more.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

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


OnFinished = Callable[[RequestRecord], None]
"""Called on the gateway's event loop after each request. Must not block: put the record in a queue."""


class Tail:
    """The last bytes of a long answer, at a constant cost per byte."""

    def __init__(self) -> None:
        self._kept = bytearray()

    def add(self, piece: bytes) -> None:
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

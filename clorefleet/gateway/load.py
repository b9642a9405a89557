"""What is asked for, counted for whoever decides how many replicas there are.

Beside `usage`, which feeds reports by the hour: this one is emptied with every tick, and it also knows of the
requests that found no replica. What was counted since the last tick is lost when the process dies.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

from clorefleet.domain.identity import LeaseId
from clorefleet.domain.load import LoadTaken, ReplicaLoad
from clorefleet.gateway.usage import RequestRecord

MODELS_MAX = 1000
"""Turned-away requests of more models than that are not told apart: nobody has so many deployments."""


@dataclass(slots=True)
class _Sum:
    requests: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    first_byte_s: float = 0.0
    first_bytes: int = 0


class LoadMeter:
    """Thread-safe: the gateway counts on its thread, the daemon takes on its own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sums: dict[str, _Sum] = {}
        self._away: dict[str, int] = {}

    def count(self, record: RequestRecord) -> None:
        """An `OnFinished`."""
        tokens = record.completion_tokens
        with self._lock:
            total = self._sums.setdefault(record.lease_id, _Sum())
            total.requests += 1
            total.prompt_tokens += record.prompt_tokens or 0
            # A stream without counts has about one event a token.
            total.generated_tokens += record.events if tokens is None else tokens
            if record.first_byte_s is not None:
                total.first_byte_s += record.first_byte_s
                total.first_bytes += 1

    def count_turned_away(self, model: str) -> None:
        with self._lock:
            if model in self._away or len(self._away) < MODELS_MAX:
                self._away[model] = self._away.get(model, 0) + 1

    def take(self) -> LoadTaken:
        """All since the last call; the meter stands at zero afterwards."""
        with self._lock:
            sums, self._sums = self._sums, {}
            away, self._away = self._away, {}
        return LoadTaken(
            tuple(
                ReplicaLoad(
                    LeaseId(lease_id),
                    each.requests,
                    each.prompt_tokens,
                    each.generated_tokens,
                    each.first_byte_s / each.first_bytes if each.first_bytes else None,
                )
                for lease_id, each in sorted(sums.items())
            ),
            away,
        )

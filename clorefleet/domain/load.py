"""What a deployment was asked for and what it did, minute by minute. Values only.

Demand is counted in *weighted tokens*: a generated token is one, a prompt token `PROMPT_TOKEN_WEIGHT`. That
makes one number of two that differ by model and use, and it is what replicas are sized by.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

from clorefleet.domain.identity import LeaseId

PROMPT_TOKEN_WEIGHT = 0.05
"""Work of reading one prompt token, in generated tokens [assumed]: a batch of prompts goes through a GPU
10 to 40 times as fast as the same tokens are generated, the more the larger the batch."""
MINUTE_S = 60


def weighted_tokens(prompt_tokens: float, generated_tokens: float) -> float:
    return prompt_tokens * PROMPT_TOKEN_WEIGHT + generated_tokens


@dataclass(frozen=True, slots=True)
class LoadSample:
    """One deployment's use over `length_s` seconds from `started_at`.

    Attributes:
        requests: those that ended, whatever came of them.
        turned_away: those that found no ready replica; not among `requests`.
        prompt_tokens, generated_tokens: as counted at the gateway.
        running, waiting: requests at the engines, as last seen; waiting ones have no place yet.
        serving: replicas that served.
        first_byte_s: mean time to the first byte of the answers that had one; None without any.
    """

    started_at: datetime
    length_s: int
    requests: int = 0
    turned_away: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    running: int = 0
    waiting: int = 0
    serving: int = 0
    first_byte_s: float | None = None

    @property
    def is_used(self) -> bool:
        return bool(
            self.requests or self.turned_away or self.generated_tokens or self.running or self.waiting
        )

    @property
    def tokens_per_s(self) -> float:
        """Weighted tokens asked for per second."""
        return weighted_tokens(self.prompt_tokens, self.generated_tokens) / self.length_s

    def plus(self, later: LoadSample) -> LoadSample:
        """Both as one of this one's length: of the same minute, and `later` the later part of it."""
        answers = self.requests + later.requests
        waits = [
            (each.first_byte_s, each.requests) for each in (self, later) if each.first_byte_s is not None
        ]
        weight = sum(count for _, count in waits)
        return replace(
            later,
            started_at=self.started_at,
            length_s=self.length_s,
            requests=answers,
            turned_away=self.turned_away + later.turned_away,
            prompt_tokens=self.prompt_tokens + later.prompt_tokens,
            generated_tokens=self.generated_tokens + later.generated_tokens,
            first_byte_s=sum(wait * count for wait, count in waits) / weight if weight else None,
        )


@dataclass(frozen=True, slots=True)
class ReplicaLoad:
    """Requests of one lease that ended since somebody last asked; `first_byte_s` is their mean."""

    lease_id: LeaseId
    requests: int
    prompt_tokens: int
    generated_tokens: int
    first_byte_s: float | None


@dataclass(frozen=True, slots=True)
class LoadTaken:
    """What the gateway counted since somebody last asked."""

    replicas: tuple[ReplicaLoad, ...] = ()
    turned_away: Mapping[str, int] = field(default_factory=dict)
    """Requests that found no ready replica, by model."""

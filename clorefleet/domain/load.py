"""What a deployment was asked for and what it did, minute by minute. Values only.

Demand is counted in *weighted tokens*: a generated token is one, a prompt token `PROMPT_TOKEN_WEIGHT`. That
makes one number of two that differ by model and use, and it is what replicas are sized by.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

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
        prompt_tokens, generated_tokens: the larger of what the gateway and the engines counted.
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

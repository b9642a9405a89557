"""The market's rate limits, per key, in real time.

Real time whatever the time factor: a limit bounds how hard a client may press the service, and a
client paces itself by its own clock.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from clorefleet.sandbox.settings import SandboxSettings

CREATE = "create_order"


@dataclass(slots=True)
class RateLimiter:
    settings: SandboxSettings
    _last_call_s: dict[str, float] = field(default_factory=dict)
    _last_create_s: dict[str, float] = field(default_factory=dict)

    def wait_s(self, key: str, endpoint: str, now_s: float) -> float:
        """0 if the call may go on (and counts), else the real seconds until it may."""
        if not self.settings.enforce_rate_limits:
            return 0.0
        wait_s = self._last_call_s.get(key, float("-inf")) + self.settings.call_interval_real_s - now_s
        if endpoint == CREATE:
            wait_create_s = self._last_create_s.get(key, float("-inf")) + self.settings.create_interval_real_s
            wait_s = max(wait_s, wait_create_s - now_s)
        is_refused = wait_s > 0
        if not is_refused or self.settings.refused_calls_count:
            self._last_call_s[key] = now_s
            if endpoint == CREATE:
                self._last_create_s[key] = now_s
        return wait_s if is_refused else 0.0

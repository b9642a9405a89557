"""One kept SSH session per lease, opened when it is needed and again after it broke.

Opening is what hostile or dying hosts make expensive, so failures are followed by a pause that grows;
inside the pause the last trouble is told again and nothing is sent. A session that works is shared by all
threads: each command and each tunnelled connection has its own channel.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from clorefleet.domain.errors import NodeError, NodeUnreachable
from clorefleet.domain.identity import LeaseId
from clorefleet.node.session import NodeSession

PAUSE_FIRST_S = 1.0
PAUSE_MAX_S = 30.0


@dataclass(slots=True)
class _Kept:
    session: NodeSession | None = None
    failures: int = 0
    not_before_s: float = 0.0
    trouble: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)
    """Held while the session is opened, never while it is used."""


class SessionPool:
    def __init__(self, monotonic_s: Callable[[], float] = time.monotonic) -> None:
        self._monotonic_s = monotonic_s
        self._kept: dict[LeaseId, _Kept] = {}
        self._lock = threading.Lock()

    def session(self, lease_id: LeaseId, open_session: Callable[[], NodeSession]) -> NodeSession:
        """The lease's session; `open_session` is called when there is none that lives.

        Raises:
            NodeError: as `open_session` raised it; NodeUnreachable also while a pause lasts.
        """
        with self._lock:
            kept = self._kept.setdefault(lease_id, _Kept())
        with kept.lock:
            if kept.session is not None:
                if kept.session.is_alive:
                    return kept.session
                kept.session.close()
                kept.session = None
            if self._monotonic_s() < kept.not_before_s:
                raise NodeUnreachable(kept.trouble)
            try:
                kept.session = open_session()
            except NodeError as error:
                pause_s = min(PAUSE_MAX_S, PAUSE_FIRST_S * 2**kept.failures)
                kept.failures += 1
                kept.not_before_s = self._monotonic_s() + pause_s
                kept.trouble = error.what
                raise
            kept.failures = 0
            return kept.session

    def drop(self, lease_id: LeaseId) -> None:
        """Close a session that proved useless, with all its channels; the next call opens another."""
        with self._lock:
            kept = self._kept.get(lease_id)
        session = None if kept is None else kept.session
        if session is not None:
            session.close()

    def forget(self, lease_id: LeaseId) -> None:
        """Close and remember nothing; a lease that is unknown is fine."""
        with self._lock:
            kept = self._kept.pop(lease_id, None)
        if kept is not None and kept.session is not None:
            kept.session.close()

    def close(self) -> None:
        with self._lock:
            lease_ids = list(self._kept)
        for lease_id in lease_ids:
            self.forget(lease_id)

"""The gateway as the daemon holds it: its table, its server, and replicas as the fleet names them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Protocol

from clorefleet.clock import SystemClock
from clorefleet.domain.wanted import NotReady
from clorefleet.gateway.load import LoadMeter
from clorefleet.gateway.routing import Backend, RoutingTable, Starting
from clorefleet.gateway.server import DRAIN_S, Gateway
from clorefleet.gateway.token import TokenCheck
from clorefleet.gateway.usage import RequestRecord, UsageMeter

WAKE_EVERY_S = 5.0
"""A flood of requests for a model that sleeps wakes it once, and is no flood of ticks."""


class Served(Protocol):
    """A serving replica as the fleet names it."""

    @property
    def lease_id(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def socket(self) -> Path: ...


class GatewayService:
    """Prefers one port, so that clients keep their address; takes a free one where that is taken."""

    def __init__(
        self,
        token: TokenCheck,
        *,
        preferred_port: int,
        clock_factor: float = 1.0,
    ) -> None:
        """`clock_factor`: how fast the fleet's clock runs; clients wait in real time."""
        self._clock_factor = clock_factor
        self.usage = UsageMeter()
        self.load = LoadMeter()
        self._table = RoutingTable()
        self._wake: Callable[[], None] | None = None
        self._woke_at_s: float | None = None
        self._clock = SystemClock()
        self._gateway = Gateway(
            self._table, token, port=preferred_port, on_finished=self._finished, on_wanted=self._wanted
        )

    def when_wanted(self, wake: Callable[[], None]) -> None:
        """`wake` is called, not too often, when a request finds no replica of a model that is to be
        served."""
        self._wake = wake

    def _finished(self, record: RequestRecord) -> None:
        self.usage.count(record)
        self.load.count(record)

    def _wanted(self, model: str) -> None:
        self.load.count_turned_away(model)
        now_s = self._clock.monotonic_s()
        if self._wake is None or (self._woke_at_s is not None and now_s - self._woke_at_s < WAKE_EVERY_S):
            return
        self._woke_at_s = now_s
        self._wake()

    @property
    def url(self) -> str:
        return self._gateway.url

    def start(self) -> None:
        """
        Raises:
            DaemonError: it did not come up.
        """
        self._gateway.start()

    def set_routes(self, backends: Iterable[Served]) -> None:
        """From now on exactly these serve; requests under way on others finish."""
        self._table.set_backends(
            tuple(Backend(each.lease_id, each.model, uds_path=each.socket) for each in backends)
        )

    def set_wanted(self, reasons: Mapping[str, NotReady]) -> None:
        """The models that are to be served, each with the reason why it may not be ready yet."""
        self._table.set_wanted({model: self._starting(each) for model, each in reasons.items()})

    def _starting(self, why: NotReady) -> Starting:
        left = why.ready_in
        return Starting(why.reason, None if left is None else left.total_seconds() / self._clock_factor)

    def in_flight(self, lease_id: str) -> int:
        return self._table.in_flight(lease_id)

    def stop(self, timeout_s: float = DRAIN_S) -> None:
        """Let requests under way finish for a bounded time."""
        self._gateway.stop(timeout_s)

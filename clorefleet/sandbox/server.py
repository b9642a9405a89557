"""One running sandbox: market, hub and nodes in one process, on loopback only.

Here and nowhere else the parts are put together. `SandboxServer.start` is complete when every port
answers and `sandbox.json` says where; `stop` leaves a state directory from which the next start goes on
with the same orders, wallets and simulated time. A kill at any point loses nothing that was answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import socket
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from decimal import Decimal
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.types import ASGIApp

from clorefleet.sandbox.answers import Dated
from clorefleet.sandbox.app import MarketApp
from clorefleet.sandbox.catalogue import Catalogue
from clorefleet.sandbox.clock import MARK_INTERVAL_S, SandboxClock
from clorefleet.sandbox.coins import CoinRates
from clorefleet.sandbox.control import ControlApp
from clorefleet.sandbox.faults import FaultBoard
from clorefleet.sandbox.hub import HubFaults, hub_app
from clorefleet.sandbox.lines import NodeLines
from clorefleet.sandbox.market import Market
from clorefleet.sandbox.nodes import LOOPBACK, NodeKeeper, NoRack, Rack
from clorefleet.sandbox.occupancy import Occupancy
from clorefleet.sandbox.process import code_version
from clorefleet.sandbox.records import Records, Remembered
from clorefleet.sandbox.settings import SandboxSettings
from clorefleet.sandbox.statedir import StateDir

log = logging.getLogger(__name__)

_TICK_REAL_S = 0.25
_GRACE_REAL_S = 1
_START_REAL_S_MAX = 30.0
_BACKLOG = 128


class DifferentSeed(Exception):
    """The state directory belongs to a market of another seed or size."""


@dataclass(frozen=True, slots=True)
class _Identity:
    """What stays the same over restarts of one state directory."""

    api_key: str
    control_token: str
    epoch_s: int
    clock_s: float
    rates: CoinRates | None
    market_port: int
    hub_port: int


class _QuietServer(uvicorn.Server):
    """Signals belong to `__main__`, which also has nodes to stop."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class SandboxServer:
    """`rack` and `hub` may be given by tests; by default the real ones are used."""

    def __init__(
        self, settings: SandboxSettings, *, rack: Rack | None = None, hub: ASGIApp | None = None
    ) -> None:
        self.settings = settings
        self._given_rack, self._given_hub = rack, hub
        self._state = StateDir(settings.state_dir)
        self._undo = contextlib.AsyncExitStack()
        self.info: dict[str, Any] = {}

    async def start(self) -> dict[str, Any]:
        """Returns what `sandbox.json` holds.

        Raises `statedir.StateDirBusy` when another server has the directory, and `DifferentSeed` when
        it was made with another seed or number of servers.
        """
        self._state.create()
        lock = self._state.lock()
        self._undo.callback(os.close, lock)
        try:
            await self._start()
        except BaseException:
            await self._undo.aclose()
            raise
        return self.info

    async def _start(self) -> None:
        settings = self.settings
        self._state.info_file.unlink(missing_ok=True)  # a killed server's; it would mislead
        records = Records(self._state.database_file)
        self._undo.callback(records.close)
        identity = self._identity(records)
        self.clock = SandboxClock(base_unix_s=identity.clock_s, factor=settings.time_factor)
        self.faults = FaultBoard(settings.seed, settings.faults)
        self.market = self._market(records, identity)
        market_socket = _listen(settings.market_port, identity.market_port)
        hub_socket = _listen(settings.hub_port, identity.hub_port)
        self._undo.callback(market_socket.close)
        self._undo.callback(hub_socket.close)
        market_port, hub_port = market_socket.getsockname()[1], hub_socket.getsockname()[1]
        records.save_fact("ports", {"market": market_port, "hub": hub_port})
        hub_url = f"http://{LOOPBACK}:{hub_port}"
        rack, hub, hub_faults = self._nodes_and_hub(hub_url)
        self.keeper = NodeKeeper(self.market, rack, self.clock)
        self._undo.push_async_callback(self.keeper.close)
        self.info = self._info(identity, market_port, hub_url)
        app = self._app(identity, hub_faults)
        app.set_origin(f"http://{LOOPBACK}:{market_port}")
        await self._serve(hub, hub_socket)
        await self._serve(Dated(app.starlette, self.clock), market_socket, dates_itself=True)
        self.market.settle()
        self.market.take_effects()
        self.keeper.resume()
        self._undo.callback(self._last_mark)
        ticking = asyncio.create_task(self._tick(), name="sandbox tick")
        self._undo.push_async_callback(_cancel, ticking)
        self._publish()
        self._undo.callback(self._state.info_file.unlink, missing_ok=True)

    async def stop(self) -> None:
        """Stop nodes and servers, and store the instant; safe to call twice."""
        await self._undo.aclose()

    # parts

    def _identity(self, records: Records) -> _Identity:
        settings = self.settings
        last = Remembered(**records.load_fact("settings", {}))
        is_new = records.load_fact("api_key") is None
        if not is_new and (last.seed, last.server_count) != (settings.seed, settings.server_count):
            raise DifferentSeed(
                f"{self._state.path} holds a market of seed {last.seed} with {last.server_count} servers, "
                f"not of seed {settings.seed} with {settings.server_count}; reset it or use another directory"
            )
        now = Remembered(settings.seed, settings.server_count, settings.time_factor)
        records.save_fact("settings", asdict(now))
        if is_new:
            start_s = settings.base_unix_s
            if start_s is None:
                start_s = SandboxClock(base_unix_s=0).real_unix_s()
            records.save_fact("epoch_s", int(start_s))
            records.save_fact("clock_s", start_s)
            records.save_fact("control_token", secrets.token_hex(16))
            records.save_fact("api_key", secrets.token_hex(16))  # last: it says that the rest is there
        rates = records.load_fact("rates")
        ports = records.load_fact("ports", {})
        return _Identity(
            api_key=records.load_fact("api_key"),
            control_token=records.load_fact("control_token"),
            epoch_s=records.load_fact("epoch_s"),
            clock_s=records.load_fact("clock_s"),
            rates=None if rates is None else CoinRates({coin: Decimal(rate) for coin, rate in rates.items()}),
            market_port=ports.get("market", 0),
            hub_port=ports.get("hub", 0),
        )

    def _market(self, records: Records, identity: _Identity) -> Market:
        settings = self.settings
        catalogue = Catalogue.of_seed(
            settings.seed, server_count=settings.server_count, rates=CoinRates.at_start(settings.seed)
        )
        if identity.rates is not None:
            catalogue.reprice(identity.rates)
        return Market(
            settings,
            catalogue=catalogue,
            occupancy=Occupancy(catalogue.servers, seed=settings.seed, churn=settings.churn),
            clock=self.clock,
            records=records,
            faults=self.faults,
            epoch_s=identity.epoch_s,
        )

    def _app(self, identity: _Identity, hub_faults: HubFaults) -> MarketApp:
        control = ControlApp(
            self.market,
            keeper=self.keeper,
            clock=self.clock,
            faults=self.faults,
            hub_faults=hub_faults,
            token=identity.control_token,
            clock_moved=self._publish,
        )
        return MarketApp(
            self.market,
            keeper=self.keeper,
            clock=self.clock,
            faults=self.faults,
            settings=self.settings,
            api_key=identity.api_key,
            control=control,
        )

    def _nodes_and_hub(self, hub_url: str) -> tuple[Rack, ASGIApp, HubFaults]:
        """The given ones, or the real ones, which share each node's line so that downloads have its speed."""
        hub_faults = HubFaults()
        if self.settings.market_only:
            return NoRack(), Starlette(), hub_faults
        if self._given_rack is not None and self._given_hub is not None:
            return self._given_rack, self._given_hub, hub_faults
        from clorefleet.sandbox.rack import Rack as RealRack

        lines = NodeLines(scale=self.settings.line_scale)
        hub: ASGIApp = self._given_hub or hub_app(lines=lines, faults=hub_faults)
        if self._given_rack is not None:
            return self._given_rack, hub, hub_faults
        rack = RealRack(root=self._state.nodes_dir, hub_url=hub_url, clock=self.clock, lines=lines)
        if rack.isolation_warning:
            log.warning("%s", rack.isolation_warning)
        return rack, hub, hub_faults

    async def _serve(self, app: ASGIApp, listening: socket.socket, *, dates_itself: bool = False) -> None:
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="off",
            server_header=False,
            date_header=not dates_itself,
            timeout_graceful_shutdown=_GRACE_REAL_S,
        )
        server = _QuietServer(config)
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        self._undo.push_async_callback(_shut_down, server, serving)
        async with asyncio.timeout(_START_REAL_S_MAX):
            while not server.started:
                if serving.done():
                    serving.result()
                    raise RuntimeError("a sandbox server ended as it started")
                await asyncio.sleep(0.005)

    # time

    async def _tick(self) -> None:
        """Let time pass even when nobody asks, and mark how far it came."""
        next_mark_s = float("-inf")
        while True:
            try:
                self.market.settle()
                self.keeper.perform(self.market.take_effects())
                if self.clock.monotonic_s() >= next_mark_s:
                    self.market.save_mark(ahead=True)
                    next_mark_s = self.clock.monotonic_s() + MARK_INTERVAL_S
            except Exception:  # the loop boundary: a broken tick must be seen, and must not end the others
                log.exception("sandbox_tick_failed")
            await asyncio.sleep(_TICK_REAL_S)

    def _last_mark(self) -> None:
        self.market.settle()
        self.market.take_effects()
        self.market.save_mark(ahead=False)

    # publishing

    def _info(self, identity: _Identity, market_port: int, hub_url: str) -> dict[str, Any]:
        return {
            "simulated": True,
            "pid": os.getpid(),
            "market_url": f"http://{LOOPBACK}:{market_port}/v1",
            "hub_url": hub_url,
            "control_url": f"http://{LOOPBACK}:{market_port}/_sandbox",
            "api_key": identity.api_key,
            "control_token": identity.control_token,
            "seed": self.settings.seed,
            "time_factor": self.settings.time_factor,
            "clock": asdict(self.clock.anchor()),
            "started_at": self.clock.real_unix_s(),
            "code": code_version(),
        }

    def _publish(self) -> None:
        self.info = {**self.info, "clock": asdict(self.clock.anchor())}
        self._state.write_info(self.info)


def _listen(port: int, last_port: int) -> socket.socket:
    """A listening loopback socket: `port` exactly if given, else the last one if free, else any."""
    candidates = [port] if port else [last_port, 0] if last_port else [0]
    for index, candidate in enumerate(candidates):
        listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((LOOPBACK, candidate))
            listening.listen(_BACKLOG)
            return listening
        except OSError:
            listening.close()
            if index == len(candidates) - 1:
                raise
    raise AssertionError("unreachable: the last candidate is bound or raises")


async def _shut_down(server: uvicorn.Server, serving: asyncio.Task[None]) -> None:
    server.should_exit = True
    await serving


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task

"""Keeps one node per live order: boots it after its delay, and stops it when the order ends.

The market decides and queues `NodeEffect`s; this performs them against a `Rack`. A port is held from
the moment an address is published, so that it answers "connection refused" while the host boots and
cannot be given to anybody else. A host that never boots keeps it so for good.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Protocol

from clorefleet.sandbox.clock import SandboxClock
from clorefleet.sandbox.market import EffectKind, Market, NodeEffect
from clorefleet.sandbox.orders import SandboxOrder
from clorefleet.sandbox.truth import ServerTruth

log = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"


class Rack(Protocol):
    """Where nodes run. The real one is `clorefleet.sandbox.rack.Rack`."""

    async def start(
        self,
        order_id: int,
        truth: ServerTruth,
        *,
        image: str,
        env: Mapping[str, str],
        ssh_key: str | None,
        ssh_password: str | None,
        command: str | None,
        autossh: bool,
        ssh_port: int = 0,
    ) -> int: ...

    async def pause(self, order_id: int) -> None: ...

    async def stop(self, order_id: int) -> None: ...

    async def close(self) -> None: ...


class NoRack:
    """No nodes at all: orders are placed, addressed and charged, and nothing answers at the address."""

    async def start(
        self,
        order_id: int,
        truth: ServerTruth,
        *,
        image: str,
        env: Mapping[str, str],
        ssh_key: str | None,
        ssh_password: str | None,
        command: str | None,
        autossh: bool,
        ssh_port: int = 0,
    ) -> int:
        return ssh_port

    async def pause(self, order_id: int) -> None:
        return

    async def stop(self, order_id: int) -> None:
        return

    async def close(self) -> None:
        return


def hold_port(port: int = 0) -> socket.socket:
    """A loopback port that is taken and refuses connections; any free one if `port` is taken."""
    held = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        held.bind((LOOPBACK, port))
    except OSError:
        held.bind((LOOPBACK, 0))
    return held


class NodeKeeper:
    def __init__(self, market: Market, rack: Rack, clock: SandboxClock) -> None:
        self._market, self._rack, self._clock = market, rack, clock
        self._boots: dict[int, asyncio.Task[None]] = {}
        self._held: dict[int, socket.socket] = {}
        self._running: set[int] = set()
        self._stops: dict[int, asyncio.Task[None]] = {}

    def perform(self, effects: list[NodeEffect]) -> None:
        """Begin what the market asked for; returns at once."""
        for effect in effects:
            if effect.kind is EffectKind.START:
                self._begin(effect.order_id)
            else:
                self._end(effect.order_id, keeps_disk=effect.kind is EffectKind.PAUSE)

    def resume(self) -> None:
        """After a restart: every live order gets its node again, on its old port where that is free."""
        for order in self._market.live():
            self._market.node_gone(order.id)
            if order.is_active:
                self._begin(order.id)

    def ssh_port(self, order_id: int) -> int | None:
        return self._market.orders[order_id].ssh_port if order_id in self._running else None

    async def close(self) -> None:
        for order_id in list(self._boots):
            self._boots[order_id].cancel()
        await asyncio.gather(*self._boots.values(), *self._stops.values(), return_exceptions=True)
        for held in self._held.values():
            held.close()
        self._held.clear()
        await self._rack.close()

    def _begin(self, order_id: int) -> None:
        order = self._market.orders[order_id]
        server = self._market.catalogue.servers[order.server_id]
        if order_id in self._boots or order_id in self._running or not self._market.is_online(server):
            return
        self._boots[order_id] = asyncio.create_task(self._boot(order), name=f"boot {order_id}")

    async def _boot(self, order: SandboxOrder) -> None:
        truth = self._market.truth_of(order)
        never_boots = "never_boots" in truth.lies
        try:
            if (stopping := self._stops.get(order.id)) is not None:
                await asyncio.wait([stopping])  # a spot order that regains its machine at once
            if never_boots and order.server_id % 2:
                return  # such a host never even gets an address
            held = hold_port(order.ssh_port or 0)
            self._held[order.id] = held
            port = int(held.getsockname()[1])
            self._market.node_addressed(order.id, port)
            if never_boots:
                return
            await asyncio.sleep(max(0.0, order.boot_real_s - self._clock.real_unix_s()))
            self._held.pop(order.id).close()
            try:
                started = await self._start(order, truth, port)
            except OSError:  # somebody took the port in the instant between: the address changes then
                started = await self._start(order, truth, 0)
            self._running.add(order.id)
            self._market.node_addressed(order.id, started)
            self._market.node_deployed(order.id)
        except asyncio.CancelledError:
            raise
        except Exception:  # one node's failure must not end the market: the order stays deploying
            log.exception("node_boot_failed order=%s", order.id)
        finally:
            self._boots.pop(order.id, None)

    async def _start(self, order: SandboxOrder, truth: ServerTruth, port: int) -> int:
        request = order.request
        return await self._rack.start(
            order.id,
            truth,
            image=request.image,
            env=dict(request.env),
            ssh_key=request.ssh_key,
            ssh_password=request.ssh_password,
            command=request.command,
            autossh=request.has_ssh_entrypoint,
            ssh_port=port,
        )

    def _end(self, order_id: int, *, keeps_disk: bool) -> None:
        boot = self._boots.pop(order_id, None)
        if boot is not None:
            boot.cancel()
        held = self._held.pop(order_id, None)
        if held is not None:
            held.close()
        self._running.discard(order_id)
        earlier = self._stops.get(order_id)
        end = self._rack.pause if keeps_disk else self._rack.stop
        task = asyncio.create_task(self._stop(order_id, end, boot, earlier), name=f"stop {order_id}")
        self._stops[order_id] = task
        task.add_done_callback(partial(self._forget_stop, order_id))

    def _forget_stop(self, order_id: int, task: asyncio.Task[None]) -> None:
        if self._stops.get(order_id) is task:
            del self._stops[order_id]

    async def _stop(
        self,
        order_id: int,
        end: Callable[[int], Awaitable[None]],
        *before: asyncio.Task[None] | None,
    ) -> None:
        pending = [task for task in before if task is not None]
        if pending:
            await asyncio.wait(pending)
        try:
            await end(order_id)
        except Exception:
            log.exception("node_stop_failed order=%s", order_id)

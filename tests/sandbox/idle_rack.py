"""A rack that opens nothing and remembers what it was asked: for tests of the market alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from clorefleet.sandbox.truth import ServerTruth


@dataclass
class IdleRack:
    running: dict[int, ServerTruth] = field(default_factory=dict)
    started: list[int] = field(default_factory=list)
    stopped: list[int] = field(default_factory=list)
    env: dict[int, dict[str, str]] = field(default_factory=dict)
    is_closed: bool = False

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
        self.running[order_id] = truth
        self.started.append(order_id)
        self.env[order_id] = dict(env)
        return ssh_port or 40_000 + order_id % 10_000

    async def pause(self, order_id: int) -> None:
        self.running.pop(order_id, None)

    async def stop(self, order_id: int) -> None:
        self.running.pop(order_id, None)
        self.stopped.append(order_id)

    async def close(self) -> None:
        self.running.clear()
        self.is_closed = True


async def empty_hub(scope: object, receive: object, send: object) -> None:
    """An ASGI application that has nothing."""
    assert callable(send)
    await send({"type": "http.response.start", "status": 404, "headers": []})
    await send({"type": "http.response.body", "body": b""})

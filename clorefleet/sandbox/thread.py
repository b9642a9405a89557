"""A sandbox inside the calling process, in a thread with its own loop: for tests and simulations."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Self

from starlette.types import ASGIApp

from clorefleet.sandbox import process
from clorefleet.sandbox.nodes import Rack
from clorefleet.sandbox.server import SandboxServer
from clorefleet.sandbox.settings import SandboxSettings

_START_S_MAX = 30.0
_STOP_S_MAX = 30.0


class RunningSandbox:
    """`with RunningSandbox(settings) as sandbox:` starts it, and stops it at the end.

    Inside: `market_url`, `hub_url`, `api_key`, `server`, and `control(name, body)`.
    """

    def __init__(
        self, settings: SandboxSettings, *, rack: Rack | None = None, hub: ASGIApp | None = None
    ) -> None:
        self.server = SandboxServer(settings, rack=rack, hub=hub)
        self._thread = threading.Thread(target=self._run, name="sandbox", daemon=True)
        self._ready: Future[dict[str, Any]] = Future()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.result(timeout=_START_S_MAX)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        if self._loop is not None and self._stop is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(timeout=_STOP_S_MAX)
        if self._thread.is_alive():
            raise RuntimeError("the sandbox's thread does not end")

    @property
    def info(self) -> dict[str, Any]:
        return self.server.info

    @property
    def market_url(self) -> str:
        return str(self.info["market_url"])

    @property
    def hub_url(self) -> str:
        return str(self.info["hub_url"])

    @property
    def api_key(self) -> str:
        return str(self.info["api_key"])

    def control(self, name: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """As `process.control`: raises `SandboxError` when refused."""
        found = process.find(self.server.settings.state_dir)
        if found is None:
            raise RuntimeError("the sandbox does not run")
        return process.control(found, name, body)

    def _run(self) -> None:
        asyncio.run(self._live())

    async def _live(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        try:
            info = await self.server.start()
        except BaseException as error:
            self._ready.set_exception(error)  # raised again in `__enter__`
            raise
        self._ready.set_result(info)
        try:
            await self._stop.wait()
        finally:
            await self.server.stop()

"""The gateway's routes, behind its guard.

/health                   alive; no token, no details
/v1/models                the models that are ready; a card says so where its engine is simulated
/v1/chat/completions, /v1/completions, /v1/embeddings    to the least loaded ready replica of the model
/-/status                 replicas and their load
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from clorefleet.clock import Clock, SystemClock
from clorefleet.gateway.guard import Guard
from clorefleet.gateway.limits import DEFAULT_LIMITS, Limits
from clorefleet.gateway.problem import Problem
from clorefleet.gateway.relay import OnWanted, Relay
from clorefleet.gateway.routing import Backend, RoutingTable
from clorefleet.gateway.upstream import Upstreams
from clorefleet.gateway.usage import OnFinished

PASSED_PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")
CARD_S = 2.0
"""For a replica to show its models."""
CARD_MAX_BYTES = 256 * 1024


class GatewayApp:
    """The application, and the handles that its server needs."""

    def __init__(
        self,
        table: RoutingTable,
        guard: Guard,
        *,
        limits: Limits = DEFAULT_LIMITS,
        clock: Clock | None = None,
        on_finished: OnFinished | None = None,
        on_wanted: OnWanted | None = None,
    ) -> None:
        self._table = table
        self._guard = guard
        self._upstreams = Upstreams(table, limits)
        self._relay = Relay(
            table,
            self._upstreams,
            limits=limits,
            clock=clock or SystemClock(),
            on_finished=on_finished,
            on_wanted=on_wanted,
        )
        self._is_simulated: dict[tuple[str, str], bool] = {}
        """What a backend's own card said. It does not change while the backend lives."""

    def asgi(self) -> ASGIApp:
        routes = Starlette(
            routes=[
                Route("/health", self._health),
                Route("/v1/models", self._models),
                Route("/-/status", self._status),
                *(Route(path, self._relay, methods=["POST"]) for path in PASSED_PATHS),
            ],
            lifespan=self._lifespan,
            exception_handlers={HTTPException: _not_served, Exception: _failed},
        )
        routes.router.redirect_slashes = False

        async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http":
                problem = self._guard.refusal(scope["path"], Headers(scope=scope))
                if problem is not None:
                    await problem.response()(scope, receive, send)
                    return
            await routes(scope, receive, send)

        return guarded

    @contextlib.asynccontextmanager
    async def _lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        """While the server runs, the upstreams follow the table, from whichever thread it is replaced."""
        loop = asyncio.get_running_loop()
        closing: set[asyncio.Task[None]] = set()

        def close_removed() -> None:
            task = loop.create_task(self._upstreams.close_removed())
            closing.add(task)
            task.add_done_callback(closing.discard)

        def on_replaced() -> None:
            with contextlib.suppress(RuntimeError):  # the loop ended just now, and closed them all
                loop.call_soon_threadsafe(close_removed)

        self._table.when_replaced(on_replaced)
        try:
            yield
        finally:
            self._table.when_replaced(None)
            await self._upstreams.close()

    async def _health(self, _request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def _status(self, _request: Request) -> Response:
        backends = [
            {
                "lease_id": each.lease_id,
                "model": each.model,
                "in_flight": each.in_flight,
                "is_ready": each.is_ready,
                "is_draining": each.is_draining,
            }
            for each in self._table.backends()
        ]
        return JSONResponse(
            {
                "under_way": self._relay.under_way,
                "clients_open": self._upstreams.open_count,
                "backends": backends,
            }
        )

    async def _models(self, _request: Request) -> Response:
        backends = self._table.backends()
        present = {each.address for each in backends}
        self._is_simulated = {key: mark for key, mark in self._is_simulated.items() if key in present}
        firsts: dict[str, Backend] = {}
        for backend in backends:
            if backend.is_ready:
                firsts.setdefault(backend.model, backend)
        cards = await asyncio.gather(*(self._card(backend) for backend in firsts.values()))
        return JSONResponse({"object": "list", "data": cards})

    async def _card(self, backend: Backend) -> dict[str, Any]:
        """The model as we name it. Of the engine's own card only the mark of a simulation is kept."""
        card: dict[str, Any] = {"id": backend.model, "object": "model", "owned_by": "clorefleet"}
        is_simulated = self._is_simulated.get(backend.address)
        if is_simulated is None:
            try:
                async with asyncio.timeout(CARD_S), self._upstreams.client(backend) as client:
                    is_simulated = _says_simulated(await _bounded_get(client, "/v1/models"))
            except (httpx.HTTPError, TimeoutError, ValueError, RecursionError):
                return card
            self._is_simulated[backend.address] = is_simulated
        if is_simulated:
            card["simulated"] = True
        return card


async def _bounded_get(client: httpx.AsyncClient, path: str) -> bytes:
    """
    Raises:
        ValueError: not an answer, or one that passes its bound.
    """
    async with client.stream("GET", path) as answer:
        body = bytearray()
        async for piece in answer.aiter_raw():
            body += piece
            if len(body) > CARD_MAX_BYTES:
                raise ValueError("the answer is too long")
        if not answer.is_success:
            raise ValueError("the replica refused")
        return bytes(body)


def _says_simulated(body: bytes) -> bool:
    """
    Raises:
        ValueError, RecursionError: the body is not JSON, or too deep.
    """
    shown = json.loads(body)
    cards = shown.get("data") if isinstance(shown, dict) else None
    return isinstance(cards, list) and any(
        isinstance(card, dict) and card.get("simulated") is True for card in cards
    )


async def _not_served(_request: Request, error: Exception) -> Response:
    is_method = isinstance(error, HTTPException) and error.status_code == 405
    if is_method:
        return Problem(405, "method_not_allowed", "This path does not take that method.").response()
    return Problem(404, "unknown_route", "Nothing is served at this path.").response()


async def _failed(_request: Request, _error: Exception) -> Response:
    return Problem(500, "gateway_failed", "The gateway made a mistake; its log has the details.").response()

"""The gateway's routes: check, choose, pass through.

A request needs the token, a loopback `Host` and no foreign `Origin` (a web page must not reach the
gateway through the user's browser). Its body is bounded and only its `model` is read. Answers are passed
through as they come, streamed or not. Another replica is tried only before the first byte, and only when
the first could not be reached: a prompt is never sent twice to engines that may both work on it.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route as HttpRoute

from clorefleet.gateway.routing import Route, RoutingTable
from clorefleet.gateway.token import TokenCheck

BODY_MAX_BYTES = 16 << 20
CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 600.0
"""Between two pieces of an answer; a long prompt is silent until its first token."""
RETRY_AFTER_S = 15
ATTEMPTS_MAX = 3
_LOOPBACK_NAMES = {"127.0.0.1", "localhost", "[::1]", "::1"}
_PASSED_PATHS = ("chat/completions", "completions", "embeddings")
_ANSWER_HEADERS = ("content-type", "cache-control")
"""All else that an engine sends names its host, its version or its connection."""
TAIL_MAX_BYTES = 64 * 1024
"""The end of an answer that is kept to read its token counts."""


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """One finished request, for whoever counts."""

    lease_id: str
    model: str
    status: int
    first_byte_s: float
    total_s: float
    prompt_tokens: int | None
    completion_tokens: int | None


OnFinished = Callable[[RequestRecord], None]


def problem(status: int, code: str, message: str, *, retry_after_s: int | None = None) -> JSONResponse:
    """An error in the shape that OpenAI clients read."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    headers = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}
    return JSONResponse(
        {"error": {"message": message, "type": kind, "param": None, "code": code}}, status, headers
    )


class Gateway:
    """Holds one HTTP client per replica, and nothing about requests after they end."""

    def __init__(self, table: RoutingTable, token: TokenCheck, *, on_finished: OnFinished | None = None):
        self._table = table
        self._token = token
        self._on_finished = on_finished
        self._clients: dict[str, httpx.AsyncClient] = {}
        self.reason_not_ready: Callable[[str], str] = lambda model: "no replica serves it yet"

    def app(self) -> Starlette:
        checked = self._checked
        return Starlette(
            routes=[
                HttpRoute("/health", self._health),
                HttpRoute("/v1/models", checked(self._models)),
                *(HttpRoute(f"/v1/{path}", checked(self._pass), methods=["POST"]) for path in _PASSED_PATHS),
            ],
            lifespan=self._lifespan,
            exception_handlers={404: self._unknown, 405: self._unknown},
        )

    @asynccontextmanager
    async def _lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        yield
        for client in self._clients.values():
            await client.aclose()

    # -- checks

    def _checked(
        self, handler: Callable[[Request], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        async def guarded(request: Request) -> Response:
            refusal = self._refusal(request)
            return refusal if refusal is not None else await handler(request)

        return guarded

    def _refusal(self, request: Request) -> Response | None:
        host = request.headers.get("host", "").rsplit(":", 1)[0].lower()
        if host not in _LOOPBACK_NAMES:
            return problem(421, "wrong_host", "This gateway answers only on its loopback address.")
        origin = request.headers.get("origin")
        if origin and httpx.URL(origin).host not in {"127.0.0.1", "localhost", "::1"}:
            return problem(403, "foreign_origin", "Requests from web pages elsewhere are refused.")
        if not self._token.accepts(request.headers.get("authorization")):
            return problem(
                401, "invalid_api_key", "Send the gateway's token: Authorization: Bearer <gateway.token>."
            )
        return None

    # -- routes

    async def _health(self, _request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def _unknown(self, request: Request, _error: Exception) -> Response:
        return problem(404, "unknown_route", f"{request.method} is not served at this path.")

    async def _models(self, _request: Request) -> Response:
        """The union of the replicas' models; a card's own `simulated` mark is kept."""
        cards = {}
        for route in self._table.routes():
            if route.model not in cards:
                cards[route.model] = await self._card(route)
        return JSONResponse({"object": "list", "data": list(cards.values())})

    async def _card(self, route: Route) -> dict[str, Any]:
        card: dict[str, Any] = {"id": route.model, "object": "model", "owned_by": "clorefleet"}
        try:
            answer = await self._client(route).get("/v1/models", timeout=CONNECT_TIMEOUT_S)
            found = answer.json()["data"]
            if any(isinstance(each, dict) and each.get("simulated") is True for each in found):
                card["simulated"] = True
        except (httpx.HTTPError, ValueError, KeyError, TypeError):
            return card
        return card

    async def _pass(self, request: Request) -> Response:
        try:
            body = await _bounded_body(request)
        except ClientDisconnect:
            return Response(status_code=499)
        if body is None:
            return problem(413, "body_too_large", f"A request may have at most {BODY_MAX_BYTES:,} bytes.")
        model = _model_of(body)
        if model is None:
            return problem(400, "invalid_body", "The body must be a JSON object with a “model”.")
        tried: set[str] = set()
        while len(tried) < ATTEMPTS_MAX:
            route = self._table.take(model, excluding=frozenset(tried))
            if route is None:
                break
            answer = await self._ask(request, route, body)
            if answer is not None:
                return answer
            tried.add(route.lease_id)
        return self._not_served(model, was_tried=bool(tried))

    def _not_served(self, model: str, *, was_tried: bool) -> Response:
        known = self._table.models()
        if was_tried:
            return problem(503, "unreachable", f"No replica of {model} can be reached now.", retry_after_s=2)
        if known and model not in known:
            return problem(
                404, "model_not_found", f"There is no model “{model}”; there is {', '.join(known)}."
            )
        why = self.reason_not_ready(model)
        return problem(503, "not_ready", f"{model}: {why}.", retry_after_s=RETRY_AFTER_S)

    async def _ask(self, request: Request, route: Route, body: bytes) -> Response | None:
        """Send to one replica; None when it could not be reached and nothing was sent."""
        began_s = time.monotonic()
        upstream = self._client(route).build_request(
            "POST",
            request.url.path,
            content=body,
            headers={
                "content-type": "application/json",
                "accept": request.headers.get("accept", "*/*"),
            },
        )
        try:
            answer = await self._client(route).send(upstream, stream=True)
        except (httpx.ConnectError, httpx.ConnectTimeout):
            self._table.give_back(route.lease_id)
            return None
        except httpx.HTTPError:
            # It may work on the prompt already: not sent twice.
            self._table.give_back(route.lease_id)
            return problem(502, "replica_failed", "The replica broke off before it answered.")
        except BaseException:
            self._table.give_back(route.lease_id)
            raise
        headers = {name: answer.headers[name] for name in _ANSWER_HEADERS if name in answer.headers}
        return StreamingResponse(
            self._passed_through(answer, route, began_s), answer.status_code, headers=headers
        )

    async def _passed_through(
        self, answer: httpx.Response, route: Route, began_s: float
    ) -> AsyncIterator[bytes]:
        first_s: float | None = None
        tail = b""
        try:
            async for piece in answer.aiter_raw():
                first_s = first_s or time.monotonic() - began_s
                tail = (tail + piece)[-TAIL_MAX_BYTES:]
                yield piece
        finally:
            # Also when the client left: closing the answer tells the engine to stop.
            await answer.aclose()
            self._table.give_back(route.lease_id)
            if self._on_finished is not None:
                total_s = time.monotonic() - began_s
                prompt, completion = token_counts(tail)
                self._on_finished(
                    RequestRecord(
                        route.lease_id,
                        route.model,
                        answer.status_code,
                        first_s if first_s is not None else total_s,
                        total_s,
                        prompt,
                        completion,
                    )
                )

    def _client(self, route: Route) -> httpx.AsyncClient:
        key = str(route.socket)
        if key not in self._clients:
            self._clients[key] = httpx.AsyncClient(
                # A kept connection may have been closed by the engine behind the tunnel: a prompt sent
                # into it would be lost, and must not be sent twice. A new one is a channel of the session.
                transport=httpx.AsyncHTTPTransport(
                    uds=key, limits=httpx.Limits(max_connections=256, max_keepalive_connections=0)
                ),
                base_url="http://replica",
                timeout=httpx.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
            )
        return self._clients[key]


async def _bounded_body(request: Request) -> bytes | None:
    """The body, or None when it is larger than allowed; never more than that in memory."""
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > BODY_MAX_BYTES:
        return None
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > BODY_MAX_BYTES:
            return None
    return bytes(body)


def _model_of(body: bytes) -> str | None:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return None
    model = document.get("model") if isinstance(document, dict) else None
    return model if isinstance(model, str) and 0 < len(model) <= 200 and model.isprintable() else None


def token_counts(tail: bytes) -> tuple[int | None, int | None]:
    """Prompt and completion tokens from the end of an answer, plain or streamed; None where it has none."""
    position = tail.rfind(b'"usage"')
    if position < 0:
        return None, None
    text = tail[position:].decode("utf-8", "replace")
    start = text.find("{")
    if start < 0:
        return None, None
    try:
        usage, _ = json.JSONDecoder().raw_decode(text[start:])
    except (ValueError, RecursionError):
        return None, None
    counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
    prompt, completion = (count if isinstance(count, int) else None for count in counts)
    return prompt, completion

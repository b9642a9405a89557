"""How an answer goes over the wire, well or badly.

The market decides what is true; here the transport faults of `faults` turn the answer into one that
hangs, breaks off, drips, or is not the market's JSON at all.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from email.utils import formatdate
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.responses import Response, StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clorefleet.sandbox.clock import SandboxClock

_HUGE_BYTES = 50 * 2**20
_CHUNK_BYTES = 64 * 1024
_DEEP_LEVELS = 100_000
_DRIP_S_MAX = 600.0
JSON_TYPE = "application/json"
HTML = (
    b"<html><head><title>502 Bad Gateway</title></head><body><h1>502 Bad Gateway</h1>cloudflare</body></html>"
)


class Dated:
    """Dates each answer by the sandbox's clock: a web server would take this machine's."""

    def __init__(self, app: ASGIApp, clock: SandboxClock) -> None:
        self._app, self._clock = app, clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def dated(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["date"] = formatdate(self._clock.now_s(), usegmt=True)
            await send(message)

        await self._app(scope, receive, dated)


class CutResponse(Response):
    """Promises the whole body, sends `sent` bytes of it, and the connection closes."""

    def __init__(self, body: bytes, *, sent: int, status_code: int = 200) -> None:
        super().__init__(body, status_code=status_code, media_type=JSON_TYPE)
        self._sent = sent

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        if self._sent:
            part = bytes(self.body)[: self._sent]
            await send({"type": "http.response.body", "body": part, "more_body": True})
        # Returning without the rest makes the server close the connection.


class HangingResponse(Response):
    """Says nothing for `hold_s` or until the client gives up, then closes the connection."""

    def __init__(self, hold_s: float) -> None:
        super().__init__(b"?", media_type=JSON_TYPE)
        self._hold_s = hold_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with asyncio.timeout(self._hold_s):
                while (await receive())["type"] != "http.disconnect":
                    pass
        except TimeoutError:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})


def dripping(body: bytes, status: int, bytes_per_s: float) -> Response:
    async def drops() -> AsyncIterator[bytes]:
        pause_s = min(1 / max(bytes_per_s, 0.001), _DRIP_S_MAX)
        for index in range(len(body)):
            yield body[index : index + 1]
            await asyncio.sleep(pause_s)

    return StreamingResponse(drops(), status_code=status, media_type=JSON_TYPE)


def malformed(body: bytes, variant: str) -> Response:
    match variant:
        case "html":
            return Response(HTML, status_code=502, media_type="text/html")
        case "text-1010":
            return Response(b"error code: 1010", status_code=403, media_type="text/plain")
        case "truncated":
            return Response(body[: len(body) // 2], media_type=JSON_TYPE)
        case "empty":
            return Response(b"", media_type=JSON_TYPE)
        case "not-an-object":
            return Response(b'["code",0]', media_type=JSON_TYPE)
        case "deep":
            return Response(b'{"code":0,"x":' + b"[" * _DEEP_LEVELS, media_type=JSON_TYPE)
        case "huge":
            return StreamingResponse(_huge(), media_type=JSON_TYPE)
    raise ValueError(f"unknown variant {variant}")


async def _huge() -> AsyncIterator[bytes]:
    yield b'{"code":0,"padding":"'
    for _ in range(_HUGE_BYTES // _CHUNK_BYTES):
        yield b"x" * _CHUNK_BYTES
    yield b'"}'


def with_odd_field(payload: dict[str, Any], variant: str, field: str, rng: random.Random) -> dict[str, Any]:
    """A copy of the answer with one field changed: in one item of its list, else at the top."""
    changed: dict[str, Any] = json.loads(json.dumps(payload))
    items = [item for value in changed.values() if isinstance(value, list) for item in value]
    objects = [item for item in items if isinstance(item, dict)]
    target = rng.choice(objects) if objects else changed
    candidates = [key for key in target if key != "code"] or ["code"]
    name = field if field in target else rng.choice(candidates)
    match variant:
        case "unknown":
            target["field_of_tomorrow"] = {"nested": [1, None, "x"]}
        case "missing":
            target.pop(name, None)
        case "renamed":
            target[f"{name}_v2"] = target.pop(name, None)
        case "null":
            target[name] = None
        case "number-as-string":
            numbers = [
                key
                for key, value in target.items()
                if isinstance(value, int | float) and not isinstance(value, bool)
            ]
            chosen = field if field in numbers else rng.choice(numbers or [name])
            target[chosen] = str(target.get(chosen))
    return changed


def with_string_ids(payload: dict[str, Any]) -> dict[str, Any]:
    changed: dict[str, Any] = json.loads(json.dumps(payload))
    for order in changed.get("orders", []):
        order["id"], order["si"] = str(order["id"]), str(order["si"])
    return changed


def with_short_list(payload: dict[str, Any], keep: float) -> dict[str, Any]:
    return {
        key: value[: int(len(value) * keep)] if isinstance(value, list) else value
        for key, value in payload.items()
    }

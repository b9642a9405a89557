"""One prompt at one replica: sent, answered, passed on piece by piece, with a clock on each step.

Nothing of the answer's head is passed on but its status and whether it streams: the rest names the host, its
software or its connection. The head is held until the first byte of the body, so that a replica
which dies over a prompt still becomes a proper error; an answer that is not streamed is held until it is
whole, if it is not too long for that. After its first byte went out an answer can only be cut: the
connection is closed without its end, and a stream is told why first, so that no client takes a part for
the whole.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass

import httpx
from starlette.types import Send

from clorefleet.clock import Clock
from clorefleet.domain.text import clean_line
from clorefleet.gateway.limits import Limits
from clorefleet.gateway.problem import CLIENT_LEFT, Problem
from clorefleet.gateway.prompt import Prompt
from clorefleet.gateway.routing import Backend
from clorefleet.gateway.upstream import Delivery
from clorefleet.gateway.usage import RequestRecord, Tail

log = logging.getLogger("clorefleet.gateway")

ERROR_MAX_BYTES = 16 * 1024
ERROR_S = 5.0
"""For the rest of an error's body, which is only quoted."""
QUOTE_MAX_CHARS = 300
RETRY_AFTER_S = 2
_STREAM, _JSON = "text/event-stream", "application/json"
_OWN_STATUSES = frozenset({400, 404, 413, 422, 429, 501, 503})
"""Errors that are about the prompt or the load. Others are about the replica, and nothing of the client's."""
_RETRY_STATUSES = frozenset({429, 503})
_CONTROLS = bytes(code for code in range(32) if code not in b"\t\n\r")
"""Never legal in JSON or in an event stream, but obeyed by the terminal of whoever uses curl."""


@dataclass(frozen=True, slots=True)
class Undelivered:
    """The prompt cannot have arrived: another replica may have it."""


@dataclass(frozen=True, slots=True)
class Broken:
    """The replica took the prompt and broke off, and the client has seen nothing of it yet."""

    problem: Problem


class _TooLong(Exception):
    """The answer passed its bound."""


class Exchange:
    """Used once. After `run`, however it ended, `record` says what came of it."""

    def __init__(self, backend: Backend, prompt: Prompt, path: str, *, limits: Limits, clock: Clock) -> None:
        self._backend = backend
        self._prompt = prompt
        self._path = path
        self._limits = limits
        self._clock = clock
        self._started_at = clock.now()
        self._began_s = clock.monotonic_s()
        self._first_byte_s: float | None = None
        self._status = CLIENT_LEFT
        self._is_streamed = False
        self._tail = Tail()

    def record(self) -> RequestRecord:
        prompt_tokens, completion_tokens = self._tail.token_counts()
        return RequestRecord(
            lease_id=self._backend.lease_id,
            model=self._backend.model,
            started_at=self._started_at,
            first_byte_s=self._first_byte_s,
            total_s=self._clock.monotonic_s() - self._began_s,
            status=self._status,
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            was_streamed=self._is_streamed,
            events=self._tail.events if self._is_streamed else 0,
        )

    async def run(self, client: httpx.AsyncClient, send: Send) -> Undelivered | Broken | Problem | None:
        """None when an answer went out, whole or cut; else nothing was sent to the client yet.

        Cancelling it, as happens when the client leaves, closes the connection: engines stop then.
        """
        delivery = Delivery(self._backend)
        request = client.build_request(
            "POST",
            self._path,
            content=self._prompt.body,
            headers={
                "content-type": _JSON,
                "accept": _STREAM if self._prompt.is_streamed else _JSON,
            },
            extensions={"trace": delivery.note},
        )
        answer: httpx.Response | None = None
        try:
            async with asyncio.timeout(self._limits.first_byte_s):
                answer = await client.send(request, stream=True)
                pieces = answer.aiter_raw()
                first = await anext(pieces, b"")
            self._first_byte_s = self._clock.monotonic_s() - self._began_s if first else None
            problem = await _why_not_passed(answer, first, pieces)
            if problem is None and not self._prompt.is_streamed:
                first = await self._held(first, pieces)
            if problem is None:
                await self._pass_on(answer, first, pieces, send)
                return None
        except TimeoutError:
            problem = Problem(504, "replica_silent", "The replica did not answer in time.")
        except httpx.HTTPError as error:
            if answer is None and delivery.cannot_have_arrived(error):
                return Undelivered()
            problem = Problem(502, "replica_failed", "The replica broke off before it answered.")
            self._status = problem.status
            return Broken(problem)
        finally:
            if answer is not None:
                await answer.aclose()
        self._status = problem.status
        log.warning("gateway_answer_refused lease=%s code=%s", self._backend.lease_id, problem.code)
        return problem

    async def _held(self, first: bytes, pieces: AsyncIterator[bytes]) -> bytes:
        """The answer, whole unless it is longer than may be held; the rest is then still in `pieces`."""
        held = bytearray(first)
        async with asyncio.timeout(self._limits.answer_s):
            while len(held) <= self._limits.held_max_bytes:
                async with asyncio.timeout(self._limits.idle_s):
                    piece = await anext(pieces, b"")
                if not piece:
                    break
                held += piece
        return bytes(held)

    async def _pass_on(
        self, answer: httpx.Response, first: bytes, pieces: AsyncIterator[bytes], send: Send
    ) -> None:
        kind = _media_type(answer)
        self._is_streamed = kind == _STREAM
        headers = [
            (b"content-type", kind.encode()),
            (b"cache-control", b"no-store"),
            (b"x-content-type-options", b"nosniff"),
        ]
        await send({"type": "http.response.start", "status": answer.status_code, "headers": headers})
        try:
            async with asyncio.timeout(self._limits.answer_s):
                await self._pass_pieces(first, pieces, send)
        except TimeoutError:
            problem = Problem(504, "replica_silent", "The replica fell silent in the middle of its answer.")
        except _TooLong:
            problem = Problem(502, "answer_too_long", "The replica's answer is longer than any may be.")
        except httpx.HTTPError:
            problem = Problem(502, "replica_failed", "The replica broke off in the middle of its answer.")
        else:
            self._status = answer.status_code
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            return
        self._status = problem.status
        log.warning("gateway_answer_cut lease=%s code=%s", self._backend.lease_id, problem.code)
        if self._is_streamed and self._tail.ends_event():
            event = f"data: {json.dumps(problem.body())}\n\n"
            await send({"type": "http.response.body", "body": event.encode(), "more_body": True})
        # Left without its last piece, the server closes the connection.

    async def _pass_pieces(self, first: bytes, pieces: AsyncIterator[bytes], send: Send) -> None:
        passed_bytes, piece = 0, first
        while piece:
            passed_bytes += len(piece)
            if passed_bytes > self._limits.answer_max_bytes:
                raise _TooLong
            self._tail.add(piece)
            clean = piece.translate(None, _CONTROLS)
            await send({"type": "http.response.body", "body": clean, "more_body": True})
            async with asyncio.timeout(self._limits.idle_s):
                piece = await anext(pieces, b"")


def _media_type(answer: httpx.Response) -> str:
    declared = str(answer.headers.get("content-type", ""))
    return declared.partition(";")[0].strip().lower()


async def _why_not_passed(
    answer: httpx.Response, first: bytes, pieces: AsyncIterator[bytes]
) -> Problem | None:
    """None for an answer that can be passed on; else its error, in our words and a few of its own."""
    if answer.is_success:
        if _media_type(answer) in {_STREAM, _JSON} and "content-encoding" not in answer.headers:
            return None
        return Problem(502, "replica_failed", "The replica's answer is neither JSON nor an event stream.")
    said = quoted(await _rest_of_error(first, pieces))
    status = answer.status_code if answer.status_code in _OWN_STATUSES else 502
    message = f"The replica refused ({answer.status_code}){': ' + said if said else '.'}"
    return Problem(
        status,
        "replica_refused" if status < 500 else "replica_error",
        message,
        retry_after_s=RETRY_AFTER_S if status in _RETRY_STATUSES else None,
    )


async def _rest_of_error(first: bytes, pieces: AsyncIterator[bytes]) -> bytes:
    body = bytearray(first[:ERROR_MAX_BYTES])
    try:
        async with asyncio.timeout(ERROR_S):
            async for piece in pieces:
                body += piece[: ERROR_MAX_BYTES - len(body)]
                if len(body) >= ERROR_MAX_BYTES:
                    break
    except (TimeoutError, httpx.HTTPError):
        pass  # what came is enough to quote
    return bytes(body)


def quoted(body: bytes) -> str:
    """A short harmless line out of an engine's error body, in whichever of the usual shapes it is."""
    text = body.decode("utf-8", "replace")
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        return clean_line(text, max_chars=QUOTE_MAX_CHARS)
    for name in ("error", "message", "detail"):
        if isinstance(said, dict) and name in said:
            said = said[name]
    return clean_line(said if isinstance(said, str) else text, max_chars=QUOTE_MAX_CHARS)

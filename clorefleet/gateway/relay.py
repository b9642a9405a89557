"""One request from its first check to its last byte: bounds, body, a replica, perhaps another, accounting.

Another replica is asked only while the client has seen nothing: as often as none could be reached, and once
more when one took the prompt and broke off. Not twice: it may be the prompt that breaks replicas, and one
that broke two is remembered for a while and then gets a single try.

All of it happens inside one call, so that whatever ends the request (its answer, its client's leaving,
the gateway's stop) gives back what it held: its place, its bytes, its count at the replica.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Coroutine
from datetime import timedelta
from hashlib import blake2b
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope, Send

from clorefleet.clock import Clock
from clorefleet.domain.duration import in_words
from clorefleet.gateway.exchange import RETRY_AFTER_S, Broken, Exchange, Undelivered
from clorefleet.gateway.limits import Limits
from clorefleet.gateway.problem import TOO_MANY, Problem
from clorefleet.gateway.prompt import BodyBudget, Prompt, read_prompt
from clorefleet.gateway.routing import Backend, NoSuchModel, RoutingTable, Starting
from clorefleet.gateway.upstream import Upstreams
from clorefleet.gateway.usage import OnFinished

log = logging.getLogger("clorefleet.gateway")

ATTEMPTS_MAX = 3
"""Replicas that one request may find unreachable."""
BROKEN_MAX = 2
"""Replicas that one request may see break off."""
SUSPECT_S = 600.0
SUSPECTS_MAX = 1_000
STARTING_RETRY_AFTER_S = 15
"""Where nobody knows how long a start takes."""
LATE_RETRY_AFTER_S = 5
"""Where it should serve by now."""
RETRY_AFTER_S_MAX = 3600
KNOWN_MODELS_SHOWN = 20

OnWanted = Callable[[str], None]
"""Called on the event loop with a model that is wanted and that no ready replica serves. Must not block."""


class Relay:
    """An ASGI application for the routes that go to a replica."""

    def __init__(
        self,
        table: RoutingTable,
        upstreams: Upstreams,
        *,
        limits: Limits,
        clock: Clock,
        on_finished: OnFinished | None = None,
        on_wanted: OnWanted | None = None,
    ) -> None:
        self._table = table
        self._upstreams = upstreams
        self._limits = limits
        self._clock = clock
        self._on_finished = on_finished
        self._on_wanted = on_wanted
        self._bodies = BodyBudget(each_max_bytes=limits.body_max_bytes, all_max_bytes=limits.bodies_max_bytes)
        self._suspects: dict[bytes, float] = {}
        """Digests of prompts that broke as many replicas as they may, and until when that counts."""
        self._allowance = float(limits.burst)
        self._allowed_at_s = clock.monotonic_s()
        self.under_way = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.under_way >= self._limits.requests_max:
            problem = Problem(TOO_MANY, "too_many_requests", "Too many requests at once.", retry_after_s=1)
            await problem.response()(scope, receive, send)
            return
        if not self._is_within_rate():
            problem = Problem(
                TOO_MANY,
                "rate_limited",
                f"More than {self._limits.requests_per_s:g} requests a second.",
                retry_after_s=1,
            )
            await problem.response()(scope, receive, send)
            return
        self.under_way += 1
        try:
            await self._serve(scope, receive, send)
        finally:
            self.under_way -= 1

    def _is_within_rate(self) -> bool:
        """Take one request from an allowance that fills up again with time."""
        now_s = self._clock.monotonic_s()
        gained = (now_s - self._allowed_at_s) * self._limits.requests_per_s
        self._allowance = min(float(self._limits.burst), self._allowance + gained)
        self._allowed_at_s = now_s
        if self._allowance < 1:
            return False
        self._allowance -= 1
        return True

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def reply(problem: Problem) -> None:
            await problem.response()(scope, receive, send)

        try:
            async with asyncio.timeout(self._limits.body_s):
                body = await self._bodies.read(Request(scope, receive))
        except TimeoutError:
            await reply(Problem(408, "body_too_slow", "The request's body did not come in time."))
            return
        except ClientDisconnect:
            return
        if isinstance(body, Problem):
            await reply(body)
            return
        try:
            prompt = read_prompt(body)
            if isinstance(prompt, Problem):
                await reply(prompt)
                return
            answering = self._answer(prompt, scope["path"], send)
            problem = await _while_client_stays(receive, answering)
            if problem is not None:
                await reply(problem)
        finally:
            self._bodies.free(body)

    async def _answer(self, prompt: Prompt, path: str, send: Send) -> Problem | None:
        """None once a replica's answer, good or bad, has gone out; else why there is none."""
        tried: set[str] = set()
        broken: list[Problem] = []
        for _ in range(ATTEMPTS_MAX):
            backend = self._table.take(prompt.model, excluding=frozenset(tried), beginning=prompt.beginning)
            if backend is None:
                break
            try:
                outcome = await self._exchange(backend, prompt, path, send)
            finally:
                self._table.give_back(backend.lease_id)
            if not isinstance(outcome, Undelivered | Broken):
                return outcome
            self._table.rest(backend.lease_id)
            tried.add(backend.lease_id)
            if isinstance(outcome, Undelivered):
                log.warning("gateway_replica_unreached lease=%s", backend.lease_id)
                continue
            log.warning("gateway_replica_broke_off lease=%s", backend.lease_id)
            broken.append(outcome.problem)
            if len(broken) >= self._breaks_allowed(prompt):
                self._suspect(prompt)
                break
        return broken[-1] if broken else self._why_not(prompt.model, was_tried=bool(tried))

    def _breaks_allowed(self, prompt: Prompt) -> int:
        until_s = self._suspects.get(_digest(prompt), 0.0)
        return 1 if until_s > self._clock.monotonic_s() else BROKEN_MAX

    def _suspect(self, prompt: Prompt) -> None:
        self._suspects[_digest(prompt)] = self._clock.monotonic_s() + SUSPECT_S
        while len(self._suspects) > SUSPECTS_MAX:
            del self._suspects[next(iter(self._suspects))]

    async def _exchange(
        self, backend: Backend, prompt: Prompt, path: str, send: Send
    ) -> Problem | Undelivered | Broken | None:
        exchange = Exchange(backend, prompt, path, limits=self._limits, clock=self._clock)
        was_delivered = True
        try:
            async with self._upstreams.client(backend) as client:
                outcome = await exchange.run(client, send)
            was_delivered = not isinstance(outcome, Undelivered)
            return outcome
        finally:
            if was_delivered and self._on_finished is not None:
                # On the loop rather than here: what the hook raises is logged, and spoils no answer.
                asyncio.get_running_loop().call_soon(self._on_finished, exchange.record())

    def _why_not(self, model: str, *, was_tried: bool) -> Problem:
        if was_tried:
            message = f"No replica of {model} can be reached now."
            return Problem(503, "unreachable", message, retry_after_s=RETRY_AFTER_S)
        why = self._table.why_not_ready(model)
        if isinstance(why, NoSuchModel):
            shown = ", ".join(why.known[:KNOWN_MODELS_SHOWN])
            return Problem(404, "model_not_found", f"There is no model “{model}”; there is {shown}.")
        if self._on_wanted is not None:
            asyncio.get_running_loop().call_soon(self._on_wanted, model)
        words = f"{model}: {why.reason}{_expected(why)}."
        return Problem(503, "not_ready", words, retry_after_s=_retry_after_s(why))


def _retry_after_s(why: Starting) -> int:
    """Until it should serve: who asks sooner is told the same again. Never longer than `RETRY_AFTER_S_MAX`,
    since an estimate may be wrong."""
    if why.ready_in_s is None:
        return STARTING_RETRY_AFTER_S
    return min(RETRY_AFTER_S_MAX, max(LATE_RETRY_AFTER_S, math.ceil(why.ready_in_s)))


def _expected(why: Starting) -> str:
    if why.ready_in_s is None or why.ready_in_s < LATE_RETRY_AFTER_S:
        return ""
    return f"; it should serve in about {in_words(timedelta(seconds=math.ceil(why.ready_in_s)))}"


def _digest(prompt: Prompt) -> bytes:
    return blake2b(prompt.body, digest_size=16).digest()


async def _while_client_stays(
    receive: Receive, answering: Coroutine[Any, Any, Problem | None]
) -> Problem | None:
    """Run `answering`, and cancel it when the client leaves first: an engine must not work for nobody."""
    work = asyncio.ensure_future(answering)
    leaving = asyncio.ensure_future(_client_left(receive))
    try:
        await asyncio.wait({work, leaving}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        work.cancel()
        leaving.cancel()
        await asyncio.gather(work, leaving, return_exceptions=True)
    return None if work.cancelled() else work.result()


async def _client_left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass

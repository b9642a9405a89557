"""The HTTP face of the simulated market: endpoints, key, limits, status codes, and transport faults.

`/v1/...` speaks the market's protocol. `/_sandbox/...` is the operator's hand, with a token of its
own, and `/gigaspot/...` the public snapshot. Market rules are in `market`; here is only the wire.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from clorefleet.sandbox import answers, fees, gigaspot, hosting
from clorefleet.sandbox.clock import SandboxClock
from clorefleet.sandbox.control import ControlApp
from clorefleet.sandbox.faults import FaultBoard
from clorefleet.sandbox.limits import RateLimiter
from clorefleet.sandbox.market import MY_USER_ID, Market
from clorefleet.sandbox.nodes import NodeKeeper
from clorefleet.sandbox.order_request import InvalidBody, parse_object
from clorefleet.sandbox.reply import Code, Reply, failure
from clorefleet.sandbox.settings import HttpStatusMode, SandboxSettings

BODY_MAX_BYTES = 1_048_576
_STATUS = {
    Code.OK: 200,
    Code.DATABASE: 500,
    Code.INVALID_INPUT: 400,
    Code.BAD_TOKEN: 401,
    Code.BAD_ENDPOINT: 404,
    Code.RATE_LIMIT: 429,
    Code.FIELD: 200,
}
_LIBRARY_AGENTS = ("python-httpx/", "python-requests/", "python-urllib", "aiohttp/", "Go-http-client")

Answer = Reply | bytes
"""A reply to encode, or the marketplace's ready-made bytes."""


class BodyTooLarge(Exception):
    """A request body above `BODY_MAX_BYTES`."""


@dataclass(frozen=True, slots=True)
class _Call:
    """One request as an endpoint sees it."""

    query: dict[str, str]
    body: bytes

    def object(self) -> dict[str, Any]:
        return parse_object(self.body)

    def array(self) -> Any:
        try:
            return json.loads(self.body, parse_float=Decimal)
        except (ValueError, RecursionError) as error:
            raise InvalidBody("not JSON") from error


class MarketApp:
    """Builds the Starlette application over one `Market`."""

    def __init__(
        self,
        market: Market,
        *,
        keeper: NodeKeeper,
        clock: SandboxClock,
        faults: FaultBoard,
        settings: SandboxSettings,
        api_key: str,
        control: ControlApp,
    ) -> None:
        self._market, self._keeper, self._clock = market, keeper, clock
        self._faults, self._settings, self._api_key = faults, settings, api_key
        self._limiter = RateLimiter(settings)
        self._storm_until_s = float("-inf")
        self._origin = ""
        self._endpoints: dict[str, tuple[str, Callable[[_Call], Answer]]] = {
            "wallets": ("GET", lambda call: market.wallets()),
            "marketplace": ("GET", lambda call: market.marketplace()),
            "my_orders": ("GET", self._my_orders),
            "spot_marketplace": ("GET", self._spot_marketplace),
            "create_order": ("POST", lambda call: market.create_order(call.object())),
            "cancel_order": ("POST", lambda call: market.cancel_order(call.object())),
            "cancel_orders": ("POST", lambda call: market.cancel_orders(call.object())),
            "set_spot_price": ("POST", lambda call: market.set_spot_price(call.object())),
            "my_servers": ("GET", lambda call: hosting.my_servers()),
            "server_config": ("GET", lambda call: hosting.server_config(call.object())),
            "set_server_settings": ("POST", lambda call: hosting.set_server_settings(call.object())),
            "renter_fees": ("GET", lambda call: fees.renter_fees(settings)),
            "poh_balance": ("GET", lambda call: fees.poh_balance(settings)),
            "get_gigaspot": ("GET", self._get_gigaspot),
            "create_gigaspot_orders": ("POST", self._create_gigaspot_orders),
            "edit_gigaspot_orders": ("POST", lambda call: gigaspot.edit_orders(call.array())),
        }
        self.starlette = Starlette(
            routes=[
                Route("/v1/{endpoint:path}", self._serve, methods=["GET", "POST", "PUT", "DELETE", "PATCH"]),
                Route("/gigaspot/{name}", self._snapshot, methods=["GET"]),
                *control.routes(),
            ]
        )

    def set_origin(self, origin: str) -> None:
        """`http://127.0.0.1:PORT`, known once the socket is bound."""
        self._origin = origin

    # one call

    async def _serve(self, request: Request) -> Response:
        endpoint = request.path_params["endpoint"]
        key = request.headers.get("auth")
        if self._settings.refuse_library_user_agents and request.headers.get("user-agent", "").startswith(
            _LIBRARY_AGENTS
        ):
            return answers.malformed(b"", "text-1010")
        try:
            body = await _bounded_body(request)
        except BodyTooLarge:
            return self._encode(failure(Code.INVALID_INPUT))
        refused = self._refusal(endpoint, request.method, key)
        if refused is not None:
            return refused
        before = self._fault_before(endpoint)
        if before is not None:
            return before
        answer = self._execute(endpoint, _Call(dict(request.query_params), body))
        response = self._fault_after(endpoint, answer)
        if switch := self._faults.draw("delayed", endpoint):
            wait_s = self._faults.stream("delayed").uniform(0, float(switch.params["max_real_s"]))
            await asyncio.sleep(wait_s)
        return response

    def _refusal(self, endpoint: str, method: str, key: str | None) -> Response | None:
        """Endpoint, key and limits, in this order; a refused call is not executed."""
        known = self._endpoints.get(endpoint)
        if known is None or known[0] != method:
            return self._encode(failure(Code.BAD_ENDPOINT))
        is_public = endpoint == "marketplace"
        is_mine = key is not None and secrets.compare_digest(key.encode(), self._api_key.encode())
        if (not is_mine and not is_public) or self._faults.draw("key_revoked", endpoint):
            return self._encode(failure(Code.BAD_TOKEN))
        now_s = self._clock.monotonic_s()
        if switch := self._faults.draw("rate_limited", endpoint):
            self._storm_until_s = now_s + float(switch.params["storm_real_s"])
            return self._encode(failure(Code.RATE_LIMIT), retry_after_s=1.0)
        if now_s < self._storm_until_s:
            return self._encode(failure(Code.RATE_LIMIT), retry_after_s=self._storm_until_s - now_s)
        wait_s = self._limiter.wait_s(key, endpoint, now_s) if is_mine and key is not None else 0.0
        if wait_s > 0:
            return self._encode(failure(Code.RATE_LIMIT), retry_after_s=wait_s)
        return None

    def _execute(self, endpoint: str, call: _Call) -> Answer:
        self._market.settle()
        try:
            return self._endpoints[endpoint][1](call)
        except InvalidBody:
            return failure(Code.INVALID_INPUT)
        finally:
            self._keeper.perform(self._market.take_effects())

    def _fault_before(self, endpoint: str) -> Response | None:
        if switch := self._faults.draw("timeout_before", endpoint):
            return answers.HangingResponse(float(switch.params["hold_real_s"]))
        if switch := self._faults.draw("error_before", endpoint):
            return Response(answers.HTML, status_code=int(switch.params["status"]), media_type="text/html")
        if switch := self._faults.draw("code1_before", endpoint):
            return self._encode(failure(Code.DATABASE), status=int(switch.params["status"]))
        return None

    def _fault_after(self, endpoint: str, answer: Answer) -> Response:
        """The answer as it is sent; the call has been executed whatever is sent."""
        draw = self._faults.draw
        if switch := draw("timeout_after", endpoint):
            return answers.HangingResponse(float(switch.params["hold_real_s"]))
        if switch := draw("error_after", endpoint):
            return Response(answers.HTML, status_code=int(switch.params["status"]), media_type="text/html")
        if switch := draw("code1_after", endpoint):
            return self._encode(failure(Code.DATABASE), status=int(switch.params["status"]))
        if switch := draw("odd_fields", endpoint):
            rng = self._faults.stream("odd_fields")
            payload = answers.with_odd_field(
                _payload(answer), switch.params["variant"], switch.params["field"], rng
            )
            answer = Reply({"code": Code.OK, **payload})
        if draw("id_as_string", endpoint):
            answer = Reply(answers.with_string_ids(_payload(answer)))
        if switch := draw("partial_page", endpoint):
            answer = Reply(answers.with_short_list(_payload(answer), float(switch.params["keep"])))
        response = self._encode(answer)
        body = bytes(response.body)
        if draw("cut_body", endpoint):
            return answers.CutResponse(body, sent=len(body) // 2)
        if switch := draw("malformed", endpoint):
            return answers.malformed(body, switch.params["variant"])
        if switch := draw("slow_drip", endpoint):
            return answers.dripping(body, response.status_code, float(switch.params["bytes_per_real_s"]))
        return response

    def _encode(
        self, answer: Answer, *, status: int | None = None, retry_after_s: float | None = None
    ) -> Response:
        if isinstance(answer, bytes):
            return Response(answer, media_type=answers.JSON_TYPE)
        is_by_code = self._settings.http_status is HttpStatusMode.BY_CODE
        code = status or (_STATUS[answer.code] if is_by_code else 200)
        response = Response(
            json.dumps(answer.payload, separators=(",", ":")), status_code=code, media_type=answers.JSON_TYPE
        )
        if retry_after_s is not None and self._settings.send_retry_after:
            response.headers["retry-after"] = str(max(1, int(retry_after_s) + 1))
        return response

    # endpoints that read the query

    def _my_orders(self, call: _Call) -> Answer:
        return self._market.my_orders(with_completed=call.query.get("return_completed") == "true")

    def _spot_marketplace(self, call: _Call) -> Answer:
        market = call.query.get("market", "")
        if not (market.isascii() and market.isdigit() and len(market) < 20):
            return failure(Code.INVALID_INPUT)
        return self._market.spot_marketplace(int(market))

    def _get_gigaspot(self, call: _Call) -> Answer:
        minute_s = int(self._clock.now_s()) // 60 * 60
        return gigaspot.get_gigaspot(
            self._market.catalogue,
            user_id=MY_USER_ID,
            snapshot_url=f"{self._origin}/gigaspot/gigaspot_{minute_s}.json",
        )

    def _create_gigaspot_orders(self, call: _Call) -> Answer:
        return gigaspot.create_orders(self._market.catalogue, call.array())

    async def _snapshot(self, request: Request) -> Response:
        self._market.settle()
        market = self._market
        snapshot = gigaspot.snapshot(
            market.catalogue, is_rented=market.is_rented_by_other, is_online=market.is_online
        )
        return Response(json.dumps(snapshot), media_type=answers.JSON_TYPE)


def _payload(answer: Answer) -> dict[str, Any]:
    if isinstance(answer, bytes):
        loaded: dict[str, Any] = json.loads(answer)
        return loaded
    return answer.payload


async def _bounded_body(request: Request) -> bytes:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > BODY_MAX_BYTES:
            raise BodyTooLarge
    return body

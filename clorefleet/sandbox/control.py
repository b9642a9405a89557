"""The operator's hand on a running sandbox: look behind the curtain, move the clock, break things.

Every route is under `/_sandbox/` and needs the header `x-sandbox-control` with the token of
`sandbox.json`. Amounts are decimal texts here, never JSON floats.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from decimal import Decimal, InvalidOperation
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from clorefleet.sandbox.clock import SandboxClock
from clorefleet.sandbox.coins import COINS
from clorefleet.sandbox.faults import FaultBoard
from clorefleet.sandbox.hub import HubFaults
from clorefleet.sandbox.market import Market
from clorefleet.sandbox.nodes import NodeKeeper
from clorefleet.sandbox.orders import SandboxOrder
from clorefleet.sandbox.process import CONTROL_HEADER

ADVANCE_MAX_S = 400 * 86_400
_BODY_MAX_BYTES = 65_536

Handler = Callable[[dict[str, Any]], Any]


class ControlApp:
    def __init__(
        self,
        market: Market,
        *,
        keeper: NodeKeeper,
        clock: SandboxClock,
        faults: FaultBoard,
        hub_faults: HubFaults,
        token: str,
        clock_moved: Callable[[], None],
    ) -> None:
        """`clock_moved` is called after a jump, so that the published anchor is renewed."""
        self._market, self._keeper, self._clock = market, keeper, clock
        self._faults, self._hub_faults = faults, hub_faults
        self._token, self._clock_moved = token, clock_moved

    def routes(self) -> list[Route]:
        read: dict[str, Handler] = {
            "status": self._status,
            "orders": self._orders,
            "bill": self._bill,
            "truth": self._truth,
            "faults": lambda _: self._faults.status(),
            "hub-faults": lambda _: self._hub_status(),
        }
        write: dict[str, Handler] = {
            "faults": self._set_faults,
            "hub-faults": self._set_hub_faults,
            "advance": self._advance,
            "wallet": self._wallet,
            "outage": self._outage,
            "rent-by-other": self._rent_by_other,
            "end-order": self._end_order,
            "coin": self._coin,
            "lines": self._lines,
        }
        return [
            *(
                Route(f"/_sandbox/{name}", self._guarded(handler), methods=["GET"])
                for name, handler in read.items()
            ),
            *(
                Route(f"/_sandbox/{name}", self._guarded(handler), methods=["POST"])
                for name, handler in write.items()
            ),
        ]

    def _guarded(self, handler: Handler) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            given = request.headers.get(CONTROL_HEADER, "")
            if not secrets.compare_digest(given.encode(), self._token.encode()):
                return JSONResponse({"error": f"{CONTROL_HEADER} is missing or wrong"}, status_code=403)
            self._market.settle()
            try:
                arguments = (
                    dict(request.query_params) if request.method == "GET" else await _json_object(request)
                )
                result = handler(arguments)
            except (ValueError, KeyError, TypeError, InvalidOperation) as error:
                return JSONResponse({"error": f"{type(error).__name__}: {error}"}, status_code=400)
            finally:
                self._keeper.perform(self._market.take_effects())
            return JSONResponse(result)

        return endpoint

    # looking

    def _status(self, _: dict[str, Any]) -> dict[str, Any]:
        market = self._market
        now_s = market.now_s
        anchor = self._clock.anchor()
        return {
            "simulated": True,
            "seed": market.settings.seed,
            "time_factor": self._clock.factor,
            "now_unix_s": now_s,
            "clock": asdict(anchor),
            "servers": len(market.catalogue.servers),
            "orders_live": len(market.live()),
            "orders_ended": len(market.orders) - len(market.live()),
            "wallets": {coin: str(market.balance(coin, now_s)) for coin in COINS},
            "credits": {coin: str(market.credits[coin]) for coin in COINS},
            "coin_usd": {coin: str(rate) for coin, rate in market.catalogue.rates.usd.items()},
            "faults_fired": {name: count for name, count in self._faults.fired.items() if count},
        }

    def _orders(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"orders": [self._described(order) for order in self._market.orders.values()]}

    def _described(self, order: SandboxOrder) -> dict[str, Any]:
        truth = self._market.truth_of(order)
        request = order.request
        return {
            "id": order.id,
            "server_id": order.server_id,
            "owner_id": order.owner_id,
            "type": str(order.kind),
            "image": request.image,
            "env_names": sorted(request.env),
            "currency": order.currency,
            "price_per_day": str(order.price_per_day),
            "ct": order.ct,
            "live": order.is_live(),
            "active": order.is_active,
            "deployed": order.is_deployed,
            "ended_s": order.ended_s,
            "end_reason": order.end_reason,
            "ssh_port": order.ssh_port,
            "node_port": self._keeper.ssh_port(order.id),
            "truth": {**asdict(truth), "lies": sorted(truth.lies)},
            "segments": [[part.from_s, str(part.price_per_day)] for part in order.segments],
        }

    def _bill(self, _: dict[str, Any]) -> dict[str, Any]:
        now_s = self._market.now_s
        lines = []
        for order in self._market.orders.values():
            bill = order.bill_at(now_s)
            lines.append(
                {
                    "order_id": order.id,
                    "server_id": order.server_id,
                    "currency": order.currency,
                    "live": order.is_live(),
                    "charged_s": bill.charged_s,
                    "rent": str(bill.rent),
                    "fee": str(bill.fee),
                    "creation_fee": str(bill.creation_fee),
                    "total": str(bill.total),
                }
            )
        wallets = {
            coin: {
                "credited": str(self._market.credits[coin]),
                "charged": str(self._market.credits[coin] - self._market.balance(coin, now_s)),
                "balance": str(self._market.balance(coin, now_s)),
            }
            for coin in COINS
        }
        return {"now_unix_s": now_s, "orders": lines, "wallets": wallets}

    def _truth(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """What a server really is, for one `server_id`; without it, the lies of all servers."""
        servers = self._market.catalogue.servers
        if "server_id" in arguments:
            truth = servers[int(arguments["server_id"])].truth
            return {**asdict(truth), "lies": sorted(truth.lies)}
        return {
            "liars": {
                str(key): sorted(server.truth.lies) for key, server in servers.items() if server.truth.lies
            }
        }

    # touching

    def _set_faults(self, body: dict[str, Any]) -> dict[str, Any]:
        """`{"clear": true}`, or `{"<fault>": {"rate": .., "count": .., ...}, ...}`; see `faults`."""
        if body.pop("clear", False):
            self._faults.clear()
        for name, options in body.items():
            self._faults.set(name, options)
        return self._faults.status()

    def _set_hub_faults(self, body: dict[str, Any]) -> dict[str, Any]:
        """`{"cut_next": 1}` and so on, by the fields of `hub.HubFaults`."""
        for name, value in body.items():
            current = getattr(self._hub_faults, name, None)
            if isinstance(current, int):
                setattr(self._hub_faults, name, int(value))
            elif isinstance(current, set):
                current.clear()
                current.update(str(item) for item in value)
            else:
                raise ValueError(f"the hub has no fault {name!r}")
        return self._hub_status()

    def _hub_status(self) -> dict[str, Any]:
        shown = asdict(self._hub_faults)
        return {name: sorted(value) if isinstance(value, set) else value for name, value in shown.items()}

    def _advance(self, body: dict[str, Any]) -> dict[str, Any]:
        seconds = float(body["seconds"])
        if not 0 <= seconds <= ADVANCE_MAX_S:
            raise ValueError(f"seconds is from 0 to {ADVANCE_MAX_S}")
        self._clock.advance(seconds)
        self._market.settle()
        self._market.save_mark(ahead=True)
        self._clock_moved()
        return {"now_unix_s": self._clock.now_s()}

    def _wallet(self, body: dict[str, Any]) -> dict[str, Any]:
        self._market.set_balance(str(body["currency"]), Decimal(str(body["balance"])))
        return {"balance": str(self._market.balance(body["currency"], self._market.now_s))}

    def _outage(self, body: dict[str, Any]) -> dict[str, Any]:
        server_id = int(body["server_id"])
        if body.get("end"):
            self._market.end_outage(server_id)
        else:
            self._market.start_outage(server_id, float(body.get("seconds", 3600)))
        return {
            "server_id": server_id,
            "online": self._market.is_online(self._market.catalogue.servers[server_id]),
        }

    def _rent_by_other(self, body: dict[str, Any]) -> dict[str, Any]:
        server_id = int(body["server_id"])
        factor = body.get("spot_bid_factor")
        self._market.rent_by_other(
            server_id,
            seconds=float(body.get("seconds", 6 * 3600)),
            spot_bid_factor=None if factor is None else float(factor),
        )
        return {"server_id": server_id}

    def _end_order(self, body: dict[str, Any]) -> dict[str, Any]:
        self._market.end_by_host(int(body["order_id"]))
        return {"order_id": int(body["order_id"])}

    def _lines(self, body: dict[str, Any]) -> dict[str, Any]:
        """Give every server this line to the hub, whatever it offers, from its next order on."""
        down_mbit_s = float(body["down_mbit_s"])
        self._market.set_lines(down_mbit_s)
        return {"down_mbit_s": down_mbit_s}

    def _coin(self, body: dict[str, Any]) -> dict[str, Any]:
        self._market.jump_coin(str(body["currency"]), Decimal(str(body["factor"])))
        return {coin: str(rate) for coin, rate in self._market.catalogue.rates.usd.items()}


async def _json_object(request: Request) -> dict[str, Any]:
    body = await request.body()
    if len(body) > _BODY_MAX_BYTES:
        raise ValueError("the body is too large")
    parsed = json.loads(body or b"{}")
    if not isinstance(parsed, dict):
        raise ValueError("the body is not an object")
    return parsed

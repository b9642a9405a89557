"""What the simulated market can be told to do wrong, each fault a seeded switch.

A fault is on while it has a rate. It fires with that probability on each matching call, and at most
`count` times if a count is given: rate 1 with count 1 is "the next call". Each fault draws from its own
stream, so turning one on never changes when another fires. `fired` counts are reported, since a fault
that never fired has shown nothing.

The ids in `FAULTS` are those of the project's failure model. Faults of hosts and SSH are the nodes'
own and are not here.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

CREATE = "create_order"
ORDERS = "my_orders"
CANCELS = ("cancel_order", "cancel_orders")


@dataclass(frozen=True, slots=True)
class FaultKind:
    id: str
    summary: str
    endpoints: tuple[str, ...] = ()
    """Where it can fire unless told otherwise; empty = every endpoint."""
    params: Mapping[str, Any] = field(default_factory=dict)
    """What can be set, with defaults."""


MALFORMED = ("html", "truncated", "empty", "text-1010", "not-an-object", "deep", "huge")
ODD_FIELDS = ("unknown", "missing", "renamed", "null", "number-as-string")

FAULTS: dict[str, FaultKind] = {
    "timeout_before": FaultKind(
        "A1", "no answer, and the call was not executed", params={"hold_real_s": 90.0}
    ),
    "timeout_after": FaultKind(
        "A2", "no answer, though the call was executed (on a cancel: A16)", params={"hold_real_s": 90.0}
    ),
    "cut_body": FaultKind("A3", "executed, then the connection is cut inside the body"),
    "error_before": FaultKind("A4", "5xx with an HTML body, not executed", params={"status": 502}),
    "error_after": FaultKind("A4", "5xx with an HTML body, executed", params={"status": 502}),
    "code1_before": FaultKind("A5", "code 1, not executed", (CREATE,), {"status": 500}),
    "code1_after": FaultKind("A5", "code 1, though executed", (CREATE,), {"status": 500}),
    "rate_limited": FaultKind(
        "A6", "code 5 for this call, or for all calls during `storm_real_s`", params={"storm_real_s": 0.0}
    ),
    "malformed": FaultKind(
        "A7", f"executed, body is not the market's JSON: {', '.join(MALFORMED)}", params={"variant": "html"}
    ),
    "odd_fields": FaultKind(
        "A8",
        f"a field of the answer is changed: {', '.join(ODD_FIELDS)}",
        params={"variant": "unknown", "field": ""},
    ),
    "late_order": FaultKind("A9", "a new order is not listed for some polls", (CREATE,), {"polls": 3}),
    "vanishing_order": FaultKind("A9", "a live order is not listed for some polls", (ORDERS,), {"polls": 2}),
    "duplicate_in_list": FaultKind("A10", "an order is listed twice", (ORDERS,)),
    "duplicate_order": FaultKind("A10", "one create makes two orders, and both are charged", (CREATE,)),
    "create_refused": FaultKind("A11", "refused by name", (CREATE,), {"error": "server-already-rented"}),
    "price_moved": FaultKind("A12", "the price changes just before the rent", (CREATE,), {"factor": 1.25}),
    "fee_moved": FaultKind("A12", "the order's fee percent is another", (CREATE,), {"percent": 10}),
    "other_hardware": FaultKind("A13", "the order is served by lesser hardware than offered", (CREATE,)),
    "cancel_ignored": FaultKind("A14", "a cancel says ok, and the order lives on", CANCELS),
    "cancel_reported_failed": FaultKind("A15", "a cancel works, and says it failed", CANCELS),
    "order_dies": FaultKind("A17", "the host ends a running order just before the poll", (ORDERS,)),
    "key_revoked": FaultKind("A18", "the key is refused with code 3"),
    "slow_drip": FaultKind("A19", "the body comes slowly", params={"bytes_per_real_s": 1.0}),
    "delayed": FaultKind(
        "A20",
        "the answer waits a random time, so that concurrent answers change places",
        params={"max_real_s": 2.0},
    ),
    "id_as_string": FaultKind("A21", "order ids are strings", (ORDERS,)),
    "partial_page": FaultKind("A22", "the list ends early", (ORDERS, "marketplace"), {"keep": 0.5}),
    "wallet_empty": FaultKind("B1", "not_enough_balance at the rent", (CREATE,)),
    "stale_balance": FaultKind(
        "B2", "wallets answers with the balance of the last honest call", ("wallets",)
    ),
}


class UnknownFault(ValueError):
    """No such fault, or a parameter it does not have."""


@dataclass(slots=True)
class FaultSwitch:
    rate: float
    count: int | None
    endpoints: tuple[str, ...]
    params: dict[str, Any]
    server_ids: frozenset[int] = frozenset()
    """For create_order: fire only for these servers, if any are named."""


class FaultBoard:
    def __init__(self, seed: int, initial: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        self._streams = {name: random.Random(f"{seed}:fault:{name}") for name in FAULTS}
        self._switches: dict[str, FaultSwitch] = {}
        self.fired: dict[str, int] = dict.fromkeys(FAULTS, 0)
        self.fired_on: dict[str, dict[str, int]] = {name: {} for name in FAULTS}
        """The same by endpoint."""
        for name, options in (initial or {}).items():
            self.set(name, options)

    def set(self, name: str, options: Mapping[str, Any]) -> None:
        """Turn a fault on, or off with rate 0.

        Options: `rate` 0..1 (default 1), `count` (default: no bound), `endpoints`, `server_ids`, and the
        fault's own parameters. Raises `UnknownFault` for anything else.
        """
        kind = FAULTS.get(name)
        if kind is None:
            raise UnknownFault(f"no fault {name!r}; there are: {', '.join(FAULTS)}")
        given = dict(options)
        rate, count = float(given.pop("rate", 1.0)), given.pop("count", None)
        endpoints = tuple(given.pop("endpoints", None) or kind.endpoints)
        server_ids = frozenset(int(item) for item in given.pop("server_ids", ()))
        unknown = set(given) - set(kind.params)
        if unknown:
            raise UnknownFault(
                f"{name} has no {', '.join(sorted(unknown))}; it has {', '.join(kind.params) or 'none'}"
            )
        if not 0 <= rate <= 1:
            raise UnknownFault("rate is a probability from 0 to 1")
        if given.get("variant") not in (None, *MALFORMED, *ODD_FIELDS):
            raise UnknownFault(f"no variant {given['variant']!r}")
        if rate == 0 or count == 0:
            self._switches.pop(name, None)
            return
        params = {**kind.params, **given}
        self._switches[name] = FaultSwitch(
            rate, None if count is None else int(count), endpoints, params, server_ids
        )

    def clear(self) -> None:
        self._switches.clear()

    def draw(self, name: str, endpoint: str, *, server_id: int | None = None) -> FaultSwitch | None:
        """The switch if the fault fires on this call, else None. A firing uses up one of the count."""
        switch = self._switches.get(name)
        if switch is None or (switch.endpoints and endpoint not in switch.endpoints):
            return None
        if switch.server_ids and server_id not in switch.server_ids:
            return None
        if self._streams[name].random() >= switch.rate:
            return None
        self.fired[name] += 1
        self.fired_on[name][endpoint] = self.fired_on[name].get(endpoint, 0) + 1
        if switch.count is not None:
            switch.count -= 1
            if switch.count <= 0:
                del self._switches[name]
        return switch

    def stream(self, name: str) -> random.Random:
        """The fault's own randomness, for choices it makes when it fires."""
        return self._streams[name]

    def status(self) -> dict[str, Any]:
        return {
            name: {
                "id": kind.id,
                "summary": kind.summary,
                "rate": switch.rate if switch else 0,
                "count": switch.count if switch else None,
                "fired": self.fired[name],
                "fired_on": dict(self.fired_on[name]),
            }
            for name, kind in FAULTS.items()
            for switch in (self._switches.get(name),)
        }

"""Marketplace answers as they come, and bent in every field: for readings that must agree on them."""

from __future__ import annotations

import json
import random
from copy import deepcopy
from typing import Any

from clorefleet.sandbox.catalogue import Catalogue
from clorefleet.sandbox.coins import CoinRates
from clorefleet.sandbox.listing import MarketplaceDocument

ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 1.5, "", "12", "1.5", " 7 ", "x", [], {}, [1], {"a": 1},
    10**30, 1e300, 1e-300,
    "NaN", "\u0661", "é\u202e", 2**63, 0.1234567890123456789, "1e5GB", "+5GB", "1_000GB",
    "disk 12GB ", "99.5gb",
)  # fmt: skip


def plain_answer(seed: int, servers: int) -> dict[str, Any]:
    rates = CoinRates.at_start(seed)
    document = MarketplaceDocument(Catalogue.of_seed(seed, server_count=servers, rates=rates), seed)
    answer: dict[str, Any] = json.loads(document.with_rented(frozenset()))
    rng = random.Random(seed)
    for server in answer["servers"]:
        server["rented"] = rng.random() < 0.3
    return answer


def bent(answer: dict[str, Any], rng: random.Random, bends: int) -> dict[str, Any]:
    """Some fields of some servers replaced by what they should not be, removed, or put elsewhere.

    Each odd value is a copy: one that stands in two places would be bent in both, or put into itself."""
    for _ in range(bends):
        servers = answer["servers"]
        index = rng.randrange(len(servers))
        if rng.random() < 0.03:
            servers[index] = deepcopy(rng.choice(ODD_VALUES))
            continue
        where: Any = servers[index]
        while isinstance(where, dict) and where:
            key = rng.choice(sorted(where))
            inner = where[key]
            if isinstance(inner, dict) and inner and rng.random() < 0.75:
                where = inner
                continue
            roll = rng.random()
            if roll < 0.15:
                del where[key]
            elif roll < 0.25:
                where[key] = where.pop(key)  # to the end
            else:
                where[key] = deepcopy(rng.choice(ODD_VALUES))
            break
    return answer

"""Offers to plan on, built from a GPU's name and count."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from clorefleet.config.recipes import load_recipes
from clorefleet.domain.offer import DOCUMENTED_FEES, MarketRates, MarketView, Offer, OfferedGpu
from clorefleet.domain.plan import Requirement
from clorefleet.planner.gpus import load_gpus
from clorefleet.planner.hardware import Hardware, hardware_of_offer
from tests.fleet import builders

RECIPES = load_recipes()
GPUS = load_gpus()
READ_AT = datetime(2026, 11, 24, tzinfo=UTC)
GIB = 1 << 30


def machine(gpu: str, count: int, vram_gib: int, *, ram_gib: int = 2000, **changes: Any) -> Offer:
    base = builders.offer(
        gpus=(OfferedGpu(gpu, Decimal(vram_gib)),) * count,
        ram_bytes=ram_gib * GIB,
        disk_free_bytes=4000 * GIB,
        down_mbit_s=Decimal(5000),
    )
    return replace(base, **changes)


def hardware(offer: Offer) -> Hardware:
    found = hardware_of_offer(offer, GPUS)
    assert found is not None
    return found


def market(*offers: Offer) -> MarketView:
    return MarketView(tuple(offers), MarketRates(()), DOCUMENTED_FEES, READ_AT)


def wish(model: str = "glm-5.1", **changes: Any) -> Requirement:
    return Requirement(model, **changes)

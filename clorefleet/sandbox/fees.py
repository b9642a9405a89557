"""What a renter pays beside the price: percent fees, the creation fee, and what holding CLORE saves."""

from __future__ import annotations

from decimal import Decimal

from clorefleet.sandbox.coins import BITCOIN, CLORE, COINS, USD, wire_number
from clorefleet.sandbox.reply import Reply, Wire, ok
from clorefleet.sandbox.settings import SandboxSettings

_REDUCTION_PERCENT_MAX = 50
_HOLDING_MAX = 2_000_000
_POH_OFFERS = (
    "rented_amount",
    "rented_on_marketplace_amount",
    "rented_finished_amount",
    "leased_amount",
    "leased_finished_amount",
)


def fee_percent(settings: SandboxSettings, *, is_spot: bool) -> Decimal:
    """Percent on top of the price, after the reduction for Proof of Holding."""
    base = settings.spot_fee_percent if is_spot else settings.on_demand_fee_percent
    share = min(settings.proof_of_holding / _HOLDING_MAX, Decimal(1))
    return base * (100 - round(share * _REDUCTION_PERCENT_MAX)) / 100


def creation_fee(settings: SandboxSettings, coin: str) -> Decimal:
    return {
        USD: settings.creation_fee_usd,
        CLORE: settings.creation_fee_clore,
        BITCOIN: settings.creation_fee_bitcoin,
    }[coin]


def renter_fees(settings: SandboxSettings) -> Reply:
    creation = {coin: wire_number(creation_fee(settings, coin)) for coin in COINS}

    def percent(value: Decimal) -> Wire:
        return {coin: wire_number(value) for coin in COINS}

    return ok(
        renter_fees={
            "on_demand": {"base": percent(settings.on_demand_fee_percent), "extra": percent(Decimal(0))},
            "spot": {"base": percent(settings.spot_fee_percent)},
        },
        creation_fees={"on_demand": creation, "spot": dict(creation)},
        poh_config={"max_reduction_percent": _REDUCTION_PERCENT_MAX, "max_poh_amount": _HOLDING_MAX},
        poh_balance=wire_number(settings.proof_of_holding),
    )


def poh_balance(settings: SandboxSettings) -> Reply:
    held = wire_number(settings.proof_of_holding)
    balance = {
        "total": held,
        "free_amount": held,
        "reward_amount": 0,
        "offers": dict.fromkeys(_POH_OFFERS, 0),
    }
    return ok(balance=balance, items=[], count=0)

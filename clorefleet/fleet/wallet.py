"""How long a wallet lasts, and when its user has to hear of it."""

from __future__ import annotations

from decimal import Decimal

from clorefleet.domain.guard import WalletReading
from clorefleet.fleet.limits import DEFAULT_LIMITS, FleetLimits

_DAY_S = Decimal(86_400)


def wallet_warning(reading: WalletReading, limits: FleetLimits = DEFAULT_LIMITS) -> str:
    """What to tell the user before the market would cut the orders for lack of money; "" while it lasts."""
    runway = reading.runway_days
    if runway is None or runway * _DAY_S >= Decimal(int(limits.low_wallet.total_seconds())):
        return ""
    hours = runway * 24
    return (
        f"The {reading.currency} wallet holds {reading.balance} and lasts {hours:.1f} hours at the present "
        "burn; at zero the market ends the orders and their data is lost. Add funds, or stop something."
    )

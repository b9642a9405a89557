"""What was spent: one segment per lease and rate.

Two figures are kept apart on purpose. `estimate` is ours: whole minutes x rate, fee on top, creation
fee once the order is ten minutes old (the market's documented rules; charging per minute is
assumed). `market_spend` is the market's own counter for the order. While a lease runs, the larger of
both is shown; once the market's list of completed orders has the order, its figure is final.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from clorefleet.domain.identity import DeploymentId, LeaseId, OrderId
from clorefleet.domain.money import Currency, Money, Rate

CHARGE_GRAIN_S = 60
CREATION_FEE_AFTER_S = 600


@dataclass(frozen=True, slots=True)
class LedgerSegment:
    lease_id: LeaseId
    deployment_id: DeploymentId
    order_id: OrderId
    price: Rate
    """Per day, in the billed currency, without fee."""
    is_spot: bool
    fee_percent: Decimal
    creation_fee: Decimal
    """In the billed currency."""
    usd_per_unit: Decimal
    """Recorded when the segment was opened; it never changes afterwards."""
    rate_source: str
    started_at: datetime
    ended_at: datetime | None = None
    market_spend: Decimal | None = None
    settled_at: datetime | None = None

    @property
    def currency(self) -> Currency:
        return self.price.currency

    def estimate(self, now: datetime) -> Money:
        """Our own count up to `now`, or to the end of the segment. Never negative, also if a clock jumps."""
        until = self.ended_at or now
        elapsed_s = max(0, int((until - self.started_at).total_seconds()))
        charged_s = elapsed_s // CHARGE_GRAIN_S * CHARGE_GRAIN_S
        rent = self.price.for_seconds(charged_s) * (1 + self.fee_percent / 100)
        if elapsed_s >= CREATION_FEE_AFTER_S:
            rent = rent + Money(self.creation_fee, self.currency)
        return rent

    def cost(self, now: datetime) -> Money:
        """The settled bill, or the larger of our estimate and the market's counter while it runs."""
        if self.market_spend is None:
            return self.estimate(now)
        market = Money(self.market_spend, self.currency)
        if self.settled_at is not None:
            return market
        estimate = self.estimate(now)
        return market if market >= estimate else estimate

    def cost_usd(self, now: datetime) -> Decimal:
        return self.cost(now).amount * self.usd_per_unit

    def worst_case_usd_per_day(self) -> Decimal:
        """The running rate with fee, in USD per day."""
        return self.price.amount * (1 + self.fee_percent / 100) * self.usd_per_unit

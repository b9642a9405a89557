"""Ceilings and stops that stand over all deployments; what is known of wallets and coins. Values only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from decimal import Decimal

from clorefleet.domain.identity import DeploymentId
from clorefleet.domain.money import Budget, Currency, Money


@dataclass(frozen=True, slots=True)
class FleetGuard:
    """What the user set for the whole fleet, and what stopped it. Stored; changed by `clorefleet budget`."""

    per_day: Budget | None = None
    """Ceiling over all deployments together."""
    total_usd: Decimal | None = None
    """Ceiling on all that is ever spent, counted by the ledger from `total_since`."""
    total_since: datetime | None = None
    deployment_totals_usd: Mapping[DeploymentId, Decimal] = field(default_factory=dict)
    """The same for single deployments, each counted from when it was set."""
    deployment_totals_since: Mapping[DeploymentId, datetime] = field(default_factory=dict)
    """One that is not here was set before this was kept, and counts the deployment's whole life."""
    stopped_at: datetime | None = None
    """When renting was stopped until the user says go on; ending goes on all the same."""
    stopped_because: str = ""
    resumed_at: datetime | None = None
    """Rents and host failures before this are forgiven."""
    followed_digest: str = ""
    """Of the edited fleet file that was followed last, so that a new daemon does not follow it again; ""
    where none was."""
    followed_since: datetime | None = None
    """When the file was applied that this was an edit of."""

    @property
    def is_stopped(self) -> bool:
        return self.stopped_at is not None

    def with_total_of(self, deployment_id: DeploymentId, total_usd: Decimal, *, now: datetime) -> FleetGuard:
        """`total_usd` is the most that the deployment may spend from `now` on."""
        return replace(
            self,
            deployment_totals_usd={**self.deployment_totals_usd, deployment_id: total_usd},
            deployment_totals_since={**self.deployment_totals_since, deployment_id: now},
        )


@dataclass(frozen=True, slots=True)
class WalletReading:
    """A wallet as last read, beside the first reading of the same day (UTC), each with the ledger's total."""

    balance: Money
    read_at: datetime
    ledger: Decimal
    """All that the ledger had counted in this currency, then."""
    burn_per_day: Decimal
    """What all live orders of the account, ours or not, take a day in this currency, with fee."""
    day_balance: Decimal
    day_read_at: datetime
    day_ledger: Decimal

    @property
    def currency(self) -> Currency:
        return self.balance.currency

    @property
    def drift(self) -> Decimal:
        """What the wallet lost today beyond what the ledger counted: orders made by hand, or our error.

        Negative after a deposit.
        """
        return (self.day_balance - self.balance.amount) - (self.ledger - self.day_ledger)

    @property
    def runway_days(self) -> Decimal | None:
        """How long the balance lasts at the present burn; None when nothing burns."""
        return None if self.burn_per_day <= 0 else self.balance.amount / self.burn_per_day

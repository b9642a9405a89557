"""Where the money went: charges and usage grouped by whatever is asked for. Pure.

Every grouping of the same charges has the same total, to the last digit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, tzinfo
from decimal import Decimal

from clorefleet.domain.books import Books
from clorefleet.domain.dimension import Dimension
from clorefleet.domain.identity import DeploymentId, LeaseId
from clorefleet.domain.lease import Lease
from clorefleet.domain.money import Currency
from clorefleet.domain.usage import UsageHour
from clorefleet.report.charges import Charge, Stage, exact_sum

UNKNOWN = "?"
_MILLION = 1_000_000


TEMPORAL = frozenset({Dimension.DAY, Dimension.WEEK, Dimension.MONTH})


@dataclass(frozen=True, slots=True)
class Used:
    """What clients got, as the engines counted it at the gateway."""

    requests: int = 0
    failures: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    uncounted: int = 0
    """Answered requests whose engine told no token counts: their tokens are in none of the figures."""

    def plus(self, hour: UsageHour) -> Used:
        return Used(
            self.requests + hour.requests,
            self.failures + hour.failures,
            self.prompt_tokens + hour.prompt_tokens,
            self.generated_tokens + hour.completion_tokens,
            self.uncounted + hour.uncounted,
        )


@dataclass(frozen=True, slots=True)
class CostRow:
    """One group of charges.

    Attributes:
        key: one text for each dimension that was asked for.
        usd: at the rates that the ledger recorded.
        amounts: the same as billed, by currency.
        planned_usd: what the plans said when the servers were rented, for the same time.
        stages: USD and time by what they went to; each sums to the whole.
    """

    key: tuple[str, ...]
    usd: Decimal
    amounts: Mapping[Currency, Decimal]
    planned_usd: Decimal
    stages: Mapping[Stage, tuple[Decimal, timedelta]]
    used: Used = field(default_factory=Used)

    @property
    def lasted(self) -> timedelta:
        """Server time: two servers for an hour are two hours."""
        return sum((lasted for _, lasted in self.stages.values()), timedelta(0))

    @property
    def usd_per_million_tokens(self) -> Decimal | None:
        """All that was spent, for each million tokens that were generated; None where none were."""
        if not self.used.generated_tokens:
            return None
        return self.usd * _MILLION / self.used.generated_tokens

    @property
    def usd_per_day(self) -> Decimal | None:
        """For one server's day; None where nothing lasted."""
        seconds = Decimal(int(self.lasted.total_seconds()))
        return None if not seconds else self.usd * 86_400 / seconds

    def stage_usd(self, stage: Stage) -> Decimal:
        return self.stages.get(stage, (Decimal(0), timedelta(0)))[0]

    def stage_lasted(self, stage: Stage) -> timedelta:
        return self.stages.get(stage, (Decimal(0), timedelta(0)))[1]


def rows_by(
    dimensions: Sequence[Dimension],
    found: Iterable[Charge],
    books: Books,
    *,
    zone: tzinfo,
    since: datetime | None = None,
    until: datetime | None = None,
) -> tuple[CostRow, ...]:
    """Charges by their key, and the usage of the hours that begin in the window. By time, else dearest
    first. An hour of usage belongs to the day in which it begins."""
    named = _Names(books, zone)
    grouped: dict[tuple[str, ...], list[Charge]] = {}
    for charge in found:
        grouped.setdefault(tuple(named.of_charge(each, charge) for each in dimensions), []).append(charge)
    used: dict[tuple[str, ...], Used] = {}
    for hour in books.usage:
        if (since is None or hour.hour >= since) and (until is None or hour.hour < until):
            key = tuple(named.of_usage(each, hour) for each in dimensions)
            used[key] = used.get(key, Used()).plus(hour)
    rows = [_row(key, grouped.get(key, ()), used.get(key, Used())) for key in {**grouped, **used}]
    times = [i for i, each in enumerate(dimensions) if each in TEMPORAL]
    return tuple(sorted(rows, key=lambda row: ([row.key[i] for i in times], -row.usd, row.key)))


def total_of(found: Iterable[Charge], used: Iterable[UsageHour] = ()) -> CostRow:
    total = Used()
    for hour in used:
        total = total.plus(hour)
    return _row((), tuple(found), total)


def _row(key: tuple[str, ...], found: Sequence[Charge], used: Used) -> CostRow:
    amounts: dict[Currency, list[Decimal]] = {}
    stages: dict[Stage, list[Charge]] = {}
    for charge in found:
        amounts.setdefault(charge.currency, []).append(charge.amount)
        stages.setdefault(charge.stage, []).append(charge)
    return CostRow(
        key=key,
        usd=exact_sum(charge.usd for charge in found),
        amounts={currency: exact_sum(each) for currency, each in amounts.items()},
        planned_usd=exact_sum(charge.planned_usd for charge in found),
        stages={
            stage: (
                exact_sum(charge.usd for charge in stages[stage]),
                sum((charge.lasted for charge in stages[stage]), timedelta(0)),
            )
            for stage in Stage
            if stage in stages
        },
        used=used,
    )


class _Names:
    """What charges and hours of usage are called in each dimension."""

    def __init__(self, books: Books, zone: tzinfo) -> None:
        self._leases = books.leases
        self._models = {each.deployment_id: each.model for each in books.deployments}
        self._zone = zone
        self._segments = {each.lease_id: each for each in books.segments}
        self._of_lease: dict[Dimension, Callable[[Lease], str]] = {
            Dimension.REPLICA: lambda lease: f"{lease.deployment_id}/{lease.slot}",
            Dimension.HOST: lambda lease: str(lease.server_id),
            Dimension.GPU: lambda lease: lease.plan.offer.gpu_summary,
            Dimension.MODEL: lambda lease: lease.plan.setup.model,
        }

    def of_charge(self, dimension: Dimension, charge: Charge) -> str:
        match dimension:
            case Dimension.DAY | Dimension.WEEK | Dimension.MONTH:
                return period_of(dimension, charge.started_at, self._zone)
            case Dimension.DEPLOYMENT:
                return charge.deployment_id
            case Dimension.PHASE:
                return charge.stage
            case Dimension.KIND:
                return kind_of(charge.is_spot)
            case Dimension.CURRENCY:
                return charge.currency
            case Dimension.ORDER:
                return str(charge.order_id)
        return self._by_lease(dimension, charge.lease_id, charge.deployment_id)

    def of_usage(self, dimension: Dimension, hour: UsageHour) -> str:
        segment = self._segments.get(hour.lease_id)
        if dimension in TEMPORAL:
            return period_of(dimension, hour.hour, self._zone)
        if dimension is Dimension.PHASE:
            return Stage.SERVING
        if segment is None:
            return UNKNOWN
        match dimension:
            case Dimension.DEPLOYMENT:
                return segment.deployment_id
            case Dimension.KIND:
                return kind_of(segment.is_spot)
            case Dimension.CURRENCY:
                return segment.currency
            case Dimension.ORDER:
                return str(segment.order_id)
        return self._by_lease(dimension, hour.lease_id, segment.deployment_id)

    def _by_lease(self, dimension: Dimension, lease_id: LeaseId, deployment_id: DeploymentId) -> str:
        lease = self._leases.get(lease_id)
        if lease is not None:
            return self._of_lease[dimension](lease)
        return self._models.get(deployment_id, UNKNOWN) if dimension is Dimension.MODEL else UNKNOWN


def kind_of(is_spot: bool) -> str:
    return "spot" if is_spot else "on-demand"


def period_of(dimension: Dimension, at: datetime, zone: tzinfo) -> str:
    """The local day, week or month: `2026-11-28`, `2026-W48`, `2026-11`."""
    day = at.astimezone(zone).date()
    if dimension is Dimension.DAY:
        return day.isoformat()
    if dimension is Dimension.WEEK:
        year, week, _ = day.isocalendar()
        return f"{year}-W{week:02}"
    return f"{day:%Y-%m}"

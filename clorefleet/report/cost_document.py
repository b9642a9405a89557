"""The cost report for programs: JSON as docs/json/cost.schema.json says, and CSV.

Its names are a promise to scripts, kept apart from our own types so that those can change. Amounts of money
are text with all their digits in JSON; a change that breaks readers raises `SCHEMA`'s number.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from datetime import datetime
from decimal import Decimal
from typing import Any

from clorefleet.domain.text import clean_line
from clorefleet.report.charges import Stage, exact_sum
from clorefleet.report.cost import CostRow
from clorefleet.report.cost_report import Bill, CostReport, Kept
from clorefleet.report.outlook import Forecast, Runway

SCHEMA = "clorefleet.cost/1"
_UNIT = Decimal("0.00000001")
_FORMULA = ("=", "+", "-", "@")


def cost_document(report: CostReport) -> dict[str, Any]:
    question = report.question
    return {
        "schema": SCHEMA,
        "at": report.at.isoformat(),
        "time_zone": question.zone_name,
        "since": _instant(question.since),
        "until": _instant(question.until),
        "deployment": question.deployment_id,
        "by": [each.value for each in question.by],
        "total_usd": _amount(report.total.usd),
        "unsettled_usd": _amount(report.unsettled_usd),
        "total": _row(report.total),
        "rows": [
            {"key": dict(zip((each.value for each in question.by), row.key, strict=True)), **_row(row)}
            for row in report.rows
        ],
        "waste_usd": _amount(report.wasted_usd),
        "waste": [
            {
                "kind": each.kind.value,
                "subject": each.subject,
                "usd": _amount(each.usd),
                "lasted_s": int(each.lasted.total_seconds()),
                "what": each.what,
                "advice": each.advice,
            }
            for each in report.waste
        ],
        "forecasts": [_forecast(each) for each in report.forecasts],
        "replicas": [_kept(each) for each in report.kept],
        "segments": [_bill(each) for each in report.bills],
        "settled_drift_usd": _amount_or_none(report.settled_drift_usd),
        "wallets": [_wallet(each) for each in report.wallets],
    }


def _row(row: CostRow) -> dict[str, Any]:
    return {
        "usd": _amount(row.usd),
        "billed": {currency.value: _amount(amount) for currency, amount in row.amounts.items()},
        "planned_usd": _amount(row.planned_usd),
        "lasted_s": int(row.lasted.total_seconds()),
        "phases": {
            stage.value: {"usd": _amount(spent), "lasted_s": int(lasted.total_seconds())}
            for stage, (spent, lasted) in row.stages.items()
        },
        "requests": row.used.requests,
        "failed_requests": row.used.failures,
        "uncounted_requests": row.used.uncounted,
        "prompt_tokens": row.used.prompt_tokens,
        "generated_tokens": row.used.generated_tokens,
        "usd_per_million_tokens": _places_or_none(row.usd_per_million_tokens),
    }


def _forecast(each: Forecast) -> dict[str, Any]:
    return {
        "deployment": each.deployment_id,
        "month": each.month,
        "ends_at": each.ends_at.isoformat(),
        "spent_usd": _amount(each.spent_usd),
        "running_usd_per_day": _places(each.running_usd_per_day),
        "recent_usd_per_day": _places_or_none(each.recent_usd_per_day),
        "at_present_usd": _places(each.at_present_usd),
        "at_recent_usd": _places_or_none(each.at_recent_usd),
        "ceiling_usd": _places_or_none(each.ceiling_usd),
    }


def _kept(each: Kept) -> dict[str, Any]:
    return {
        "lease_id": each.lease_id,
        "deployment": each.deployment_id,
        "server_id": each.server_id,
        "gpus": each.gpus,
        "lasted_s": int(each.lasted.total_seconds()),
        "planned_usd": _amount(each.planned_usd),
        "actual_usd": _amount(each.actual_usd),
        "planned_usd_per_day": _places(each.planned_usd_per_day),
        "actual_usd_per_day": _places_or_none(each.actual_usd_per_day),
        "all_in_usd_per_day": _places(each.all_in_usd_per_day),
        "predicted_tokens_per_s": round(each.predicted_tokens_per_s, 3),
        "measured_tokens_per_s": None
        if each.measured_tokens_per_s is None
        else round(each.measured_tokens_per_s, 3),
    }


def _bill(each: Bill) -> dict[str, Any]:
    return {
        "order_id": each.order_id,
        "lease_id": each.lease_id,
        "deployment_id": each.deployment_id,
        "server_id": each.server_id,
        "gpus": each.gpus,
        "kind": "spot" if each.is_spot else "on-demand",
        "price_per_day": _amount(each.price_per_day),
        "currency": each.currency.value,
        "fee_percent": _amount(each.fee_percent),
        "started_at": each.started_at.isoformat(),
        "ended_at": _instant(each.ended_at),
        "state": each.state,
        "cost": _amount(each.cost),
        "estimate": _amount(each.estimate),
        "drift": _amount_or_none(each.drift),
        "market_spend": _amount_or_none(each.market_spend),
        "usd_per_unit": _amount(each.usd_per_unit),
        "rate_source": each.rate_source,
        "cost_usd": _amount(each.cost_usd),
        "reason_ended": each.reason_ended,
    }


def _wallet(each: Runway) -> dict[str, Any]:
    return {
        "currency": each.currency.value,
        "read_at": each.read_at.isoformat(),
        "balance": _amount(each.balance),
        "balance_usd": _places_or_none(each.balance_usd),
        "usd_per_unit": _amount_or_none(each.usd_per_unit),
        "rate_source": each.rate_source,
        "burn_per_day": _amount(each.burn_per_day),
        "runway_days": _places_or_none(each.runway_days),
        "since": each.since.isoformat(),
        "drift": _amount(each.drift),
    }


def cost_csv(report: CostReport) -> str:
    """The groups, one a line, with a heading; amounts in USD to eight places, times in seconds.

    A text that a spreadsheet would take for a formula gets an apostrophe: names come from strangers.
    """
    by = report.question.by
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        [
            *(each.value for each in by),
            "usd", "planned_usd", "lasted_s",
            *(f"{stage.value}_usd" for stage in Stage), *(f"{stage.value}_s" for stage in Stage),
            "requests", "failed_requests", "prompt_tokens", "generated_tokens", "usd_per_million_tokens",
        ]
    )  # fmt: skip
    for row, parts in zip(report.rows, _rounded_parts(report.rows), strict=True):
        writer.writerow(
            [
                *(spreadsheet_text(key) for key in row.key),
                _places(exact_sum(parts)), _places(row.planned_usd), int(row.lasted.total_seconds()),
                *map(_places, parts),
                *(int(row.stage_lasted(stage).total_seconds()) for stage in Stage),
                row.used.requests, row.used.failures, row.used.prompt_tokens, row.used.generated_tokens,
                _places_or_none(row.usd_per_million_tokens) or "",
            ]
        )  # fmt: skip
    return out.getvalue()


def _rounded_parts(rows: Iterable[CostRow]) -> Iterator[list[Decimal]]:
    """Each row's USD by stage, to the market's last unit; a coin's rate brings dozens of digits more.

    What has been summed up is rounded and not each amount: lines and columns add up to the rounded total.
    """
    exact = rounded = Decimal(0)
    for row in rows:
        parts = []
        for stage in Stage:
            exact = exact_sum((exact, row.stage_usd(stage)))
            up_to = exact.quantize(_UNIT)
            parts.append(up_to - rounded)
            rounded = up_to
        yield parts


def spreadsheet_text(text: str) -> str:
    """One cell that no spreadsheet computes."""
    clean = clean_line(text)
    return f"'{clean}" if clean.startswith(_FORMULA) else clean


def _places(value: Decimal) -> str:
    """What was divided has no last digit: eight places."""
    return _amount(value.quantize(_UNIT))


def _places_or_none(value: Decimal | None) -> str | None:
    return None if value is None else _places(value)


def _amount(value: Decimal) -> str:
    """All digits, never an exponent."""
    return f"{value:f}"


def _amount_or_none(value: Decimal | None) -> str | None:
    return None if value is None else _amount(value)


def _instant(at: datetime | None) -> str | None:
    return None if at is None else at.isoformat()

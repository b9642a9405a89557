"""A plan report as the JSON document that `--json` prints: docs/plan-json.md, docs/plan.schema.json.

Its names are a promise to scripts, kept apart from our own types so that those can change. Amounts of money
are text with all their digits; a change that breaks readers raises `SCHEMA`'s number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from decimal import Decimal
from typing import Any

from clorefleet.domain.plan import Plan, PlanReport, Term

SCHEMA = "clorefleet.plan/1"


CapacityOf = Callable[[Plan], tuple[int, int] | None]
"""The longest context of a single request, in tokens, and the most requests with the setup's context."""


def plan_document(
    report: PlanReport, picks: Iterable[Plan] = (), *, capacity_of: CapacityOf = lambda _: None
) -> dict[str, Any]:
    """`picks` are the plans that the wanted replicas would take, `capacity_of` tells what a plan could
    serve at most; None where that is not known."""
    wish = report.requirement
    chosen = tuple(picks)
    return {
        "schema": SCHEMA,
        "model": wish.model,
        "objective": wish.objective.value,
        "budget_usd_per_day": None if wish.budget is None else _amount(wish.budget.per_day.amount),
        "floors": {
            "precisions": [each.value for each in wish.precisions],
            "checkpoints": list(wish.checkpoints),
            "context_tokens": wish.min_context_tokens,
            "decode_tokens_per_s": wish.min_decode_tokens_per_s,
            "reliability": None if wish.min_reliability is None else _amount(wish.min_reliability),
            "countries": list(wish.countries),
            "gpu": wish.gpu,
            "spot": "only" if wish.spot_only else "also" if wish.spot else "no",
            "load_tokens_per_day": wish.load_tokens_per_day,
            "excluded_servers": list(wish.excluded_servers),
        },
        "offers_seen": report.offers_seen,
        "plans": [_plan(each, report, capacity_of) for each in report.plans],
        "replicas": [each.key for each in chosen],
        "pareto": list(report.pareto),
        "over_budget": [_plan(each, report, capacity_of) for each in report.over_budget],
        "refusals": [
            {"code": each.code, "count": each.count, "nearest": each.text, "example": each.example}
            for each in report.refusals
        ],
        "advice": list(report.advice),
    }


def _plan(plan: Plan, report: PlanReport, capacity_of: CapacityOf) -> dict[str, Any]:
    most = capacity_of(plan)
    offer, setup, speed, price = plan.offer, plan.setup, plan.speed, plan.price
    return {
        "key": plan.key,
        "is_pareto": plan.key in report.pareto,
        "reasons": list(plan.reasons),
        "server": {
            "id": offer.server_id,
            "owner": offer.owner_id,
            "gpus": offer.gpu_summary,
            "gpu_count": offer.gpu_count,
            "cpu": offer.cpu_model,
            "ram_bytes": offer.ram_bytes,
            "disk_free_bytes": offer.disk_free_bytes,
            "down_mbit_s": None if offer.down_mbit_s is None else _amount(offer.down_mbit_s),
            "country": offer.country,
            "reliability": None if offer.reliability is None else _amount(offer.reliability),
            "flags": [each.code for each in offer.flags],
        },
        "setup": {
            "checkpoint": setup.checkpoint,
            "precision": setup.precision.value,
            "repo": setup.repo,
            "checkpoint_bytes": setup.checkpoint_bytes,
            "engine": setup.engine.value,
            "image": setup.image,
            "gpus_used": setup.tensor_parallel,
            "context_tokens": setup.context_tokens,
            "concurrency": setup.concurrency,
            "most_context_tokens": None if most is None else most[0],
            "most_requests": None if most is None else most[1],
            "kv_dtype": setup.kv_dtype,
            "layers_with_experts_in_ram": len(setup.experts_in_ram),
            "speculation": None if setup.speculation is None else setup.speculation.algorithm,
        },
        "memory": {
            "margin_bytes": plan.fit.margin_bytes,
            "per_gpu": _terms(plan.fit.memory_per_gpu),
            "ram": _terms(plan.fit.ram),
            "disk": _terms(plan.fit.disk),
        },
        "speed": {
            "decode_tokens_per_s": round(speed.decode_tokens_per_s, 3),
            "throughput_tokens_per_s": None
            if speed.throughput_tokens_per_s is None
            else round(speed.throughput_tokens_per_s, 3),
            "mark": speed.mark.value,
            "terms": _terms(speed.terms),
        },
        "price": {
            "all_in_usd_per_day": _amount(price.all_in_usd_per_day.amount),
            "first_day_usd": _amount(price.first_day_usd),
            "running_usd_per_day": _amount(price.running_usd_per_day),
            "usd_per_million_tokens": None
            if price.usd_per_million_tokens is None
            else _amount(price.usd_per_million_tokens),
            "copies_for_load": price.copies_for_load,
            "break_even_tokens_per_day": price.break_even_tokens_per_day,
            "is_break_even_in_reach": price.is_break_even_in_reach,
            "billed_per_day": _amount(price.billed.amount),
            "currency": price.billed.currency.value,
            "is_spot": price.is_spot,
            "fee_percent": _amount(price.fee_percent),
            "creation_fee": _amount(price.creation_fee),
            "usd_per_unit": _amount(price.usd_per_unit),
            "rate_source": price.rate_source,
            "wallet_lacks": None if price.lacking is None else _amount(price.lacking.amount),
            "terms": _terms(price.terms),
        },
    }


def _terms(terms: Iterable[Term]) -> list[dict[str, str]]:
    return [
        {
            "name": each.name,
            "value": _amount(each.value),
            "unit": each.unit,
            "mark": each.mark.value,
            "source": each.source,
        }
        for each in terms
    ]


def _amount(value: Decimal) -> str:
    """All digits, never an exponent."""
    return f"{value:f}"

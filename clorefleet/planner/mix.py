"""Which servers to take together: the cheapest set that carries the load. An integer program, solved by
HiGHS.

    minimise    all-in price of what is taken
    where       capacities taken  >=  the capacity asked for
                servers taken     <=  the most replicas
                running prices    <=  what the budget leaves
                of one owner      <=  `per_owner` (one line, one switch: they fail together)

Servers of one owner with the same price and capacity are one whole-number variable. The solver works in
floating point; what it answers is counted again here in exact numbers before anybody believes it, and its
status is read rather than assumed. Where it is not there or not done in time, a greedy choice stands in and
says so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum

from clorefleet.domain.identity import OwnerId
from clorefleet.domain.plan import Plan

TIME_LIMIT_S = 5.0
PLANS_MAX = 400
"""The best by price per capacity and by price; more do not change the answer by anything that matters."""


class Method(StrEnum):
    OPTIMAL = "optimal"
    GREEDY = "greedy"


@dataclass(frozen=True, slots=True)
class Mix:
    plans: tuple[Plan, ...]
    """Cheapest per capacity first: the order to rent in."""
    capacity_tokens_per_s: float
    usd_per_day: Decimal
    """All in."""
    method: Method
    reason: str
    """Why not optimal, or what binds; "" when nothing does."""
    shortfall_tokens_per_s: float = 0.0
    """Of the capacity asked for, what nothing allowed carries."""


@dataclass(frozen=True, slots=True)
class _Kind:
    """Servers that differ in nothing that counts here."""

    plans: tuple[Plan, ...]
    owner: OwnerId | None
    capacity: float
    all_in: Decimal
    running: Decimal


def capacity_of(plan: Plan) -> float:
    """Predicted tokens/s at full batch."""
    return plan.speed.throughput_tokens_per_s or plan.speed.decode_tokens_per_s


def choose_mix(
    plans: Sequence[Plan],
    capacity_tokens_per_s: float,
    *,
    replicas_max: int,
    replicas_min: int = 1,
    budget_usd_per_day: Decimal | None = None,
    per_owner: int | None = None,
) -> Mix:
    """The cheapest allowed set that carries the capacity; else the one that carries most of it.

    Args:
        plans: one per server, that may be rented now.
        budget_usd_per_day: for the running prices of what is taken.
        per_owner: None = any number. An owner that the market does not name counts as one owner.
    """
    kinds = _kinds(plans, per_owner)
    limits = _Limits(capacity_tokens_per_s, replicas_min, replicas_max, budget_usd_per_day, per_owner)
    if not kinds or replicas_max < 1:
        return Mix((), 0.0, Decimal(0), Method.GREEDY, "no server may be taken", capacity_tokens_per_s)
    why = ""
    try:
        counts, why = _solved(kinds, limits)
    except ImportError:
        counts, why = None, "the solver is not installed"
    if counts is not None and limits.allow(kinds, counts):
        return _mix(kinds, counts, limits, Method.OPTIMAL, "")
    counts = _greedy(kinds, limits)
    return _mix(kinds, counts, limits, Method.GREEDY, why or "the solver's answer broke a limit")


@dataclass(frozen=True, slots=True)
class _Limits:
    capacity: float
    replicas_min: int
    replicas_max: int
    budget: Decimal | None
    per_owner: int | None

    def allow(self, kinds: Sequence[_Kind], counts: Sequence[int]) -> bool:
        """Everything but the capacity, in exact numbers."""
        if not self.replicas_min <= sum(counts) <= self.replicas_max:
            return False
        return self.leave_room(kinds, counts)

    def leave_room(self, kinds: Sequence[_Kind], counts: Sequence[int]) -> bool:
        running = sum((kind.running * n for kind, n in zip(kinds, counts, strict=True)), Decimal(0))
        if self.budget is not None and running > self.budget:
            return False
        by_owner: dict[OwnerId | None, int] = {}
        for kind, n in zip(kinds, counts, strict=True):
            if not 0 <= n <= len(kind.plans):
                return False
            by_owner[kind.owner] = by_owner.get(kind.owner, 0) + n
        return self.per_owner is None or all(n <= self.per_owner for n in by_owner.values())


def _kinds(plans: Sequence[Plan], per_owner: int | None) -> list[_Kind]:
    kept = list(plans)
    if len(kept) > PLANS_MAX:
        by_value = sorted(
            kept, key=lambda p: p.price.all_in_usd_per_day.amount / Decimal(str(capacity_of(p)))
        )
        by_price = sorted(kept, key=lambda p: p.price.all_in_usd_per_day.amount)
        chosen = {id(p) for p in (*by_value[: PLANS_MAX // 2], *by_price[: PLANS_MAX // 2])}
        kept = [p for p in kept if id(p) in chosen]
    groups: dict[tuple[OwnerId | None, float, Decimal, Decimal], list[Plan]] = {}
    for plan in kept:
        owner = plan.offer.owner_id if per_owner is not None else None
        price = plan.price
        key = (owner, capacity_of(plan), price.all_in_usd_per_day.amount, price.running_usd_per_day)
        groups.setdefault(key, []).append(plan)
    return [_Kind(tuple(group), *key) for key, group in groups.items() if key[1] > 0]


def _solved(kinds: Sequence[_Kind], limits: _Limits) -> tuple[list[int] | None, str]:
    import highspy

    solver = highspy.Highs()  # type: ignore[no-untyped-call]
    solver.silent()
    solver.setOptionValue("time_limit", TIME_LIMIT_S)
    solver.setOptionValue("mip_rel_gap", 0.0)
    solver.setOptionValue("threads", 1)
    columns = list(range(len(kinds)))
    for column, kind in zip(columns, kinds, strict=True):
        solver.addVar(0.0, float(min(len(kind.plans), limits.replicas_max)))
        solver.changeColCost(column, float(kind.all_in))
        solver.changeColIntegrality(column, highspy.HighsVarType.kInteger)
    infinity = highspy.kHighsInf

    def row(low: float, high: float, values: Sequence[float], of: Sequence[int]) -> None:
        solver.addRow(low, high, len(of), list(of), list(values))

    row(limits.capacity * (1 - 1e-9), infinity, [kind.capacity for kind in kinds], columns)
    row(float(limits.replicas_min), float(limits.replicas_max), [1.0] * len(kinds), columns)
    if limits.budget is not None:
        row(-infinity, float(limits.budget) * (1 + 1e-12), [float(kind.running) for kind in kinds], columns)
    if limits.per_owner is not None:
        for owner in {kind.owner for kind in kinds}:
            of = [column for column in columns if kinds[column].owner == owner]
            row(-infinity, float(limits.per_owner), [1.0] * len(of), of)
    solver.run()
    status = solver.getModelStatus()
    if status == highspy.HighsModelStatus.kOptimal:
        return [round(value) for value in solver.getSolution().col_value], ""
    words = solver.modelStatusToString(status).lower()
    if status == highspy.HighsModelStatus.kInfeasible:
        return None, "no allowed set carries the load"
    return None, f"the solver stopped: {words}"


def _greedy(kinds: Sequence[_Kind], limits: _Limits) -> list[int]:
    """By price per token of what is still needed, one at a time, while the limits allow."""
    counts = [0] * len(kinds)
    carried = 0.0
    while sum(counts) < limits.replicas_max and (
        carried < limits.capacity or sum(counts) < limits.replicas_min
    ):
        missing = max(limits.capacity - carried, 1e-9)
        best: int | None = None
        best_value = math.inf
        for index, kind in enumerate(kinds):
            tried = [*counts[:index], counts[index] + 1, *counts[index + 1 :]]
            value = float(kind.all_in) / min(kind.capacity, missing)
            if value < best_value and limits.leave_room(kinds, tried):
                best, best_value = index, value
        if best is None:
            break
        counts[best] += 1
        carried += kinds[best].capacity
    return counts


def _mix(kinds: Sequence[_Kind], counts: Sequence[int], limits: _Limits, method: Method, reason: str) -> Mix:
    taken = [
        (kind, plan)
        for kind, n in zip(kinds, counts, strict=True)
        for plan in sorted(kind.plans, key=lambda each: each.offer.server_id)[:n]
    ]
    taken.sort(key=lambda each: (float(each[0].all_in) / each[0].capacity, each[1].offer.server_id))
    capacity = sum(kind.capacity for kind, _ in taken)
    return Mix(
        plans=tuple(plan for _, plan in taken),
        capacity_tokens_per_s=capacity,
        usd_per_day=sum((kind.all_in for kind, _ in taken), Decimal(0)),
        method=method,
        reason=reason,
        shortfall_tokens_per_s=max(0.0, limits.capacity - capacity),
    )

"""What perfect foresight would have paid: an integer program over the whole time, solved by HiGHS.

    minimise   sum over steps t and levels k of  price x step x y[t,k]  +  start x s[t,k]
    where      y[t,k] = 1 when at least k replicas serve in step t,   y[t,k] <= y[t,k-1]
               s[t,k] >= y[t,k] - y[t-1,k]                            the k-th is started before step t
               sum of requests that are late  <=  the share that the compared policy had

A start costs the same as in the replay: the paid start-up and the creation fee. The late requests of k
replicas in a step are the same function of the same load as in the replay (`queue.py`), without any backlog
from before. What is returned beside the solution is the solver's own proven bound: no schedule can cost
less, whatever its status.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import pairwise

from clorefleet.domain.load import MINUTE_S, weighted_tokens
from clorefleet.simulation.traffic.queue import pass_minute
from clorefleet.simulation.traffic.replay import Service
from clorefleet.simulation.traffic.week import Weeks

STEP_MINUTES = 10
TIME_LIMIT_S = 300.0
GAP = 0.002
_FEW = 0.01
"""Requests of a step that are not worth a variable."""


@dataclass(frozen=True, slots=True)
class Optimum:
    """Simulated."""

    usd: Decimal | None
    """Of the best schedule found; None where the time ran out before there was one."""
    bound_usd: Decimal
    """No schedule costs less."""
    is_proven: bool
    """The solver says optimal, within `GAP`."""
    status: str
    serving: tuple[int, ...]
    """By the minute; empty without a schedule."""


def optimum(
    weeks: Weeks,
    service: Service,
    usd_per_day: Decimal,
    *,
    late_max: float,
    measured_from: int = 0,
    replicas_min: int = 0,
    time_limit_s: float = TIME_LIMIT_S,
) -> Optimum | None:
    """
    Args:
        late_max: share of the requests that may be late: that of the policy it is compared with.

    Returns:
        None when the solver proved nothing; its status is in no way taken on trust.
    """
    import highspy
    import numpy as np

    late = _late_requests(weeks, service, measured_from)
    levels = max(replicas_min, _levels(late))
    steps = len(late)
    step_usd = float(usd_per_day) * STEP_MINUTES / 1440
    start_usd = float(service.start_cost(usd_per_day).usd)
    total = sum(weeks.requests[measured_from:])
    solver = highspy.Highs()  # type: ignore[no-untyped-call]
    solver.silent()
    solver.setOptionValue("time_limit", time_limit_s)
    solver.setOptionValue("mip_rel_gap", GAP)
    solver.setOptionValue("threads", 1)
    count = steps * levels
    low = np.zeros(2 * count)
    for step in range(steps):
        low[step * levels : step * levels + replicas_min] = 1.0
    cost = np.concatenate([np.full(count, step_usd), np.full(count, start_usd)])
    solver.addVars(2 * count, low, np.ones(2 * count))
    solver.changeColsCost(2 * count, np.arange(2 * count, dtype=np.int32), cost)
    solver.changeColsIntegrality(
        count, np.arange(count, dtype=np.int32), np.full(count, highspy.HighsVarType.kInteger)
    )
    rows = _Rows()
    for step in range(steps):
        for level in range(levels):
            here = step * levels + level
            if level:
                rows.add({here: 1.0, here - 1: -1.0}, -solver.inf, 0.0)
            if step:  # what runs in the first step was there before, as in the replay
                rows.add({here: 1.0, here - levels: -1.0, count + here: -1.0}, -solver.inf, 0.0)
    gains = {
        step * levels + level: late[step][level] - late[step][level + 1]
        for step in range(steps)
        for level in range(levels)
        if late[step][level] - late[step][level + 1] > _FEW
    }
    unserved = sum(row[0] for row in late)
    rows.add(gains, unserved - late_max * total, solver.inf)
    rows.give(solver)
    solver.run()
    status = solver.modelStatusToString(solver.getModelStatus())
    info = solver.getInfo()
    bound = info.mip_dual_bound
    if info.primal_solution_status != 2:  # feasible: the status alone is not believed
        has_bound = np.isfinite(bound) and bound > 0
        return Optimum(None, Decimal(str(round(bound, 6))), False, status, ()) if has_bound else None
    values = np.rint(np.asarray(solver.getSolution().col_value[:count])).astype(int)
    serving = values.reshape(steps, levels).sum(axis=1)
    got_late = sum(late[step][serving[step]] for step in range(steps))
    if got_late > late_max * total + 1e-3:
        return None
    starts = int(np.maximum(0, np.diff(serving)).sum())
    found = float(serving.sum()) * step_usd + starts * start_usd
    return Optimum(
        usd=Decimal(str(round(found, 6))),
        bound_usd=Decimal(str(round(min(found, bound), 6))),
        is_proven=status == "Optimal",
        status=status,
        serving=tuple(int(n) for n in serving for _ in range(STEP_MINUTES)),
    )


class _Rows:
    """A sparse matrix by rows, as the solver takes it."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._columns: list[int] = []
        self._values: list[float] = []
        self._low: list[float] = []
        self._high: list[float] = []

    def add(self, row: dict[int, float], low: float, high: float) -> None:
        self._starts.append(len(self._columns))
        self._columns.extend(row.keys())
        self._values.extend(row.values())
        self._low.append(low)
        self._high.append(high)

    def give(self, solver: object) -> None:
        import numpy as np

        solver.addRows(  # type: ignore[attr-defined]
            len(self._starts),
            np.asarray(self._low),
            np.asarray(self._high),
            len(self._columns),
            np.asarray(self._starts, dtype=np.int32),
            np.asarray(self._columns, dtype=np.int32),
            np.asarray(self._values),
        )


def _late_requests(weeks: Weeks, service: Service, measured_from: int) -> list[list[float]]:
    """Of each step: late requests with 0, 1, ... replicas. Never more with more."""
    per_place = service.capacity.tokens_per_s / service.capacity.places
    table: list[list[float]] = []
    for first in range(measured_from, weeks.minutes, STEP_MINUTES):
        minutes = range(first, min(first + STEP_MINUTES, weeks.minutes))
        row = [0.0] * (service.replicas_max + 1)
        tokens = [weighted_tokens(weeks.prompt_tokens[m], weeks.generated_tokens[m]) for m in minutes]
        counts = [weeks.requests[m] for m in minutes]
        mean = sum(tokens) / max(1, sum(counts))
        for arrived, count in zip(tokens, counts, strict=True):
            for replicas in range(service.replicas_max + 1 if count else 0):
                passed = pass_minute(
                    replicas,
                    service.capacity,
                    tokens=arrived,
                    backlog_tokens=0.0,
                    service_s=max(1e-6, mean / per_place),
                    wait_s=service.slo_wait_s,
                )
                row[replicas] += passed.late * count
                if not passed.late:
                    break  # nor with more of them
        for replicas in range(1, len(row)):
            row[replicas] = min(row[replicas], row[replicas - 1])
        table.append(row)
    return table


def _levels(late: list[list[float]]) -> int:
    """The most replicas that ever make fewer requests late than one less."""
    return max(
        (level + 1 for row in late for level in range(len(row) - 1) if row[level] - row[level + 1] > _FEW),
        default=1,
    )


def cheapest_constant(weeks: Weeks, service: Service, *, late_max: float, measured_from: int = 0) -> int:
    """The fewest replicas that, always on, keep `late_max` over the measured time."""
    late = _late_requests(weeks, service, measured_from)
    total = sum(weeks.requests[measured_from:])
    return next(
        (
            replicas
            for replicas in range(1, service.replicas_max + 1)
            if sum(row[replicas] for row in late) <= late_max * total
        ),
        service.replicas_max,
    )


def serving_cost(serving: Sequence[int], usd_per_day: Decimal, service: Service) -> Decimal:
    """Of a schedule by the minute, with its starts."""
    starts = sum(max(0, after - before) for before, after in pairwise(serving))
    return usd_per_day * sum(serving) / (86_400 // MINUTE_S) + service.start_cost(usd_per_day).usd * starts

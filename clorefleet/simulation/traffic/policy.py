"""The policies that are compared. Those by load call the very functions that the daemon calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from clorefleet.domain.deployment import Deployment
from clorefleet.domain.load import MINUTE_S
from clorefleet.domain.wanted import IdleDecision, LoadDecision
from clorefleet.fleet import autoscale, idle
from clorefleet.fleet.autoscale import Load, ScaleDecision, ScaleRule
from clorefleet.fleet.follow import rule_of
from clorefleet.fleet.forecast import Forecast, bucket_of, forecast
from clorefleet.fleet.schedule import StartUp
from clorefleet.fleet.wanted import wanted
from clorefleet.planner.capacity import demand_carried
from clorefleet.simulation.traffic.replay import Service, Sight
from clorefleet.simulation.traffic.week import MINUTES_A_WEEK, Weeks

OFFICE_HOURS = range(7, 20)
"""Hours UTC, Monday to Friday, in which the clock's policy keeps its day's number."""


@dataclass(slots=True)
class AlwaysOn:
    replicas: int
    name: str = "always on"
    reason: str = ""

    def wanted(self, sight: Sight) -> int:
        return self.replicas


@dataclass(slots=True)
class ByClock:
    """One number in office hours, another else: what a careful person would write into cron."""

    by_day: int
    by_night: int
    lead: timedelta
    name: str = "cron"
    reason: str = ""

    def wanted(self, sight: Sight) -> int:
        # By day as soon as a server that is ordered now would serve by day.
        return max(self._at(sight.now), self._at(sight.now + self.lead))

    def _at(self, at: datetime) -> int:
        return self.by_day if at.weekday() < 5 and at.hour in OFFICE_HOURS else self.by_night


@dataclass(slots=True)
class ByLoad:
    """`fleet/autoscale.py`, and `fleet/idle.py` where there is an idle rule."""

    rule: ScaleRule
    service: Service
    replicas_min: int = 1
    idle_after: timedelta | None = None
    with_forecast: bool = False
    name: str = "load"
    reason: str = ""
    _forecast: Forecast | None = None
    _forecast_of: int = -1
    """The bucket in which it was made: the past does not change within one."""

    def _looked_ahead(self, sight: Sight) -> Forecast | None:
        if self.with_forecast and self._forecast_of != bucket_of(sight.now):
            self._forecast, self._forecast_of = forecast(sight.past, sight.now), bucket_of(sight.now)
        return self._forecast

    def decided(self, sight: Sight) -> ScaleDecision:
        load = Load(
            minutes=sight.minutes,
            capacity=self.service.capacity,
            start=self.service.start_cost(sight.usd_per_day),
            ages=sight.ages,
            tokens_per_request=sight.tokens_per_request,
            forecast=self._looked_ahead(sight),
        )
        return autoscale.decide(self.rule, load, now=sight.now)

    def wanted(self, sight: Sight) -> int:
        decision = self.decided(sight)
        self.reason = decision.reason
        wanted = max(decision.wanted, self.replicas_min)
        if wanted > 0 or self.idle_after is None:
            return max(1, wanted)
        use = idle.Use(sight.last_used if sight.ages else None, sight.starting)
        rest = idle.decide(self.idle_after, use, now=sight.now)
        self.reason = rest.reason
        return 0 if rest.is_idle or not sight.ages else len(sight.ages)


@dataclass(slots=True)
class AsWritten:
    """A fleet file's deployment: its schedule, scaling and idle rule, weighed as the daemon weighs them."""

    deployment: Deployment
    service: Service
    name: str = "as written"
    reason: str = ""
    _is_asleep: bool = False
    _load: ByLoad | None = None

    def wanted(self, sight: Sight) -> int:
        load, rest = self._load_decision(sight), self._idle_decision(sight)
        lead = timedelta(seconds=self.service.ready_after_s)
        break_even = self.service.start_cost(sight.usd_per_day).break_even
        found = wanted(
            self.deployment,
            sight.now,
            held=len(sight.ages),
            load=load,
            idle=rest,
            start_up=StartUp(lead, break_even, "predicted"),
        )
        self.reason = found.reason
        self._is_asleep = idle.is_sleep(found)
        return found.replicas

    def _load_decision(self, sight: Sight) -> LoadDecision | None:
        if self.deployment.scale is None:
            return None
        if not sight.ages:
            last = sight.minutes.last
            is_asked = last is not None and last.turned_away > 0
            return LoadDecision(1, "a request found no replica") if is_asked else None
        if self._load is None:
            rule = rule_of(self.deployment.scale, self.deployment.bounds.replicas_max)
            self._load = ByLoad(rule, self.service, 0, with_forecast=self.deployment.scale.forecast)
        decision = self._load.decided(sight)
        return LoadDecision(decision.wanted, decision.reason)

    def _idle_decision(self, sight: Sight) -> IdleDecision | None:
        if self.deployment.idle is None:
            return None
        last = sight.minutes.last
        if last is not None and last.turned_away:
            return IdleDecision(False, "a request asks for it")
        if not sight.ages and self._is_asleep:
            return IdleDecision(True, self.reason)
        use = idle.Use(sight.last_used if sight.ages else None, sight.starting)
        return idle.decide(self.deployment.idle.after, use, now=sight.now)


def size_always_on(weeks: Weeks, service: Service, needed: Sequence[int]) -> int:
    """The fewest replicas that would have kept the SLO throughout, seen in hindsight: a good guess of a
    careful person, and a cheap one."""
    ordered = sorted(zip(needed, weeks.requests, strict=True))
    allowed = (1 - service.slo_share) * sum(weeks.requests)
    late = 0
    for need, requests in reversed(ordered):
        late += requests
        if late > allowed:
            return max(1, need)
    return 1


def size_by_clock(weeks: Weeks, service: Service, needed: Sequence[int], name: str = "cron") -> ByClock:
    """The same by office hours and other hours."""

    def fewest(is_day: bool) -> int:
        minutes = [minute for minute in range(weeks.minutes) if _is_office(minute) == is_day]
        part = Weeks(
            weeks.begins_at,
            tuple(weeks.requests[m] for m in minutes),
            (),
            (),
            "",
        )
        return size_always_on(part, service, [needed[m] for m in minutes])

    return ByClock(fewest(True), fewest(False), timedelta(seconds=service.ready_after_s * 1.5), name)


def _is_office(minute: int) -> bool:
    in_week = minute % MINUTES_A_WEEK
    return in_week // 1440 < 5 and in_week % 1440 // 60 in OFFICE_HOURS


def needed_by_minute(weeks: Weeks, service: Service, tokens_per_request: float) -> list[int]:
    """Replicas that each minute's mean over five minutes needs within the SLO, up to the maximum."""
    from bisect import bisect_left

    from clorefleet.domain.load import weighted_tokens

    carried = [
        demand_carried(
            count,
            service.capacity,
            tokens_per_request=tokens_per_request,
            wait_s=service.slo_wait_s,
            late_max=1 - service.slo_share,
        )
        for count in range(1, service.replicas_max + 1)
    ]
    demand = [
        weighted_tokens(into, out) / MINUTE_S
        for into, out in zip(weeks.prompt_tokens, weeks.generated_tokens, strict=True)
    ]
    result = []
    for minute in range(len(demand)):
        window = demand[max(0, minute - 2) : minute + 3]
        mean = sum(window) / len(window)
        result.append(0 if mean <= 0 else min(service.replicas_max, bisect_left(carried, mean) + 1))
    return result

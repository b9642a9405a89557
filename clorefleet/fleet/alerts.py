"""What is worth telling a user who is not looking. Pure: events and a state in, alerts out, each with its
key.

A key stands for one occurrence and is never told twice: an event's number; a day and a share of a ceiling;
a change of a deployment's standing, which is written down in the same transaction as the alert that it made.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from decimal import Decimal

from clorefleet.domain.alert import Alert, AlertKind, Standing
from clorefleet.domain.deployment import Deployment, Desired
from clorefleet.domain.event import Event
from clorefleet.domain.identity import DeploymentId
from clorefleet.domain.lease import Lease, LeaseState, Phase
from clorefleet.domain.money import Budget, format_usd
from clorefleet.domain.text import clean_line
from clorefleet.domain.wanted import Wanted
from clorefleet.fleet.budget import midnight_utc

FAILURES = frozenset(
    {
        "server_failed",
        "order_lost",
        "order_reappeared",
        "foreign_order",
        "order_disowned",
        "deployment_gave_up",
        "renting_stopped",
        "fleet_file_not_followed",
    }
)
"""Names of the events that are told as failures."""
TEXT_CHARS_MAX = 500


def of_events(events: Iterable[tuple[int, Event]]) -> list[Alert]:
    return [
        Alert(
            key=f"event:{number}",
            kind=AlertKind.FAILURE,
            at=event.at,
            text=clean_line(event.text, max_chars=TEXT_CHARS_MAX),
            deployment_id=event.deployment_id,
        )
        for number, event in events
        if event.name in FAILURES
    ]


def of_budgets(
    deployments: Iterable[Deployment],
    spent_today_usd: Mapping[DeploymentId, Decimal],
    fleet_budget: Budget | None,
    fleet_spent_today_usd: Decimal,
    percents: Iterable[int],
    now: datetime,
) -> list[Alert]:
    """For each ceiling the highest share that the day (UTC) has reached."""
    found = []
    scopes: list[tuple[DeploymentId | None, Budget | None, Decimal]] = [
        (each.deployment_id, each.requirement.budget, spent_today_usd.get(each.deployment_id, Decimal(0)))
        for each in deployments
    ]
    scopes.append((None, fleet_budget, fleet_spent_today_usd))
    day = midnight_utc(now).date()
    for deployment_id, budget, spent in scopes:
        if budget is None:
            continue
        reached = [each for each in percents if spent * 100 >= budget.per_day.amount * each]
        if reached:
            name = deployment_id or "the fleet"
            text = (
                f"{name}: ${format_usd(spent)} was spent since midnight UTC, at least {max(reached)} % of "
                f"the ceiling of {budget}."
            )
            key = f"budget:{deployment_id or ''}:{day}:{budget}:{max(reached)}"
            found.append(Alert(key, AlertKind.BUDGET, now, text, deployment_id))
    return found


def of_standings(
    deployments: Iterable[Deployment],
    leases: Iterable[Lease],
    wanted: Mapping[DeploymentId, Wanted],
    before: Mapping[DeploymentId, Standing],
    now: datetime,
) -> tuple[dict[DeploymentId, Standing], list[Alert]]:
    """How many replicas of each deployment serve, against what is wanted and what served before.

    More being wanted is no loss, and neither is less: only a replica that is missing which served, and
    which is still wanted, is told.
    """
    after: dict[DeploymentId, Standing] = {}
    alerts = []
    everything = tuple(leases)
    for deployment in deployments:
        name = deployment.deployment_id
        count = wanted[name].replicas if name in wanted else deployment.replicas
        if deployment.desired is Desired.STOPPED or count == 0:
            continue
        serving = sum(1 for lease in everything if lease.deployment_id == name and _serves(lease))
        was = before.get(name)
        told: tuple[AlertKind, str] | None = None
        if serving >= count:
            after[name] = Standing(True, count)
            if was is None or (was.is_complete and was.serving < count):
                told = (AlertKind.READY, f"{name} is ready: {serving} of {count} replica(s) serve.")
            elif not was.is_complete:
                told = (AlertKind.REDUNDANCY, f"{name} is complete again: {serving} replica(s) serve.")
        elif was is None:
            continue
        elif was.is_complete and serving < min(was.serving, count):
            after[name] = Standing(False, was.serving)
            told = (
                AlertKind.REDUNDANCY,
                f"{name} has lost redundancy: {serving} of {count} replica(s) serve; others are being found.",
            )
        else:
            after[name] = was
        if told is not None:
            kind, text = told
            alerts.append(Alert(f"standing:{name}:{now.isoformat()}", kind, now, text, name))
    return after, alerts


def _serves(lease: Lease) -> bool:
    return (
        lease.state is LeaseState.ORDERED and lease.phase is Phase.SERVING and lease.unhealthy_since is None
    )

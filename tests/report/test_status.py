"""What `status` shows of a deployment, from the records alone."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal

import pytest

from clorefleet.domain.deployment import IdlePolicy
from clorefleet.domain.lease import Lease, Phase
from clorefleet.domain.ledger import LedgerSegment
from clorefleet.domain.money import Rate
from clorefleet.report.status import DeploymentStatus, fleet_status
from tests.fleet.builders import NOW, deployment, lease, minutes

HALF_AN_HOUR = IdlePolicy(timedelta(minutes=30))


def status(*leases: Lease, segments: tuple[LedgerSegment, ...] = (), **wish: object) -> DeploymentStatus:
    [found] = fleet_status([deployment(**wish)], leases, segments, now=NOW).deployments
    return found


def serving(**changes: object) -> Lease:
    return lease(phase=Phase.SERVING, phase_since=NOW - minutes(60), **changes)


def test_it_says_since_when_nobody_used_it_and_when_it_stops():
    found = status(serving(used_at=NOW - minutes(12)), idle=HALF_AN_HOUR)
    assert (found.unused_for, found.stops_in) == (minutes(12), minutes(18))


@pytest.mark.parametrize(
    "held, wish",
    [
        (serving(used_at=NOW - minutes(12)), {}),
        (serving(used_at=NOW - minutes(12)), {"idle": IdlePolicy(timedelta(minutes=30), floor=1)}),
        (serving(used_at=NOW - minutes(40)), {"idle": HALF_AN_HOUR}),
        (lease(phase=Phase.SYNCING), {"idle": HALF_AN_HOUR}),
    ],
    ids=["no rule", "the floor stays", "it is being given back", "it still starts"],
)
def test_it_promises_no_stop_that_will_not_come(held: Lease, wish: dict[str, object]):
    assert status(held, **wish).stops_in is None


def test_a_spot_order_that_waits_for_its_server_costs_nothing():
    waiting = serving(outbid_since=NOW - minutes(5))
    rate = Rate.per_day(0)
    segment = LedgerSegment(
        waiting.lease_id, waiting.deployment_id, waiting.order_id, rate, True, Decimal(0), Decimal(0),
        Decimal(1), "USD", NOW - minutes(5),
    )  # fmt: skip
    found = status(waiting, segments=(segment,))
    assert found.usd_per_day == 0 and found.replicas[0].outbid_since == waiting.outbid_since

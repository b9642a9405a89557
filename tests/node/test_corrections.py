"""An engine that dies on a rented server, from its log to the launch that holds (in the sandbox).

The stand-in fails by its own memory arithmetic, which is not the planner's. What is decided is decided by the
fleet's own functions; only the market is left out.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from clorefleet.config.recipes import load_recipes
from clorefleet.domain.failure import Cause, Correction
from clorefleet.domain.identity import LeaseId
from clorefleet.domain.lease import Lease, Phase
from clorefleet.domain.node import JobState, NodeView
from clorefleet.domain.order import SshAddress
from clorefleet.domain.recipe import EngineName
from clorefleet.domain.setup import Setup
from clorefleet.fleet import failover
from clorefleet.fleet.action import Advance, GiveBack, StartWork
from clorefleet.fleet.limits import DEFAULT_LIMITS
from clorefleet.node.keys import startup_command
from clorefleet.node.operator import NodeOperator
from clorefleet.node.session import shell
from clorefleet.sandbox.truth import ServerTruth, TrueGpu
from tests.fleet.builders import lease as make_lease
from tests.fleet.builders import offer, order, plan
from tests.node.test_operator import hub  # noqa: F401
from tests.node.world import collect_now
from tests.sandbox.node_world import TWO_4090, RunningRack, tiny_assets

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
LIMIT_S = 120.0
RECIPE = load_recipes()["glm-4.7-flash"]
H100 = TrueGpu("NVIDIA H100 80GB HBM3", 81_559, "9.0", 3350, 5, 16, 700, nvlink=True)
ONE_H100 = replace(TWO_4090, gpus=(H100,), ram_bytes=256 << 30, disk_free_bytes=2_000 << 30, disk_mb_s=20_000)


def setup(engine: EngineName, **changes: object) -> Setup:
    support, checkpoint = RECIPE.engine(engine), RECIPE.checkpoint("bf16")
    base = replace(
        plan().setup,
        model=RECIPE.name,
        checkpoint=checkpoint.key,
        precision=checkpoint.precision,
        layout=checkpoint.layout,
        repo=checkpoint.repo,
        files=checkpoint.files,
        checkpoint_bytes=checkpoint.bytes,
        engine=engine,
        image=support.image,
        context_tokens=65_536,
        context_floor_tokens=16_384,
        concurrency=1,
    )
    return replace(base, **changes)  # type: ignore[arg-type]


@dataclass
class Rented:
    """One server with one lease, and the fleet's decisions carried out on it."""

    operator: NodeOperator
    lease: Lease
    address: SshAddress
    told: list[NodeView]

    def look(self) -> NodeView:
        return self.operator.look(self.lease, order(ssh=self.address))

    def until_done(self, phase: Phase) -> NodeView:
        """The first look at the phase that shows its end, good or bad."""
        self.lease = replace(self.lease, phase=phase)
        deadline_s = time.monotonic() + LIMIT_S
        while True:
            view = self.look()
            ended = view.job is not None and view.job.state is not JobState.RUNNING
            if ended or view.is_healthy or view.host_key or view.job_cause is not None:
                return view
            assert time.monotonic() < deadline_s, view
            time.sleep(0.1)

    def start(self, phase: Phase) -> None:
        self.operator.start_work(self.lease, phase, self.lease.launches)

    def launch(self) -> NodeView | GiveBack:
        """Launch, correct and launch again as the fleet does: ready, or given back."""
        self.lease = replace(self.lease, launches=1)
        self.start(Phase.LAUNCHING)
        while True:
            view = self.until_done(Phase.LAUNCHING)
            if view.is_healthy:
                return view
            self.told.append(view)
            *_, step = failover.restart(self.lease, view, DEFAULT_LIMITS)
            if isinstance(step, GiveBack):
                return step
            assert isinstance(step, StartWork)
            made = () if step.correction is None else (step.correction,)
            corrections = (*self.lease.corrections, *made)
            self.lease = replace(self.lease, launches=step.attempt, corrections=corrections)
            self.start(step.phase)
            if step.phase is Phase.SYNCING:
                synced = self.until_done(Phase.SYNCING)
                assert synced.job is not None and synced.job.state is JobState.SUCCEEDED, synced
                self.start(Phase.LAUNCHING)

    def verified(self) -> NodeView:
        """The look that brings the result of the checks, all of which are passed."""
        self.lease = replace(self.lease, phase=Phase.VERIFYING)
        deadline_s = time.monotonic() + LIMIT_S
        while (view := self.look()).answered is None and time.monotonic() < deadline_s:
            time.sleep(0.2)
        assert view.answered, view
        return view


@contextlib.contextmanager
def rented(hub_url: str, folder: Path, state: Path, wanted: Setup, truth: ServerTruth) -> Iterator[Rented]:
    rack = RunningRack(state / "nodes", tiny_assets(folder), hub_url=hub_url)
    the_plan = replace(plan(), setup=wanted, offer=offer(cuda_version=(13, 0)))
    operator = NodeOperator(
        state / "state", hub_url=hub_url, recipes=load_recipes(), allow_loopback=True, known_answers=()
    )
    try:
        lease_id = LeaseId("corrected")
        credentials = operator.prepare(lease_id)
        port = rack.start(
            900,
            image=wanted.image,
            truth=truth,
            env={"CLOREFLEET_NONCE": credentials.nonce},
            ssh_key=credentials.ssh_public_key,
            command=startup_command(credentials),
            autossh=True,
        )
        address = SshAddress(("127.0.0.1",), port)
        here = Rented(operator, make_lease(plan=the_plan, lease_id=lease_id, address=address), address, [])
        view = here.until_done(Phase.WAITING)
        here.lease = replace(here.lease, host_key=view.host_key, launches=1)
        here.lease = replace(here.lease, phase=Phase.SYNCING)
        here.start(Phase.SYNCING)
        synced = here.until_done(Phase.SYNCING)
        assert synced.job is not None and synced.job.state is JobState.SUCCEEDED, synced
        yield here
    finally:
        operator.close()
        rack.call(rack.rack.close())
        rack.call(collect_now())
        rack.close()


Hub = tuple[str, object, Path]


def test_graphs_that_do_not_fit_are_cured_by_a_lower_memory_fraction(hub: Hub, tmp_path: Path):  # noqa: F811
    wanted = setup(EngineName.SGLANG, memory_fraction=0.97)
    with rented(hub[0], hub[2], tmp_path, wanted, ONE_H100) as here:
        ready = here.launch()
        assert isinstance(ready, NodeView), ready
        assert [view.job_cause for view in here.told] == [Cause.OUT_OF_VRAM]
        assert here.lease.corrections == (Correction.LOWER_MEMORY_FRACTION,)
        # The promises still hold: what the recipe's parsers do is asked of the corrected engine.
        assert isinstance(failover.verified(here.lease, here.verified(), DEFAULT_LIMITS), Advance)


def test_a_context_too_long_is_cured_by_a_shorter_one_in_chunks(hub: Hub, tmp_path: Path):  # noqa: F811
    wanted = setup(EngineName.VLLM, memory_fraction=0.84, context_tokens=131_072)
    with rented(hub[0], hub[2], tmp_path, wanted, ONE_H100) as here:
        ready = here.launch()
        assert isinstance(ready, NodeView), ready
        assert here.told[0].job_cause is Cause.CONTEXT_TOO_LONG
        assert here.lease.corrections[0] is Correction.SHORTER_CONTEXT


def test_what_no_correction_cures_is_given_back_and_excludes_its_like(hub: Hub, tmp_path: Path):  # noqa: F811
    """62 GB of weights on 24 GB: each correction is tried once, then the server goes back."""
    small = replace(TWO_4090, disk_free_bytes=2_000 << 30, ram_bytes=256 << 30)
    wanted = setup(EngineName.SGLANG, memory_fraction=0.88)
    with rented(hub[0], hub[2], tmp_path, wanted, small) as here:
        given = here.launch()
        assert isinstance(given, GiveBack) and given.cause is Cause.OUT_OF_VRAM and not given.blocks_host
        assert here.lease.corrections == (Correction.LOWER_MEMORY_FRACTION, Correction.SHORTER_CONTEXT)
        assert len(here.told) == 3


def test_a_driver_too_old_costs_one_launch_and_excludes_by_cuda(hub: Hub, tmp_path: Path):  # noqa: F811
    old = replace(ONE_H100, cuda_version="12.4", driver_version="550.54.15")
    with rented(hub[0], hub[2], tmp_path, setup(EngineName.SGLANG), old) as here:
        given = here.launch()
        assert isinstance(given, GiveBack) and given.cause is Cause.DRIVER_TOO_OLD
        assert len(here.told) == 1 and not given.blocks_host


def test_weights_damaged_on_the_servers_disk_are_fetched_again(hub: Hub, tmp_path: Path):  # noqa: F811
    """Only the damaged file; the folder is the same, and the engine then loads from it."""
    with rented(hub[0], hub[2], tmp_path, setup(EngineName.SGLANG), ONE_H100) as here:
        damage = """
        f=$(find .clorefleet/weights -name '*.safetensors' | sort | head -n 1)
        printf XXXXXXXX | dd of="$f" bs=1 conv=notrunc 2>/dev/null && stat -c %i "$f"
        """
        session = here.operator._session_to(here.lease)
        session.run_ok(shell(damage))
        ready = here.launch()
        assert isinstance(ready, NodeView), ready
        assert here.told[0].job_cause is Cause.BAD_CHECKPOINT
        assert here.lease.corrections == (Correction.FETCH_AGAIN,)
        said = session.run_ok(shell("cat .clorefleet/jobs/*-syncing-again-1/log"))
        assert said.count("damaged on this disk") == 1 and "complete:" in said


def test_a_gpu_that_is_far_slower_than_its_name_is_given_back_by_its_speed(hub: Hub, tmp_path: Path):  # noqa: F811
    """In the sandbox too: the stand-in tells what its hardware would do, however busy this machine is."""
    throttled = replace(ONE_H100, gpus=(replace(H100, memory_bandwidth_gb_s=400),))
    said = []
    for truth in (ONE_H100, throttled):
        with rented(hub[0], hub[2], tmp_path / str(len(said)), setup(EngineName.SGLANG), truth) as here:
            assert isinstance(here.launch(), NodeView)
            view = here.verified()
            assert view.simulated_tokens_per_s is not None
            said.append(view.simulated_tokens_per_s)
            speed = replace(here.lease.plan.speed, decode_tokens_per_s=said[0])
            lease = replace(here.lease, plan=replace(here.lease.plan, speed=speed))
            found = failover.verified(lease, view, DEFAULT_LIMITS)
            assert isinstance(found, Advance if truth is ONE_H100 else GiveBack), found
    assert isinstance(found, GiveBack) and found.cause is Cause.TOO_SLOW and "simulated" in found.reason


def test_a_taken_port_is_cured_by_another(hub: Hub, tmp_path: Path):  # noqa: F811
    with rented(hub[0], hub[2], tmp_path, setup(EngineName.SGLANG), ONE_H100) as here:
        with socket.create_server(("127.0.0.1", here.lease.engine_port)):
            ready = here.launch()
        assert isinstance(ready, NodeView), ready
        assert here.lease.corrections == (Correction.OTHER_PORT,)


@pytest.mark.parametrize(
    "lie, cause",
    [
        ("dead_gpu", Cause.GPU_DEAD),
        ("drops_tool_calls", Cause.TOOL_CALLS_DROPPED),
        ("empty_thinking", Cause.NO_THINKING),
    ],
)
def test_an_engine_that_calls_itself_healthy_and_is_not_is_found_out(
    hub: Hub,  # noqa: F811
    tmp_path: Path,
    lie: str,
    cause: Cause,
):
    """F16."""
    truth = replace(ONE_H100, lies=frozenset({lie}))
    with rented(hub[0], hub[2], tmp_path, setup(EngineName.SGLANG), truth) as here:
        assert isinstance(here.launch(), NodeView)
        here.lease = replace(here.lease, phase=Phase.VERIFYING)
        deadline_s = time.monotonic() + LIMIT_S
        while (view := here.look()).job_cause is None and time.monotonic() < deadline_s:
            assert not view.answered
            time.sleep(0.2)
        assert view.is_healthy and view.job_cause is cause, view

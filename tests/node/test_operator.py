"""A replica's way over a real node, from first contact to an answer; and what looks say when it fails."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import pytest
import uvicorn

from clorefleet.config.recipes import load_recipes
from clorefleet.domain.errors import NodeUnreachable, WeightsFailed
from clorefleet.domain.identity import LeaseId
from clorefleet.domain.lease import Lease, Phase
from clorefleet.domain.node import JobState, NodeView
from clorefleet.domain.order import Order, SshAddress
from clorefleet.node.keys import startup_command
from clorefleet.node.log_tails import read_log_tail
from clorefleet.node.operator import NodeOperator, read_engine_log
from clorefleet.node.session import NodeSession
from clorefleet.sandbox.hub import HubFaults, hub_app
from clorefleet.sandbox.lines import NodeLines
from tests.fleet.builders import lease as make_lease
from tests.fleet.builders import offer
from tests.fleet.builders import order as make_order
from tests.fleet.builders import plan as make_plan
from tests.node.world import collect_now
from tests.sandbox.node_world import TWO_4090, RunningRack, tiny_assets

ORDER_ID = 900
LIMIT_S = 40.0
LEASE_ID = LeaseId("operated")
"""Of these tests alone: an engine's port follows from it, and others run beside them."""


@dataclass
class World:
    """A hub, a rented node and the operator of a daemon."""

    rack: RunningRack
    hub_url: str
    faults: HubFaults
    state_dir: Path
    lease: Lease
    order: Order

    def operator(self) -> NodeOperator:
        return NodeOperator(
            self.state_dir,
            hub_url=self.hub_url,
            recipes=load_recipes(),
            allow_loopback=True,
            known_answers=(),  # the tests' model says nothing that has sense
        )


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, HubFaults, Path]]:
    folder = tmp_path_factory.mktemp("hub")
    faults = HubFaults()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        app = hub_app(assets=tiny_assets(folder), lines=NodeLines(), faults=faults)
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", faults, folder
        server.should_exit = True
        thread.join(10)


@pytest.fixture
def world(hub: tuple[str, HubFaults, Path], tmp_path: Path) -> Iterator[World]:
    url, faults, folder = hub
    rack = RunningRack(tmp_path / "nodes", tiny_assets(folder), hub_url=url)
    state_dir = tmp_path / "state"
    the_plan = replace(make_plan(), offer=offer(ram_bytes=TWO_4090.ram_bytes, disk_free_bytes=10**11))
    try:
        world = World(
            rack, url, faults, state_dir, make_lease(plan=the_plan, lease_id=LEASE_ID), make_order()
        )
        credentials = world.operator().prepare(LEASE_ID)
        port = rack.start(
            ORDER_ID,
            image=the_plan.setup.image,
            env={"CLOREFLEET_NONCE": credentials.nonce},
            ssh_key=credentials.ssh_public_key,
            command=startup_command(credentials),
            autossh=True,
        )
        world.order = make_order(ssh=SshAddress(("127.0.0.1",), port))
        yield world
    finally:
        rack.call(rack.rack.close())
        rack.call(collect_now())
        rack.close()


def until(look: Callable[[], NodeView], is_enough: Callable[[NodeView], bool]) -> NodeView:
    deadline_s = time.monotonic() + LIMIT_S
    while True:
        view = look()
        if is_enough(view) or time.monotonic() > deadline_s:
            return view
        time.sleep(0.05)


def test_a_key_that_another_machine_has_is_told_from_one_that_was_never_made(tmp_path: Path):
    """C1, C3: the one may have been sent to the market, the other was not."""
    first, second = (
        NodeOperator(tmp_path / name, hub_url="http://127.0.0.1:9", recipes={}, allow_loopback=True)
        for name in ("first", "second")
    )
    lease = make_lease(phase=Phase.SERVING, key_place=first.key_place())
    for operator, lacks_key in ((first, True), (second, False)):
        view = operator.look(lease, make_order())
        assert (view.lacks_key, view.key_is_elsewhere) == (lacks_key, not lacks_key)
        assert view.is_healthy is False and view.host_key == ""
        operator.close()


def test_the_whole_way_with_a_new_daemon_at_every_phase(world: World):
    """C1: nothing that a phase needs is in a process that may die."""
    lease, order = replace(world.lease, launches=1), world.order

    def at(phase: Phase, operator: NodeOperator, is_enough: Callable[[NodeView], bool]) -> NodeView:
        return until(lambda: operator.look(replace(lease, phase=phase), order), is_enough)

    view = at(Phase.WAITING, world.operator(), lambda view: bool(view.host_key))
    lease = replace(lease, host_key=view.host_key, address=order.ssh)

    view = at(Phase.PROBING, world.operator(), lambda view: view.facts is not None)
    assert view.facts is not None and len(view.facts.gpus) == 2
    assert [each for each in view.discrepancies if each.is_fatal] == []

    view = at(Phase.INSTALLING, world.operator(), lambda view: view.engine_missing is not None)
    assert view.engine_missing == ""

    operator = world.operator()
    assert at(Phase.SYNCING, operator, lambda _: True).job.state is JobState.ABSENT  # type: ignore[union-attr]
    for _ in range(2):
        operator.start_work(lease, Phase.SYNCING, 1)
    operator.close()
    view = at(Phase.SYNCING, world.operator(), lambda view: view.job.state is not JobState.RUNNING)  # type: ignore[union-attr]
    assert view.job is not None and view.job.state is JobState.SUCCEEDED, view.job
    assert view.job.progress_done == view.job.progress_total

    world.faults.refuse_next = 10_000  # the hub is not needed any more
    try:
        world.operator().start_work(lease, Phase.LAUNCHING, 1)
    finally:
        world.faults.refuse_next = 0
    operator = world.operator()
    view = at(Phase.LAUNCHING, operator, lambda view: bool(view.is_healthy) or view.job_diagnosis != "")
    assert view.is_healthy, view
    view = at(Phase.VERIFYING, operator, lambda view: view.answered is not None)
    assert view.answered and (view.measured_tokens_per_s or 0) > 0, view.trouble

    backend = operator.backend(lease)
    assert backend is not None
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(backend.socket))) as client:
        assert client.get("http://node/health").status_code == 200
    keys = operator.prepare(LEASE_ID)
    assert keys == world.operator().prepare(LEASE_ID)
    operator.forget(LEASE_ID)
    assert not backend.socket.exists()
    kept = [path.name for path in world.state_dir.rglob("*") if path.is_file()]
    assert kept == [f"{LEASE_ID}.log"] and read_log_tail(world.state_dir, LEASE_ID) != ()


def test_a_node_that_another_host_key_answers_for_is_hostile(world: World):
    """F5."""
    other = "ssh-ed25519 " + world.operator().prepare(LeaseId("x")).ssh_public_key.split()[1]
    view = world.operator().look(replace(world.lease, host_key=other, phase=Phase.PROBING), world.order)
    assert view.is_hostile and "host key" in view.trouble


def test_an_address_in_our_own_network_is_hostile_outside_the_sandbox(world: World):
    """G6."""
    real = NodeOperator(world.state_dir, hub_url=world.hub_url, recipes=load_recipes(), allow_loopback=False)
    view = real.look(world.lease, world.order)
    assert view.is_hostile and "private network" in view.trouble


def test_a_node_that_is_gone_is_unhealthy_and_not_hostile(world: World):
    """F2."""
    operator = world.operator()
    view = until(lambda: operator.look(world.lease, world.order), lambda view: bool(view.host_key))
    lease = replace(world.lease, host_key=view.host_key, address=world.order.ssh, phase=Phase.SERVING)
    world.rack.stop(ORDER_ID)
    view = operator.look(lease, world.order)
    assert (view.is_healthy, view.is_hostile) == (False, False) and view.trouble
    with pytest.raises(NodeUnreachable):
        operator.start_work(lease, Phase.SYNCING, 1)
    operator.close()


def test_an_engine_without_verified_weights_does_not_start(world: World):
    """S12."""
    operator = world.operator()
    view = until(lambda: operator.look(world.lease, world.order), lambda view: bool(view.host_key))
    lease = replace(
        world.lease, host_key=view.host_key, address=world.order.ssh, phase=Phase.LAUNCHING, launches=1
    )
    operator.start_work(lease, Phase.LAUNCHING, 1)
    view = until(lambda: operator.look(lease, world.order), lambda view: view.job_diagnosis != "")
    assert view.is_healthy is False and "verified weights" in view.job_diagnosis
    keys = world.state_dir / "keys" / LEASE_ID / "id_ed25519"
    assert world.order.ssh is not None
    with NodeSession.connect(
        world.order.ssh, keys, pinned_host_key=lease.host_key, allow_loopback=True
    ) as session:
        assert read_engine_log(session, lease, 5)[-1].endswith("is missing")
    operator.close()


def test_a_hub_that_does_not_know_the_weights_stops_the_sync_before_the_node_is_asked(world: World):
    operator = world.operator()
    view = until(lambda: operator.look(world.lease, world.order), lambda view: bool(view.host_key))
    setup = replace(world.lease.plan.setup, repo="nobody/nothing")
    lease = replace(
        world.lease,
        host_key=view.host_key,
        address=world.order.ssh,
        plan=replace(world.lease.plan, setup=setup),
    )
    with pytest.raises(WeightsFailed) as caught:
        operator.start_work(lease, Phase.SYNCING, 1)
    assert caught.value.cause == "unauthorised"  # the hub's word for a repository that is not there
    operator.close()


def test_a_fault_of_ours_in_a_look_is_told_of_that_server_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A tick looks at all servers: it must not fail by one of them."""
    operator = NodeOperator(tmp_path, hub_url="http://127.0.0.1:9", recipes={}, allow_loopback=True)
    monkeypatch.setattr(operator, "_look", lambda *_: 1 / 0)
    view = operator.look(make_lease(phase=Phase.SERVING), make_order(ORDER_ID))
    operator.close()
    assert (view.trouble, view.is_healthy) == ("its answers cannot be read", False)

"""Weights from another replica, over two rented nodes of the sandbox and the daemon's own sessions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest

from clorefleet.config.recipes import load_recipes
from clorefleet.domain.lease import Lease, Phase
from clorefleet.domain.node import NodeView
from clorefleet.domain.order import Order
from clorefleet.node import jobs
from clorefleet.node.operator import NodeOperator
from clorefleet.node.session import NodeSession
from clorefleet.node.sibling import RateLimit
from tests.fleet.builders import offer as make_offer
from tests.node.rented import RecordingHub, files_with, rack_of, recording_hub, rent, sync, until
from tests.sandbox.node_world import TWO_4090, RunningRack

FAST = make_offer(
    ram_bytes=TWO_4090.ram_bytes,
    disk_free_bytes=10**11,
    down_mbit_s=Decimal(900),
    up_mbit_s=Decimal(900),
)
SLOW_AT_THE_HUB = replace(TWO_4090, down_mbit_s=8)
"""Offered as fast, and measured as slow."""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RecordingHub]:
    with recording_hub(tmp_path_factory.mktemp("hub")) as running:
        yield running


@pytest.fixture
def rack(hub: RecordingHub, tmp_path: Path) -> Iterator[RunningRack]:
    with rack_of(hub, tmp_path) as running:
        yield running


def operator_of(hub: RecordingHub, tmp_path: Path, relay_mbit_s: int = 400) -> NodeOperator:
    return NodeOperator(
        tmp_path / "state",
        hub_url=hub.url,
        recipes=load_recipes(),
        allow_loopback=True,
        known_answers=(),
        relay_mbit_s=relay_mbit_s,
    )


def synced(rack: RunningRack, operator: NodeOperator) -> tuple[Lease, Order]:
    lease, order = rent(rack, operator, 1, offer=FAST)
    sync(operator, lease, order)
    operator.look(replace(lease, phase=Phase.LAUNCHING), order)
    return lease, order


def measured(rack: RunningRack, operator: NodeOperator) -> tuple[Lease, Order]:
    lease, order = rent(rack, operator, 2, offer=FAST, truth=SLOW_AT_THE_HUB)

    def look() -> NodeView:
        return operator.look(replace(lease, phase=Phase.PROBING), order)

    assert until(look, lambda view: view.facts is not None).facts is not None
    return lease, order


def of_the_files(hub: RecordingHub, order: Order) -> list[str]:
    """What a node asked the hub for, by its own address there."""
    return [path for path, _ in hub.asked if path.startswith(f"/n/{order.order_id}/") and "/resolve/" in path]


def session_to(operator: NodeOperator, lease: Lease) -> NodeSession:
    return operator._session_to(lease)


def test_a_server_that_is_slow_at_the_hub_gets_its_weights_from_a_replica(
    hub: RecordingHub, rack: RunningRack, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    operator = operator_of(hub, tmp_path)
    synced(rack, operator)
    lease, order = measured(rack, operator)
    before = len(of_the_files(hub, order))
    with caplog.at_level("INFO"):
        sync(operator, lease, order)
        transfer = operator._siblings._transfers[lease.lease_id]
        assert transfer._thread is not None
        transfer._thread.join(20)
    assert len(of_the_files(hub, order)) == before, "the hub was asked although a replica had the files"
    session, manifest = session_to(operator, lease), operator._manifests.known(lease.lease_id)
    assert manifest is not None
    for file in manifest.files:
        path = f"{session.home()}/{manifest.folder}/{file.path}"
        if file.sha256:
            assert session.run_ok(["sha256sum", path]).split()[0] == file.sha256
    assert transfer.carried_bytes >= manifest.total_bytes
    # S10: the transfer's token lies nowhere, on no node and not here; and its server has ended.
    token = transfer.donor.token.reveal().encode()
    assert files_with(token, tmp_path) == [] and token.decode() not in caplog.text
    report = jobs.read(session_to(operator, transfer.donor.lease), f"{transfer.job_id}-donor")  # type: ignore[arg-type]
    assert report.exit_code is not None
    operator.close()


def test_when_the_replica_goes_away_the_hub_gives_the_rest(
    hub: RecordingHub, rack: RunningRack, tmp_path: Path
):
    """F2, and a daemon that dies: the downloader is told by nobody."""
    operator = operator_of(hub, tmp_path, relay_mbit_s=50)
    donor, _ = synced(rack, operator)
    lease, order = measured(rack, operator)
    operator.start_work(lease, Phase.SYNCING, 1)
    operator.forget(donor.lease_id)
    rack.stop(1)
    syncing = replace(lease, phase=Phase.SYNCING)
    view = until(
        lambda: operator.look(syncing, order),
        lambda view: view.job is not None and view.job.exit_code is not None,
    )
    assert view.job is not None and view.job.exit_code == 0, view
    operator.close()


def test_a_replica_that_was_lost_a_moment_ago_is_not_asked_and_another_is(
    hub: RecordingHub, rack: RunningRack, tmp_path: Path
):
    """Its key is kept for a while after its order is gone: only its server can tell that it is no more."""
    operator = operator_of(hub, tmp_path)
    there, _ = synced(rack, operator)
    lost, order = rent(rack, operator, 3, offer=replace(FAST, up_mbit_s=Decimal(950)))
    sync(operator, lost, order)
    operator.look(replace(lost, phase=Phase.LAUNCHING), order)
    lease, _ = measured(rack, operator)
    rack.stop(3)
    operator._pool.drop(lost.lease_id)
    manifest = operator._manifests.of(lease)
    donor = operator._siblings.choose(lease, manifest, hub_bytes_per_s=1e6)
    assert donor is not None and donor.lease.lease_id == there.lease_id
    operator.close()


@pytest.mark.parametrize("why", ["the hub is fast", "relaying is off", "no replica has them"])
def test_otherwise_the_hub_is_asked_and_nothing_is_started_on_a_replica(
    why: str, hub: RecordingHub, rack: RunningRack, tmp_path: Path
):
    operator = operator_of(hub, tmp_path, relay_mbit_s=0 if why == "relaying is off" else 400)
    if why != "no replica has them":
        synced(rack, operator)
    lease, order = (
        rent(rack, operator, 2, offer=FAST) if why == "the hub is fast" else measured(rack, operator)
    )
    sync(operator, lease, order)
    assert of_the_files(hub, order)
    assert not operator._siblings._transfers
    operator.close()


def test_transfers_together_never_send_faster_than_their_share_of_the_line():
    now_s = 0.0
    limit = RateLimit(1000.0, lambda: now_s)
    sent, done_s = 0, 0.0
    for step in range(200):
        now_s = step * 0.01
        done_s = now_s + limit.reserve(64)
        sent += 64
        assert sent <= 1000.0 * done_s + 1e-6
    assert done_s == pytest.approx(12.8)

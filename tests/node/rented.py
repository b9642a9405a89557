"""Rented nodes of the sandbox beside a hub that remembers who asked it for what."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import uvicorn

from clorefleet.domain.identity import LeaseId
from clorefleet.domain.lease import Lease, Phase
from clorefleet.domain.node import JobState, NodeView
from clorefleet.domain.offer import Offer
from clorefleet.domain.order import Order, SshAddress
from clorefleet.node.keys import startup_command
from clorefleet.node.operator import NodeOperator
from clorefleet.sandbox.hub import HubFaults, hub_app
from clorefleet.sandbox.lines import NodeLines
from clorefleet.sandbox.truth import ServerTruth
from tests.fleet.builders import lease as make_lease
from tests.fleet.builders import offer as make_offer
from tests.fleet.builders import order as make_order
from tests.fleet.builders import plan as make_plan
from tests.node.world import collect_now
from tests.sandbox.node_world import TWO_4090, RunningRack, tiny_assets

LIMIT_S = 40.0


@dataclass
class RecordingHub:
    url: str
    folder: Path
    asked: list[tuple[str, str]] = field(default_factory=list)
    """Path and Authorization of each request."""


@contextmanager
def recording_hub(folder: Path) -> Iterator[RecordingHub]:
    inner = hub_app(assets=tiny_assets(folder), lines=NodeLines(), faults=HubFaults())

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            headers = {name.decode(): value.decode() for name, value in scope["headers"]}
            hub.asked.append((scope["path"], headers.get("authorization", "")))
        await inner(scope, receive, send)  # type: ignore[arg-type]

    with socket.create_server(("127.0.0.1", 0)) as listening:
        hub = RecordingHub(f"http://127.0.0.1:{listening.getsockname()[1]}", folder)
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        yield hub
        server.should_exit = True
        thread.join(10)


@contextmanager
def rack_of(hub: RecordingHub, folder: Path) -> Iterator[RunningRack]:
    rack = RunningRack(folder / "nodes", tiny_assets(hub.folder), hub_url=hub.url)
    try:
        yield rack
    finally:
        rack.call(rack.rack.close())
        rack.call(collect_now())
        rack.close()


def rent(
    rack: RunningRack,
    operator: NodeOperator,
    number: int,
    *,
    offer: Offer | None = None,
    truth: ServerTruth = TWO_4090,
) -> tuple[Lease, Order]:
    """A server after first contact, its key pinned."""
    wanted = replace(
        make_plan(), offer=offer or make_offer(ram_bytes=truth.ram_bytes, disk_free_bytes=10**11)
    )
    lease = make_lease(plan=wanted, lease_id=LeaseId(f"rented{number}"))
    credentials = operator.prepare(lease.lease_id)
    port = rack.start(
        number,
        truth=truth,
        image=wanted.setup.image,
        env={"CLOREFLEET_NONCE": credentials.nonce},
        ssh_key=credentials.ssh_public_key,
        command=startup_command(credentials),
        autossh=True,
    )
    order = make_order(number, ssh=SshAddress(("127.0.0.1",), port))
    view = until(lambda: operator.look(lease, order), lambda view: bool(view.host_key))
    return replace(lease, host_key=view.host_key, address=order.ssh, launches=1), order


def sync(operator: NodeOperator, lease: Lease, order: Order) -> None:
    """Bring the weights; fails where they do not come."""
    operator.start_work(lease, Phase.SYNCING, 1)
    syncing = replace(lease, phase=Phase.SYNCING)
    view = until(lambda: operator.look(syncing, order), lambda view: not is_running(view))
    assert view.job is not None and view.job.state is JobState.SUCCEEDED, view


def is_running(view: NodeView) -> bool:
    return view.job is None or view.job.state in (JobState.RUNNING, JobState.ABSENT)


def until(look: Callable[[], NodeView], is_enough: Callable[[NodeView], bool]) -> NodeView:
    deadline_s = time.monotonic() + LIMIT_S
    while True:
        view = look()
        if is_enough(view) or time.monotonic() > deadline_s:
            return view
        time.sleep(0.05)


def files_with(text: bytes, *folders: Path) -> list[Path]:
    """Files that hold `text`; what vanishes under the look holds nothing."""
    found = []
    for file in (each for folder in folders for each in folder.rglob("*")):
        try:
            if file.is_file() and not file.is_symlink() and text in file.read_bytes():
                found.append(file)
        except OSError:
            continue
    return found

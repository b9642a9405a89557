"""Many nodes bootstrapping at once through one daemon's node edge: time, threads, memory, connections.

python -m benchmarks.bootstrap_many [--nodes 100] [--lookers 16]

Real sandbox nodes (a process tree and an SSH server each) in another process; here one `NodeOperator` that
looks at all of them in rounds, with as many threads as the daemon has, and starts what a phase asks for:
first contact, probe and measurement, engine check, weights by manifest until verified. Engines are not
started: a hundred of them do not fit into one machine. Weights are some kilobytes, so that it is our own work
that is timed. The same for one node alone is timed first, as what a hundred are compared with.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import resource
import shutil
import socket
import statistics
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from clorefleet.config.recipes import load_recipes
from clorefleet.domain.identity import LeaseId, OrderId
from clorefleet.domain.lease import Lease, Phase
from clorefleet.domain.node import JobState, NodeView
from clorefleet.domain.order import SshAddress
from clorefleet.fleet.observe import LOOKERS_MAX
from clorefleet.node.keys import startup_command
from clorefleet.node.operator import NodeOperator
from clorefleet.sandbox.hub import HubFaults, hub_app
from clorefleet.sandbox.lines import NodeLines
from clorefleet.sandbox.rack import Rack
from tests.fleet.builders import lease as make_lease
from tests.fleet.builders import offer, plan
from tests.fleet.builders import order as make_order
from tests.sandbox.node_world import TWO_4090, tiny_assets

NODES_MAX = 400
ROUND_S = 0.5
LIMIT_S = 900.0
STARTS_AT_ONCE = 4


def run_nodes(folder: str, pipe: Connection) -> None:
    """The sandbox's side: a hub and a rack; each message is the arguments of a node's start."""
    asyncio.run(_serve(Path(folder), pipe))


async def _serve(folder: Path, pipe: Connection) -> None:
    import uvicorn

    assets = tiny_assets(folder)
    with socket.create_server(("127.0.0.1", 0), backlog=512) as listening:
        app = hub_app(assets=assets, lines=NodeLines(), faults=HubFaults())
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off"))
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        rack = Rack(root=folder / "nodes", hub_url=url, assets=assets)
        pipe.send(url)
        places = asyncio.Semaphore(STARTS_AT_ONCE)

        async def start(number: int, words: dict[str, Any]) -> int:
            async with places:
                return await rack.start(number, TWO_4090, ssh_password=None, autossh=True, **words)

        while (wanted := await asyncio.to_thread(pipe.recv)) is not None:
            pipe.send(await asyncio.gather(*(start(number, words) for number, words in wanted)))
        await rack.close()
        server.should_exit = True
        await serving


@dataclass
class Figures:
    seconds: float
    looks_s: list[float]
    threads_max: int
    rounds: int


class Bootstrap:
    """Leases on their way from first contact to verified weights."""

    def __init__(self, operator: NodeOperator, leases: dict[Lease, SshAddress], lookers: int) -> None:
        self._operator = operator
        self._lookers = lookers
        self._leases = {
            lease.lease_id: replace(lease, address=address, order_id=OrderId(number))
            for number, (lease, address) in enumerate(leases.items())
        }
        self._looks_s: list[float] = []

    def run(self) -> Figures:
        began, threads_max, rounds = time.monotonic(), 0, 0
        while any(lease.phase is not Phase.LAUNCHING for lease in self._leases.values()):
            round_began = time.monotonic()
            if round_began - began > LIMIT_S:
                stuck = {lease.phase for lease in self._leases.values()}
                raise SystemExit(f"not done in {LIMIT_S:.0f} s: {stuck}")
            busy = [lease for lease in self._leases.values() if lease.phase is not Phase.LAUNCHING]
            with ThreadPoolExecutor(min(self._lookers, len(busy))) as pool:
                views = list(pool.map(self._look, busy))
                threads_max = max(threads_max, threading.active_count())
            for lease, view in zip(busy, views, strict=True):
                self._leases[lease.lease_id] = self._next(lease, view)
            rounds += 1
            time.sleep(max(0.0, ROUND_S - (time.monotonic() - round_began)))
        return Figures(time.monotonic() - began, self._looks_s, threads_max, rounds)

    def _look(self, lease: Lease) -> NodeView:
        began = time.monotonic()
        assert lease.address is not None
        view = self._operator.look(lease, make_order(ssh=lease.address))
        self._looks_s.append(time.monotonic() - began)
        return view

    def _next(self, lease: Lease, view: NodeView) -> Lease:
        if view.is_hostile or any(each.is_fatal for each in view.discrepancies):
            raise SystemExit(f"a node is not what it should be: {view}")
        match lease.phase:
            case Phase.WAITING if view.host_key:
                return replace(lease, phase=Phase.PROBING, host_key=view.host_key)
            case Phase.PROBING if view.facts is not None:
                return replace(lease, phase=Phase.INSTALLING)
            case Phase.INSTALLING if view.engine_missing == "":
                return replace(lease, phase=Phase.SYNCING)
            case Phase.SYNCING if view.job is not None and view.job.state is JobState.ABSENT:
                self._operator.start_work(lease, Phase.SYNCING, 1)
            case Phase.SYNCING if view.job is not None and view.job.state is JobState.SUCCEEDED:
                return replace(lease, phase=Phase.LAUNCHING)
            case Phase.SYNCING if view.job is not None and view.job.state is not JobState.RUNNING:
                raise SystemExit(f"weights did not arrive: {view.job}")
        return lease


def nodes_of(operator: NodeOperator, count: int, first: int, pipe: Connection) -> dict[Lease, SshAddress]:
    """Rent, so to speak: a lease and a booted node for each."""
    offered = offer(ram_bytes=TWO_4090.ram_bytes, disk_free_bytes=10**11)
    the_plan = replace(plan(), offer=offered)
    leases = [
        make_lease(plan=the_plan, lease_id=LeaseId(f"l{first + index}"), phase=Phase.WAITING, launches=1)
        for index in range(count)
    ]
    wanted = []
    for index, lease in enumerate(leases):
        credentials = operator.prepare(lease.lease_id)
        words = {
            "image": the_plan.setup.image,
            "env": {"CLOREFLEET_NONCE": credentials.nonce},
            "ssh_key": credentials.ssh_public_key,
            "command": startup_command(credentials),
        }
        wanted.append((first + index, words))
    pipe.send(wanted)
    ports = pipe.recv()
    return {lease: SshAddress(("127.0.0.1",), port) for lease, port in zip(leases, ports, strict=True)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--nodes", type=int, default=100)
    parser.add_argument("--lookers", type=int, default=LOOKERS_MAX)
    options = parser.parse_args()
    count = min(max(1, options.nodes), NODES_MAX)
    _raise_file_limit()
    folder = Path(tempfile.mkdtemp(prefix="bootstrap-many-"))
    ours, theirs = multiprocessing.Pipe()
    sandbox = multiprocessing.get_context("spawn").Process(target=run_nodes, args=(str(folder), theirs))
    sandbox.start()
    try:
        operator = NodeOperator(
            folder / "state", hub_url=ours.recv(), recipes=load_recipes(), allow_loopback=True
        )
        alone = Bootstrap(operator, nodes_of(operator, 1, 1, ours), options.lookers).run()
        rss_before, began = _rss_mib(), time.monotonic()
        leases = nodes_of(operator, count, 100, ours)
        started_s = time.monotonic() - began
        many = Bootstrap(operator, leases, options.lookers).run()
        rss, files = _rss_mib(), len(os.listdir("/proc/self/fd"))  # noqa: PTH208
        operator.close()
        ours.send(None)
        sandbox.join(60)
    finally:
        if sandbox.is_alive():
            sandbox.terminate()
            sandbox.join()
        shutil.rmtree(folder, ignore_errors=True)
    print(f"{count} sandbox nodes started by the sandbox in {started_s:.1f} s (not part of what follows)")
    print(f"one node alone     {alone.seconds:6.1f} s in {alone.rounds} rounds")
    rate = count / many.seconds
    print(f"{count} at once       {many.seconds:6.1f} s in {many.rounds} rounds; {rate:.1f} a second")
    print(f"                   {many.seconds / alone.seconds:.1f}x the time of one for {count}x the nodes")
    looks = sorted(many.looks_s)
    print(
        f"looks              {len(looks)}, median {statistics.median(looks) * 1e3:.0f} ms, "
        f"99 of 100 within {looks[int(len(looks) * 0.99)] * 1e3:.0f} ms"
    )
    print(
        f"threads            {many.threads_max} at most: {options.lookers} that look, "
        f"one per connection ({count + 1})"
    )
    print(f"memory             {rss:.0f} MiB, of which {rss - rss_before:.0f} MiB for {count} nodes")
    print(f"open files         {files}")


def _rss_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def _raise_file_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    main()

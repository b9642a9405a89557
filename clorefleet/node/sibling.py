"""Weights from a replica that has them already, where that is faster than the hub.

On the sibling a small server (`payload/serve_weights.py`) reads verified files of one manifest and listens on
its loopback; on the new server the downloader listens on its own. This process opens channels to both
through the two SSH sessions and copies between them, never faster than its rate. No port is opened to a
network, neither server learns where the other is, and nothing of ours goes along but a token that was made
for this transfer.

Nothing depends on it. The downloader believes the hub's digests alone, and goes to the hub for all that the
sibling does not bring: when it is slower than the hub should be, breaks or lies, or when this process dies.
"""

from __future__ import annotations

import contextlib
import logging
import re
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import paramiko

from clorefleet.domain.download import is_sibling_faster, sibling_bytes_per_s
from clorefleet.domain.errors import NodeError, NodeUnreachable
from clorefleet.domain.identity import JobId, LeaseId
from clorefleet.domain.lease import Lease, Phase
from clorefleet.domain.node import JobState
from clorefleet.domain.secret import Secret
from clorefleet.node import jobs
from clorefleet.node.session import NodeSession
from clorefleet.node.weights import Manifest, manifest_path

log = logging.getLogger("clorefleet.node")

TRANSFERS_MAX = 4
CONNECTIONS = 4
"""Per transfer: the downloader asks for as many segments at once."""
FRESH_S = 120.0
"""A sibling that was not looked at for longer may be on its way out."""
PORT_WAIT_S = 15.0
PORT_POLL_S = 0.3
_CHUNK_BYTES = 64 * 1024
_PORT = re.compile(r"sibling port ([0-9]{4,5})", re.ASCII)
_HAS_WEIGHTS = frozenset({Phase.LAUNCHING, Phase.VERIFYING, Phase.SERVING})
_SCRIPT_PATH = ".clorefleet/bin/serve_weights.py"


@dataclass(frozen=True, slots=True)
class Donor:
    """A sibling that was chosen, with what the downloader must know."""

    lease: Lease
    token: Secret
    bytes_per_s_min: float
    """What the hub should do: a sibling that is slower is given up."""


class RateLimit:
    """Hands out sending times so that the sum never exceeds the rate. Shared by threads."""

    def __init__(self, bytes_per_s: float, monotonic_s: Callable[[], float] = time.monotonic) -> None:
        if bytes_per_s <= 0:
            raise ValueError("a rate must be more than zero")
        self._bytes_per_s = bytes_per_s
        self._monotonic_s = monotonic_s
        self._free_at_s = 0.0
        self._lock = threading.Lock()

    def reserve(self, size_bytes: int) -> float:
        """Take the line for the next bytes; seconds to wait until they are through."""
        with self._lock:
            now_s = self._monotonic_s()
            self._free_at_s = max(now_s, self._free_at_s) + size_bytes / self._bytes_per_s
            return self._free_at_s - now_s


class Siblings:
    """The replicas of a daemon that have weights, and the transfers between them."""

    def __init__(
        self,
        session_of: Callable[[Lease], NodeSession],
        manifest_of: Callable[[LeaseId], Manifest | None],
        *,
        relay_bytes_per_s: float,
    ) -> None:
        self._session_of = session_of
        self._manifest_of = manifest_of
        self._relay_bytes_per_s = relay_bytes_per_s
        self._limit = RateLimit(relay_bytes_per_s) if relay_bytes_per_s > 0 else None
        self._seen: dict[LeaseId, tuple[Lease, float]] = {}
        self._transfers: dict[LeaseId, Transfer] = {}
        self._lock = threading.Lock()

    def see(self, lease: Lease) -> None:
        """Its server answered just now; `lease` has the address of the moment."""
        if lease.phase in _HAS_WEIGHTS:
            with self._lock:
                self._seen[lease.lease_id] = (lease, time.monotonic())

    def choose(self, lease: Lease, manifest: Manifest, *, hub_bytes_per_s: float) -> Donor | None:
        """The fastest way from a replica with the same files; None where the hub is as good."""
        with self._lock:
            is_busy = sum(each.is_running for each in self._transfers.values()) >= TRANSFERS_MAX
            now_s = time.monotonic()
            seen = [each for each, at_s in self._seen.values() if now_s - at_s < FRESH_S]
        if is_busy or self._limit is None:
            return None
        relay = self._relay_bytes_per_s
        ways = [
            (sibling_bytes_per_s(each.plan.offer, lease.plan.offer, relay), each.lease_id, each)
            for each in seen
            if each.lease_id != lease.lease_id and self._manifest_of(each.lease_id) == manifest
        ]
        for bytes_per_s, _, sibling in sorted(ways, key=lambda way: way[:2], reverse=True):
            if not is_sibling_faster(hub_bytes_per_s, bytes_per_s):
                return None
            if self._is_there(sibling):
                return Donor(sibling, Secret(secrets.token_hex(16)), hub_bytes_per_s)
        return None

    def _is_there(self, lease: Lease) -> bool:
        """Its server still answers. One that was seen a moment ago may be the very one that was lost since,
        and its key may be kept for a while."""
        try:
            self._session_of(lease)
        except NodeError:
            with self._lock:
                self._seen.pop(lease.lease_id, None)
            return False
        return True

    def begin(self, lease: Lease, job_id: JobId, donor: Donor, manifest: Manifest) -> None:
        """Join the two servers, in the background. `job_id` is the downloader's job."""
        if self._limit is None:
            return
        transfer = Transfer(self._session_of, lease, job_id, donor, manifest, self._limit)
        with self._lock:
            before = self._transfers.get(lease.lease_id)
            self._transfers[lease.lease_id] = transfer
        if before is not None:
            before.stop()
        transfer.start()

    def forget(self, lease_id: LeaseId) -> None:
        """Its order has ended. Transfers from it end with its session, and let their downloaders go."""
        with self._lock:
            self._seen.pop(lease_id, None)
            ended = self._transfers.pop(lease_id, None)
        if ended is not None:
            ended.stop()

    def close(self) -> None:
        with self._lock:
            transfers = list(self._transfers.values())
            self._transfers.clear()
        for transfer in transfers:
            transfer.stop()


@dataclass(slots=True)
class Transfer:
    """One checkpoint on its way from one server to another."""

    session_of: Callable[[Lease], NodeSession]
    lease: Lease
    job_id: JobId
    donor: Donor
    manifest: Manifest
    limit: RateLimit
    carried_bytes: int = 0
    _is_stopped: threading.Event = field(default_factory=threading.Event)
    _channels: list[paramiko.Channel] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="sibling", daemon=True)
        self._thread.start()

    @property
    def is_running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def stop(self) -> None:
        """End soon; the downloader goes on at the hub."""
        self._is_stopped.set()
        with self._lock:
            channels = list(self._channels)
        for channel in channels:
            _close(channel)

    def _run(self) -> None:
        names = (self.donor.lease.lease_id, self.lease.lease_id)
        server_job = JobId(f"{self.job_id}-donor")
        log.info("sibling_begins from=%s to=%s", *names)
        try:
            session = self.session_of(self.donor.lease)
            self._start_server(session, server_job)
            try:
                self._join(session, server_job)
            finally:
                jobs.stop(session, server_job)
        except NodeError as error:
            log.warning("sibling_failed from=%s to=%s why=%s", *names, error.what)
            self._let_go()
        log.info("sibling_ended from=%s to=%s bytes=%d", *names, self.carried_bytes)

    def _let_go(self) -> None:
        """A connection that ends at once tells the downloader not to wait for more."""
        with contextlib.suppress(NodeError):
            session = self.session_of(self.lease)
            _close(session.open_tunnel_channel(self._port(session, self.job_id)))

    def _start_server(self, session: NodeSession, job_id: JobId) -> None:
        home = session.home()
        script = Path(__file__).parent / "payload" / "serve_weights.py"
        session.write_file(f"{home}/{_SCRIPT_PATH}", script.read_bytes(), mode=0o700)
        argv = (
            *("python3", f"{home}/{_SCRIPT_PATH}"),
            *(manifest_path(home, self.manifest), f"{home}/{self.manifest.folder}"),
        )
        jobs.start(session, jobs.JobSpec(job_id, argv, secrets={"SIBLING_TOKEN": self.donor.token}))

    def _join(self, donor_session: NodeSession, server_job: JobId) -> None:
        """Copy until every connection has ended."""
        far_port = self._port(donor_session, server_job)
        session = self.session_of(self.lease)
        near_port = self._port(session, self.job_id)
        threads = []
        for _ in range(CONNECTIONS):
            far = self._keep(donor_session.open_tunnel_channel(far_port))
            near = self._keep(session.open_tunnel_channel(near_port))
            threads += [
                threading.Thread(target=self._carry, args=(near, far, None), daemon=True),
                threading.Thread(target=self._carry, args=(far, near, self.limit), daemon=True),
            ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _keep(self, channel: paramiko.Channel) -> paramiko.Channel:
        with self._lock:
            self._channels.append(channel)
        if self._is_stopped.is_set():
            _close(channel)
        return channel

    def _port(self, session: NodeSession, job_id: JobId) -> int:
        """The port on its server's own loopback that a job says it listens on.

        Raises:
            NodeUnreachable: it does not say in time.
        """
        deadline_s = time.monotonic() + PORT_WAIT_S
        while True:
            report = jobs.read(session, job_id)
            for line in report.log_tail:
                found = _PORT.fullmatch(line)
                if found is not None and 1024 <= int(found[1]) < 65536:
                    return int(found[1])
            has_ended = report.state in (JobState.FAILED, JobState.SUCCEEDED, JobState.LOST)
            if has_ended or time.monotonic() > deadline_s or self._is_stopped.wait(PORT_POLL_S):
                raise NodeUnreachable(f"{job_id} does not listen.")

    def _carry(self, source: paramiko.Channel, target: paramiko.Channel, limit: RateLimit | None) -> None:
        try:
            while data := source.recv(_CHUNK_BYTES):
                if limit is not None:
                    self._is_stopped.wait(limit.reserve(len(data)))
                    with self._lock:
                        self.carried_bytes += len(data)
                target.sendall(data)
        except (OSError, EOFError, paramiko.SSHException):
            pass  # either side went away; the downloader knows what it has
        finally:
            _close(source)
            _close(target)


def _close(channel: paramiko.Channel) -> None:
    with contextlib.suppress(paramiko.SSHException, OSError, EOFError):
        channel.close()

"""The fleet's edge to rented servers: one look, one start, one way in.

Keeps one SSH session and one tunnel per lease. Everything here is bounded in time; a look that fails
says so in its `NodeView` and is tried again by the next tick. Nothing is decided here.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import httpx

from clorefleet.domain.errors import (
    HostKeyChanged,
    NodeError,
    NodeUnreachable,
    WrongNonce,
)
from clorefleet.domain.identity import LeaseId
from clorefleet.domain.lease import Lease, Phase
from clorefleet.domain.node import Backend, Credentials, JobReport, JobState, NodeView
from clorefleet.domain.order import Order, SshAddress
from clorefleet.domain.recipe import Recipe
from clorefleet.domain.setup import Setup
from clorefleet.domain.text import clean_line
from clorefleet.engine import engine_of
from clorefleet.node import jobs, probe, weights
from clorefleet.node.keys import delete_keys, load_keys, make_keys
from clorefleet.node.session import NodeSession
from clorefleet.node.tunnel import Tunnel, socket_path
from clorefleet.node.weights import Manifest

log = logging.getLogger("clorefleet.node")

HOME = "/root"
"""The market's containers know no other user."""
HEALTH_TIMEOUT_S = 5.0
VERIFY_TIMEOUT_S = 120.0
VERIFY_PROMPT = "Count from one to twenty in words."
VERIFY_TOKENS = 48
"""Enough for a first speed, few enough to take seconds on the slowest plan."""
RECONNECT_PAUSE_S = 1.0
IMAGE_BYTES = 5 * 10**9
"""Free disk wanted beside the weights [assumed]; the image itself is already there."""
DISK_FACTOR = 1.02
ANSWER_MAX_BYTES = 2_000_000


@dataclass(slots=True)
class _Link:
    """What is kept open to one lease's server."""

    session: NodeSession | None = None
    tunnel: Tunnel | None = None
    not_before_s: float = 0.0
    lock: threading.RLock = field(default_factory=threading.RLock)
    """Held while session or tunnel are made, never while they are used: the tunnel's own threads ask for
    the session too."""
    lease: Lease | None = None


class NodeOperator:
    """One per daemon."""

    def __init__(
        self,
        state_dir: Path,
        *,
        hub_url: str,
        recipes: Mapping[str, Recipe],
        allow_loopback: bool,
    ) -> None:
        self._state_dir = state_dir
        self._hub_url = hub_url
        self._recipes = recipes
        self._allow_loopback = allow_loopback
        self._links: dict[LeaseId, _Link] = {}
        self._links_lock = threading.Lock()
        self._manifests: dict[tuple[str, str], Manifest] = {}

    # -- the fleet's edge

    def prepare(self, lease_id: LeaseId) -> Credentials:
        keys = make_keys(self._state_dir, lease_id)
        return Credentials(keys.public_key, keys.nonce)

    def look(self, lease: Lease, order: Order) -> NodeView:
        address = order.ssh or lease.address
        if address is None:
            return NodeView(trouble="the market has not published an address yet")
        try:
            return self._look(lease, address)
        except (HostKeyChanged, WrongNonce) as error:
            self._drop_session(lease.lease_id)
            return NodeView(trouble=clean_line(error.what), is_hostile=True)
        except NodeUnreachable as error:
            self._drop_session(lease.lease_id)
            return NodeView(trouble=clean_line(error.what), is_healthy=_false_when_serving(lease))
        except NodeError as error:
            # Other faults of the host (a private address, a failing command) are told, and time runs out.
            is_private = "private network" in error.what
            return NodeView(
                trouble=clean_line(error.what),
                is_hostile=is_private,
                is_healthy=_false_when_serving(lease),
            )

    def _look(self, lease: Lease, address: SshAddress) -> NodeView:
        session = self._session(lease, address)
        match lease.phase:
            case Phase.WAITING:
                return NodeView(host_key=session.host_key)
            case Phase.PROBING:
                facts = probe.probe(session)
                needed = int(lease.plan.setup.checkpoint_bytes * DISK_FACTOR) + IMAGE_BYTES
                found = probe.compare(lease.plan.offer, facts, disk_needed_bytes=needed)
                return NodeView(facts=facts, discrepancies=found)
            case Phase.INSTALLING:
                return NodeView(engine_missing=self._engine_missing(session, lease))
            case Phase.SYNCING:
                return self._look_at_sync(session, lease)
            case Phase.LAUNCHING:
                return self._look_at_engine(session, lease, address, verify=False)
            case Phase.VERIFYING:
                return self._look_at_engine(session, lease, address, verify=True)
            case _:
                return self._look_at_engine(session, lease, address, verify=False)

    def start_work(self, lease: Lease, phase: Phase, attempt: int) -> None:
        address = lease.address
        if address is None:
            raise NodeUnreachable("The server has no address.")
        session = self._session(lease, address)
        if phase is Phase.SYNCING:
            spec = weights.start_sync(
                session,
                HOME,
                lease.job_id(phase, attempt),
                lease.plan.setup,
                self._manifest(lease.plan.setup),
            )
        else:
            spec = self._engine_job(lease, attempt)
        jobs.start(session, spec)

    def backend(self, lease: Lease) -> Backend | None:
        link = self._link(lease.lease_id)
        if lease.address is None:
            return None
        tunnel = self._tunnel(link, lease, lease.address)
        return Backend(lease.lease_id, lease.plan.setup.model, tunnel.path)

    def forget(self, lease_id: LeaseId) -> None:
        with self._links_lock:
            link = self._links.pop(lease_id, None)
        if link is not None:
            _close(link)
        delete_keys(self._state_dir, lease_id)

    def close(self) -> None:
        """Close all connections; the nodes go on."""
        with self._links_lock:
            links = list(self._links.values())
            self._links.clear()
        for link in links:
            _close(link)

    # -- sessions and tunnels

    def _link(self, lease_id: LeaseId) -> _Link:
        with self._links_lock:
            return self._links.setdefault(lease_id, _Link())

    def _session(self, lease: Lease, address: SshAddress) -> NodeSession:
        """The kept session, or a new one; with a short pause after a failure.

        Raises:
            NodeError: as of `NodeSession.connect`.
        """
        link = self._link(lease.lease_id)
        with link.lock:
            if link.session is not None and link.session.is_alive:
                return link.session
            if time.monotonic() < link.not_before_s:
                raise NodeUnreachable("the server did not answer a moment ago")
            link.not_before_s = time.monotonic() + RECONNECT_PAUSE_S
            keys = load_keys(self._state_dir, lease.lease_id)
            if keys is None:
                raise NodeError(
                    "The lease's key is gone from this machine.", remedy="Its server is given back."
                )
            session = NodeSession.connect(
                address,
                keys.private_key_file,
                pinned_host_key=lease.host_key,
                allow_loopback=self._allow_loopback,
            )
            try:
                if not lease.host_key:
                    session.check_nonce(keys.nonce)
            except NodeError:
                session.close()
                raise
            link.session = session
            return session

    def _drop_session(self, lease_id: LeaseId) -> None:
        link = self._link(lease_id)
        if link.session is not None:
            link.session.close()
            link.session = None

    def _tunnel(self, link: _Link, lease: Lease, address: SshAddress) -> Tunnel:
        with link.lock:
            link.lease = replace(lease, address=address)
            if link.tunnel is None or not link.tunnel.is_open:
                path = socket_path(self._state_dir, lease.lease_id)
                link.tunnel = Tunnel(path, lease.engine_port, lambda: self._current_session(link))
            return link.tunnel

    def _current_session(self, link: _Link) -> NodeSession:
        """For a tunnel: the session of the lease as last seen, since its address may move (F3)."""
        if link.lease is None or link.lease.address is None:
            raise NodeUnreachable("The server has no address.")
        return self._session(link.lease, link.lease.address)

    # -- phases

    def _engine_missing(self, session: NodeSession, lease: Lease) -> str:
        setup = lease.plan.setup
        script = engine_of(setup.engine).check_script()
        if session.run(["sh", "-c", script]).is_ok:
            return ""
        return f"the image {setup.image} has no {setup.engine} on this server"

    def _look_at_sync(self, session: NodeSession, lease: Lease) -> NodeView:
        report = jobs.read(session, lease.job_id(Phase.SYNCING, max(1, lease.launches)))
        diagnosis = ""
        if report.state is JobState.FAILED:
            _, words = weights.CAUSES.get(report.exit_code or 0, ("unknown", ""))
            last = report.log_tail[-1] if report.log_tail else ""
            diagnosis = words or f"the download failed: {last}"
        return NodeView(job=report, job_diagnosis=diagnosis)

    def _engine_job(self, lease: Lease, attempt: int) -> jobs.JobSpec:
        setup = lease.plan.setup
        manifest = self._manifest(setup)
        support = self._recipes[setup.model].engine(setup.engine)
        launch = engine_of(setup.engine).launch(
            setup,
            support,
            weights=f"{HOME}/{weights.weights_folder(setup)}",
            files=tuple(file.path for file in manifest.files),
            port=lease.engine_port,
        )
        return jobs.JobSpec(lease.job_id(Phase.LAUNCHING, attempt), launch.argv, launch.env)

    def _look_at_engine(
        self, session: NodeSession, lease: Lease, address: SshAddress, *, verify: bool
    ) -> NodeView:
        setup = lease.plan.setup
        report = jobs.read(session, lease.job_id(Phase.LAUNCHING, max(1, lease.launches)))
        if report.state is not JobState.RUNNING:
            found = engine_of(setup.engine).diagnose(report.log_tail, report.exit_code)
            text = "" if report.state is JobState.ABSENT else clean_line(found.text)
            return NodeView(job=report, job_diagnosis=text, is_healthy=False)
        tunnel = self._tunnel(self._link(lease.lease_id), lease, address)
        transport = httpx.HTTPTransport(uds=str(tunnel.path))
        with httpx.Client(transport=transport, base_url="http://node", timeout=HEALTH_TIMEOUT_S) as client:
            if not _is_healthy(client, engine_of(setup.engine).health_path):
                return NodeView(job=_with_log_line(report), is_healthy=False, trouble="the engine is loading")
            if not verify:
                return NodeView(job=report, is_healthy=True)
            return _verified(client, setup, report)

    def _manifest(self, setup: Setup) -> Manifest:
        key = (setup.repo, setup.checkpoint)
        if key not in self._manifests:
            self._manifests[key] = weights.fetch_manifest(self._hub_url, setup)
        return self._manifests[key]


def _false_when_serving(lease: Lease) -> bool | None:
    return False if lease.phase is Phase.SERVING else None


def _close(link: _Link) -> None:
    if link.tunnel is not None:
        link.tunnel.close()
    if link.session is not None:
        link.session.close()


def _with_log_line(report: JobReport) -> JobReport:
    """An engine that loads has no progress file; its last log line is the next best thing."""
    if report.progress_text or not report.log_tail:
        return report
    return replace(report, progress_text=clean_line(report.log_tail[-1], max_chars=80))


def _is_healthy(client: httpx.Client, path: str) -> bool:
    try:
        return client.get(path).status_code == 200
    except httpx.HTTPError:
        return False


def _verified(client: httpx.Client, setup: Setup, report: JobReport) -> NodeView:
    """Ask a question, and measure the answer: tokens by the engine's own count, time by our clock."""
    body = {
        "model": setup.model,
        "messages": [{"role": "user", "content": VERIFY_PROMPT}],
        "max_tokens": VERIFY_TOKENS,
        "temperature": 0,
    }
    try:
        is_simulated = _says_simulated(client)
        # A first request warms caches up; the second is measured.
        client.post("/v1/chat/completions", json=body | {"max_tokens": 2}, timeout=VERIFY_TIMEOUT_S)
        began_s = time.monotonic()
        answer = client.post("/v1/chat/completions", json=body, timeout=VERIFY_TIMEOUT_S)
        elapsed_s = time.monotonic() - began_s
        document = answer.json() if len(answer.content) <= ANSWER_MAX_BYTES else {}
        text = document["choices"][0]["message"]["content"] or document["choices"][0]["message"].get(
            "reasoning_content", ""
        )
        tokens = int(document["usage"]["completion_tokens"])
    except httpx.HTTPError as error:
        return NodeView(job=report, is_healthy=True, answered=False, trouble=clean_line(error))
    except (ValueError, KeyError, IndexError, TypeError):
        return NodeView(job=report, is_healthy=True, answered=False, trouble="its answer is not a completion")
    if answer.status_code != 200 or not str(text).strip() or tokens < 1:
        return NodeView(job=report, is_healthy=True, answered=False, trouble="its answer is empty")
    return NodeView(
        job=report,
        is_healthy=True,
        answered=True,
        measured_tokens_per_s=tokens / max(elapsed_s, 1e-3),
        engine_is_simulated=is_simulated,
    )


def _says_simulated(client: httpx.Client) -> bool:
    document = client.get("/v1/models").json()
    cards = document.get("data", []) if isinstance(document, dict) else []
    return any(isinstance(card, dict) and card.get("simulated") is True for card in cards)


def read_engine_log(session: NodeSession, lease: Lease, lines: int) -> list[str]:
    """The end of the engine's log; of the sync's where no engine was started yet."""
    for phase in (Phase.LAUNCHING, Phase.SYNCING):
        report = jobs.read(session, lease.job_id(phase, max(1, lease.launches)), log_bytes=200_000)
        if report.state is not JobState.ABSENT:
            return list(report.log_tail[-lines:])
    return []

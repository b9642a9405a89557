"""The fleet's edge to rented servers: one look, one start, one way in.

Keeps one SSH session and one tunnel per lease, and the manifest that its weights were fetched by. Everything
here is bounded in time; a look that fails says so in its `NodeView` and is tried again by the next tick.
Nothing is decided here; what a phase asks of a node is in `bootstrap`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import quote

from clorefleet.config.settings import DEFAULT_RELAY_MBIT_S
from clorefleet.domain.download import BYTES_PER_MBIT, estimate
from clorefleet.domain.errors import (
    HostKeyChanged,
    KeyGone,
    NodeError,
    NodeUnreachable,
    WeightsFailed,
    WrongNonce,
)
from clorefleet.domain.failure import Correction
from clorefleet.domain.identity import JobId, LeaseId
from clorefleet.domain.lease import Lease, Phase
from clorefleet.domain.node import Backend, Credentials, JobReport, JobState, Measured, NodeFacts, NodeView
from clorefleet.domain.order import Order, SshAddress
from clorefleet.domain.recipe import EngineSupport, ImageVariant, Recipe
from clorefleet.domain.secret import NO_HUB_ACCESS, HubAccess
from clorefleet.domain.setup import Setup
from clorefleet.domain.text import clean_line
from clorefleet.engine import engine_of
from clorefleet.engine.base import EngineMetrics
from clorefleet.engine.correction import corrected, next_correction
from clorefleet.engine.diagnosis import Diagnosis
from clorefleet.node import attest, bootstrap, install, jobs, probe, push, sibling
from clorefleet.node.keys import delete_keys, kept_keys, key_place, load_keys, make_keys
from clorefleet.node.log_tails import LogTails
from clorefleet.node.manifests import Manifests
from clorefleet.node.pool import SessionPool
from clorefleet.node.reach import ForbiddenAddress
from clorefleet.node.session import NodeSession
from clorefleet.node.tunnel import Tunnel, socket_path
from clorefleet.node.verify import KNOWN_ANSWERS, KnownAnswers, VerifyResult, verify
from clorefleet.node.weights import Manifest

log = logging.getLogger("clorefleet.node")

IMAGE_BYTES = 5 * 10**9
"""Free disk wanted beside the weights [assumed]; the image itself is already there."""
DISK_FACTOR = 1.02
VERIFIERS_MAX = 8
"""Replicas that are verified side by side; others wait."""
VERIFY_LOOK_S = 2.0
"""How long a look waits for the checks."""
FOLLOW_FROM_BYTES = 4_000


@dataclass(slots=True)
class _Link:
    """The tunnel to one lease's server, and the lease as last seen: its address may move (F3)."""

    tunnel: Tunnel | None = None
    lease: Lease | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)
    """Held while the tunnel is made, never while it is used."""


class NodeOperator:
    """One per daemon."""

    def __init__(
        self,
        state_dir: Path,
        *,
        hub_url: str,
        recipes: Mapping[str, Recipe],
        allow_loopback: bool,
        known_answers: KnownAnswers = KNOWN_ANSWERS,
        hub_access: HubAccess = NO_HUB_ACCESS,
        relay_mbit_s: int = DEFAULT_RELAY_MBIT_S,
        mirror: str = "",
    ) -> None:
        """`hub_url` is asked for lists of files; servers fetch from `mirror`, else from their own hub."""
        self._state_dir = state_dir
        self._mirror = mirror
        self._recipes = recipes
        self._allow_loopback = allow_loopback
        self._known_answers = known_answers
        self._hub_access = hub_access
        self._pool = SessionPool()
        self._links: dict[LeaseId, _Link] = {}
        self._links_lock = threading.Lock()
        self._verifiers = ThreadPoolExecutor(VERIFIERS_MAX, thread_name_prefix="verify")
        self._verifications: dict[tuple[LeaseId, int], Future[VerifyResult]] = {}
        self._manifests = Manifests(state_dir / "manifests", hub_url=hub_url, hub_access=hub_access)
        self._log_tails = LogTails(state_dir)
        self._pushes = push.Pushes()
        self._facts: dict[LeaseId, NodeFacts] = {}
        self._siblings = sibling.Siblings(
            self._session_to, self._manifests.known, relay_bytes_per_s=relay_mbit_s * BYTES_PER_MBIT
        )

    # -- the fleet's edge

    def prepare(self, lease_id: LeaseId) -> Credentials:
        return make_keys(self._state_dir, lease_id).credentials

    def look(self, lease: Lease, order: Order) -> NodeView:
        address = order.ssh or lease.address
        if address is None:
            return NodeView(trouble="the market has not published an address yet")
        try:
            view = self._look(lease, address)
            if view.job is not None:
                self._log_tails.note(lease.lease_id, view.job.log_tail)
            return view
        except (HostKeyChanged, WrongNonce, ForbiddenAddress) as error:
            self._pool.drop(lease.lease_id)
            return NodeView(trouble=clean_line(error.what), is_hostile=True)
        except KeyGone as error:
            is_elsewhere = bool(lease.key_place) and lease.key_place != self.key_place()
            return NodeView(
                trouble="its login key is on another machine" if is_elsewhere else clean_line(error.what),
                lacks_key=not is_elsewhere,
                key_is_elsewhere=is_elsewhere,
                is_healthy=_false_when_serving(lease),
            )
        except NodeUnreachable as error:
            self._pool.drop(lease.lease_id)
            return NodeView(trouble=clean_line(error.what), is_healthy=_false_when_serving(lease))
        except NodeError as error:
            # Other faults of the host (a failing command, too much output) are told, and time runs out.
            return NodeView(trouble=clean_line(error.what), is_healthy=_false_when_serving(lease))
        except Exception:
            # A host that found a fault of ours may fail itself, and not the tick that ends all others.
            log.exception("look_failed lease=%s phase=%s", lease.lease_id, lease.phase)
            return NodeView(trouble="its answers cannot be read", is_healthy=_false_when_serving(lease))

    def _look(self, lease: Lease, address: SshAddress) -> NodeView:
        session = self._session(lease, address)
        self._siblings.see(replace(lease, address=address))
        match lease.phase:
            case Phase.WAITING:
                return NodeView(host_key=session.host_key)
            case Phase.PROBING:
                return self._probe(session, lease)
            case Phase.INSTALLING:
                return self._look_at_install(session, lease)
            case Phase.SYNCING:
                report, diagnosis = self._read_sync(session, lease)
                return NodeView(job=report, job_diagnosis=diagnosis, job_cause=bootstrap.sync_cause(report))
            case _:
                return self._look_at_engine(session, lease, address)

    def start_work(self, lease: Lease, phase: Phase, attempt: int) -> None:
        address = lease.address
        if address is None:
            raise NodeUnreachable("The server has no address.")
        try:
            self._start_work(self._session(lease, address), lease, phase, attempt)
        except NodeUnreachable:
            self._pool.drop(lease.lease_id)
            raise

    def _start_work(self, session: NodeSession, lease: Lease, phase: Phase, attempt: int) -> None:
        job_id = lease.job_id(phase, attempt)
        if phase is Phase.INSTALLING:
            install.start_install(session, job_id, self._variant(lease))
            return
        if phase is Phase.SYNCING and push.is_local(lease.plan.setup.repo):
            self._pushes.start(lease.lease_id, job_id, lambda: self._push_of(lease))
            return
        manifest = self._manifests.of(lease)
        if phase is Phase.SYNCING:
            self._start_sync(session, lease, job_id, manifest)
            return
        if attempt > 1:
            # An engine that runs on and fails its checks still holds the GPUs and the port.
            bootstrap.stop_engine(session, lease.job_id(phase, attempt - 1), lease.plan.setup)
        bootstrap.start_engine(
            session,
            job_id,
            _setup_of(lease),
            self._support(lease),
            manifest,
            port=lease.engine_port,
        )

    def _start_sync(self, session: NodeSession, lease: Lease, job_id: JobId, manifest: Manifest) -> None:
        offer, setup = lease.plan.offer, lease.plan.setup
        hub_bytes_per_s = estimate(offer, setup, self._facts.get(lease.lease_id)).bytes_per_s
        donor = self._siblings.choose(lease, manifest, hub_bytes_per_s=hub_bytes_per_s)
        token = self._hub_access.token_for(setup.repo)
        is_ours = bootstrap.start_sync(
            session,
            job_id,
            manifest,
            token=token,
            donor=donor,
            verifies_again=_verifies_again(lease),
            mirror=self._mirror,
        )
        if is_ours and donor is not None:
            self._siblings.begin(lease, job_id, donor, manifest)

    def backend(self, lease: Lease) -> Backend | None:
        if lease.address is None:
            return None
        tunnel = self._tunnel(lease, lease.address)
        return Backend(lease.lease_id, lease.plan.setup.model, tunnel.path)

    def forget(self, lease_id: LeaseId) -> None:
        self._pushes.forget(lease_id)
        self._siblings.forget(lease_id)
        self._facts.pop(lease_id, None)
        self._close_tunnel(lease_id)
        self._pool.forget(lease_id)
        self._manifests.forget(lease_id)
        self._log_tails.forget(lease_id)
        delete_keys(self._state_dir, lease_id)

    def kept_keys(self) -> frozenset[LeaseId]:
        return kept_keys(self._state_dir)

    def key_place(self) -> str:
        return key_place(self._state_dir)

    def close(self) -> None:
        """Close all connections; the nodes go on."""
        self._pushes.close()
        self._siblings.close()
        with self._links_lock:
            lease_ids = list(self._links)
        for lease_id in lease_ids:
            self._close_tunnel(lease_id)
        self._verifiers.shutdown(wait=False, cancel_futures=True)
        self._pool.close()

    # -- sessions and tunnels

    def _session(self, lease: Lease, address: SshAddress) -> NodeSession:
        """The kept session, or a new one.

        Raises:
            NodeError: as of `NodeSession.connect` and `check_nonce`.
        """
        return self._pool.session(lease.lease_id, lambda: self._open_session(lease, address))

    def _open_session(self, lease: Lease, address: SshAddress) -> NodeSession:
        keys = load_keys(self._state_dir, lease.lease_id)
        if keys is None:
            raise KeyGone("The lease's key is gone from this machine.", remedy="Its server is given back.")
        session = NodeSession.connect(
            address,
            keys.private_key_file,
            pinned_host_key=lease.host_key,
            expected_host_key=keys.host_public_key,
            allow_loopback=self._allow_loopback,
        )
        try:
            if not session.is_trusted:
                session.check_nonce(keys.nonce)
        except NodeError:
            session.close()
            raise
        return session

    def _tunnel(self, lease: Lease, address: SshAddress) -> Tunnel:
        with self._links_lock:
            link = self._links.setdefault(lease.lease_id, _Link())
        with link.lock:
            link.lease = replace(lease, address=address)
            # A corrected launch may listen on another port.
            leads_there = link.tunnel is not None and link.tunnel.port == lease.engine_port
            if link.tunnel is None or not link.tunnel.is_open or not leads_there:
                if link.tunnel is not None:
                    link.tunnel.close()
                path = socket_path(self._state_dir, lease.lease_id)
                link.tunnel = Tunnel(path, lease.engine_port, lambda: self._current_session(link))
            return link.tunnel

    def _current_session(self, link: _Link) -> NodeSession:
        if link.lease is None:
            raise NodeUnreachable("The server has no address.")
        return self._session_to(link.lease)

    def _session_to(self, lease: Lease) -> NodeSession:
        if lease.address is None:
            raise NodeUnreachable("The server has no address.")
        return self._session(lease, lease.address)

    def _close_tunnel(self, lease_id: LeaseId) -> None:
        with self._links_lock:
            link = self._links.pop(lease_id, None)
        if link is not None and link.tunnel is not None:
            link.tunnel.close()

    # -- what a look and a start need

    def _probe(self, session: NodeSession, lease: Lease) -> NodeView:
        """What the server tells; what it does is timed only where nothing told speaks against it already."""
        disk_bytes = int(lease.plan.setup.checkpoint_bytes * DISK_FACTOR) + IMAGE_BYTES
        disk_bytes += self._variant(lease).install_bytes
        needs = attest.needs_of(lease.plan, self._support(lease), disk_bytes=disk_bytes)
        facts = probe.probe(session)
        found = attest.compare(lease.plan.offer, facts, needs)
        if not any(each.is_fatal for each in found):
            facts = replace(facts, measured=self._measure(session, facts, lease))
            found = attest.compare(lease.plan.offer, facts, needs)
        self._facts[lease.lease_id] = facts
        return NodeView(facts=facts, discrepancies=found)

    def _measure(self, session: NodeSession, facts: NodeFacts, lease: Lease) -> Measured:
        return probe.measure(session, facts, self._sample(lease), mirror=self._mirror)

    def _look_at_install(self, session: NodeSession, lease: Lease) -> NodeView:
        """The job first, where there is one; then what is there."""
        if self._variant(lease).packages:
            report, cause, words = install.read_install(session, _job_id(lease, Phase.INSTALLING))
            if report.state is not JobState.SUCCEEDED:
                return NodeView(job=report, job_cause=cause, job_diagnosis=words)
        why = bootstrap.engine_missing(session, lease.plan.setup, self._support(lease))
        return NodeView(engine_missing=why)

    def _read_sync(self, session: NodeSession, lease: Lease) -> tuple[JobReport, str]:
        if not push.is_local(lease.plan.setup.repo):
            return bootstrap.read_sync(session, _job_id(lease, Phase.SYNCING))
        report = self._pushes.report(lease.lease_id, _job_id(lease, Phase.SYNCING))
        return report, report.log_tail[-1] if report.state is JobState.FAILED and report.log_tail else ""

    def _push_of(self, lease: Lease) -> push.Push:
        return push.Push(
            lease.plan.setup,
            lambda: self._session_to(lease),
            lambda manifest: self._manifests.keep(lease.lease_id, manifest),
            verifies_again=_verifies_again(lease),
        )

    def _sample(self, lease: Lease) -> str:
        """The largest file of the weights, below the hub's address: the node's own hub answers for it.
        "" where the hub does not tell; the line is then not measured."""
        if push.is_local(lease.plan.setup.repo):
            return ""
        try:
            manifest = self._manifests.of(lease)
        except WeightsFailed as error:
            log.warning("sample_not_known lease=%s why=%s", lease.lease_id, error.what)
            return ""
        largest = max(manifest.files, key=lambda file: file.size)
        return f"{manifest.repo}/resolve/{manifest.revision}/{quote(largest.path)}"

    def _look_at_engine(self, session: NodeSession, lease: Lease, address: SshAddress) -> NodeView:
        setup = _setup_of(lease)
        report, found = bootstrap.read_engine(session, _job_id(lease, Phase.LAUNCHING), setup)
        if report.state is not JobState.RUNNING:
            return _died(lease, report, found)
        socket = self._tunnel(lease, address).path
        if not bootstrap.is_healthy(socket, setup):
            return NodeView(job=_with_log_line(report), is_healthy=False, trouble="the engine is loading")
        if lease.phase is not Phase.VERIFYING:
            return _used(NodeView(job=report, is_healthy=True), bootstrap.read_metrics(socket, setup))
        result = self._verified(lease, socket, setup)
        if result is None:
            return NodeView(job=report, is_healthy=True, trouble="it is asked questions")
        made = lease.corrections
        return NodeView(
            trouble=result.trouble,
            job=report,
            job_diagnosis=result.trouble if result.cause else "",
            job_cause=result.cause,
            correction=next_correction(engine_of(setup.engine), lease.plan.setup, result.cause, made)
            if result.cause
            else None,
            is_healthy=True,
            answered=result.answered,
            measured_tokens_per_s=result.tokens_per_s,
            measured_together_tokens_per_s=result.together_tokens_per_s,
            measured_streams=result.streams,
            # A sandbox's engine runs on this machine, whatever its server would have done. Its stand-ins
            # tell what that is; of a server on the market the same words are believed by nobody.
            speed_is_comparable=not self._allow_loopback,
            simulated_tokens_per_s=result.simulated_tokens_per_s if self._allow_loopback else None,
            engine_is_simulated=result.is_simulated,
        )

    def _verified(self, lease: Lease, socket: Path, setup: Setup) -> VerifyResult | None:
        """The checks run beside the ticks: at two tokens a second they take minutes. None: not done yet.

        A result is given once; asked again, the checks begin anew.
        """
        key = (lease.lease_id, lease.launches)
        with self._links_lock:
            running = self._verifications.get(key)
            if running is None:
                support = self._support(lease)
                running = self._verifiers.submit(
                    verify, socket, setup, support, known_answers=self._known_answers
                )
                self._verifications[key] = running
        if not wait([running], timeout=VERIFY_LOOK_S).done:
            return None
        with self._links_lock:
            self._verifications.pop(key, None)
        return running.result()

    def _support(self, lease: Lease) -> EngineSupport:
        """
        Raises:
            NodeError: the recipe that the lease was planned by is gone.
        """
        setup = lease.plan.setup
        recipe = self._recipes.get(setup.model)
        if recipe is None:
            raise NodeError(f"There is no recipe of {setup.model} any more.", remedy="Put it back.")
        return recipe.engine(setup.engine)

    def _variant(self, lease: Lease) -> ImageVariant:
        """What the recipe says of the lease's image: whether the engine is installed on it, and how."""
        return self._support(lease).variant_of(lease.plan.setup.image)


def _job_id(lease: Lease, phase: Phase) -> JobId:
    return lease.job_id(phase, max(1, lease.launches))


def _verifies_again(lease: Lease) -> bool:
    """An engine called the weights damaged: what was verified once is not believed any more."""
    return Correction.FETCH_AGAIN in lease.corrections


def _setup_of(lease: Lease) -> Setup:
    """As planned, with the corrections that were made since."""
    setup = lease.plan.setup
    return corrected(engine_of(setup.engine), setup, lease.corrections)


def _used(view: NodeView, metrics: EngineMetrics | None) -> NodeView:
    """`view` with what the engine says of its use."""
    if metrics is None:
        return view
    counted = [each for each in (metrics.prompt_tokens, metrics.generated_tokens) if each is not None]
    return replace(
        view,
        engine_running=metrics.running,
        engine_waiting=metrics.waiting,
        engine_tokens=sum(counted) if counted else None,
    )


def _died(lease: Lease, report: JobReport, found: Diagnosis | None) -> NodeView:
    """An engine that has ended: why, and what another launch may do about it."""
    if found is None:
        return NodeView(job=report, is_healthy=False)
    setup = lease.plan.setup
    return NodeView(
        job=report,
        job_diagnosis=clean_line(f"{found.text}; {found.remedy}" if found.remedy else found.text),
        job_cause=found.cause,
        correction=next_correction(engine_of(setup.engine), setup, found.cause, lease.corrections),
        is_healthy=False,
    )


def _false_when_serving(lease: Lease) -> bool | None:
    return False if lease.phase is Phase.SERVING else None


def _with_log_line(report: JobReport) -> JobReport:
    """An engine that loads has no progress file; its last log line is the next best thing."""
    if report.progress_text or not report.log_tail:
        return report
    return replace(report, progress_text=clean_line(report.log_tail[-1], max_chars=80))


class EngineLogReader:
    """Reads on where it stopped. Begins with the last lines of the newest launch, not with its first."""

    def __init__(self) -> None:
        self._job: JobId | None = None
        self._offset = 0

    def read(self, session: NodeSession, lease: Lease) -> tuple[str, ...]:
        """What is new, cleaned and bounded.

        Raises:
            NodeError: the node cannot be asked.
        """
        job_id = _job_id(lease, Phase.LAUNCHING)
        if job_id != self._job:
            size = jobs.log_size(session, job_id)
            self._job, self._offset = job_id, max(0, size - FOLLOW_FROM_BYTES)
        lines, self._offset = jobs.read_log(session, job_id, offset=self._offset)
        return lines


def read_engine_log(session: NodeSession, lease: Lease, lines: int) -> list[str]:
    """The end of the engine's log; where no engine was started yet, of the sync's or the install's."""
    for phase in (Phase.LAUNCHING, Phase.SYNCING, Phase.INSTALLING):
        tail = jobs.read_log_tail(session, _job_id(lease, phase), lines=lines)
        if tail:
            return list(tail)
    return []

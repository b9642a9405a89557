"""What the phases of a replica ask of a node: each function is one look or one start, never both.

    INSTALLING   engine_missing                     an engine's image must bring it
                 `clorefleet.node.install`          on a base image it is installed first
    SYNCING      start_sync, read_sync              weights, by manifest
    LAUNCHING    start_engine, read_engine          the engine's process, then its readiness route
    VERIFYING    `clorefleet.node.verify`

Nothing here waits for work to end, keeps state or decides. Answers of engines come from strangers' machines:
they are read inside a size and a time, and text is cleaned.
"""

from __future__ import annotations

import time
from pathlib import Path

import httpx

from clorefleet.domain.failure import Cause
from clorefleet.domain.identity import JobId
from clorefleet.domain.node import JobReport, JobState
from clorefleet.domain.recipe import EngineSupport
from clorefleet.domain.secret import NO_SECRET, Secret
from clorefleet.domain.setup import Setup
from clorefleet.engine import engine_of
from clorefleet.engine.base import EngineMetrics, parse_version
from clorefleet.engine.diagnosis import Diagnosis
from clorefleet.node import jobs, weights
from clorefleet.node.engine_client import BadAnswer, ask, engine_client
from clorefleet.node.install import prefix_of, within
from clorefleet.node.session import NodeSession, shell
from clorefleet.node.sibling import Donor
from clorefleet.node.weights import Manifest

CHECK_TIMEOUT_S = 60.0
"""Importing an engine's package from a cold disk takes tens of seconds."""
METRICS_PATH = "/metrics"
"""Of every engine that we know."""
HEALTH_TIMEOUT_S = 5.0
STOP_WAIT_S = 5.0
"""A tick waits no longer for an engine to end by itself; nobody is served by one that failed its checks."""
STOP_POLL_S = 0.1


# -- installing


def engine_missing(session: NodeSession, setup: Setup, support: EngineSupport) -> str:
    """Why the engine cannot run here; "" when it is there and new enough.

    Raises:
        NodeError: the node cannot be asked.
    """
    prefix = _prefix(session, setup, support)
    check = within(prefix, shell(engine_of(setup.engine).check_script()))
    found = session.run(check, timeout_s=CHECK_TIMEOUT_S)
    if not found.is_ok and prefix:
        return f"the packages for {setup.image} were installed and bring no {setup.engine}"
    if not found.is_ok:
        return f"the image {setup.image} has no {setup.engine} on this server"
    needed, here = parse_version(support.min_version), parse_version(found.stdout)
    if needed and here and here < needed:
        words = ".".join(map(str, here))
        return f"its {setup.engine} is {words}, and {setup.model} needs {support.min_version}"
    return ""


def _prefix(session: NodeSession, setup: Setup, support: EngineSupport) -> str:
    """Where the engine was installed; "" where the image brings it."""
    packages = support.variant_of(setup.image).packages
    return prefix_of(session.home(), packages) if packages else ""


# -- syncing


def start_sync(
    session: NodeSession,
    job_id: JobId,
    manifest: Manifest,
    *,
    token: Secret = NO_SECRET,
    donor: Donor | None = None,
    verifies_again: bool = False,
    mirror: str = "",
) -> bool:
    """Start the download of `manifest` unless this job was started before; true when this call did.

    Raises:
        NodeError: it could not be started; trying again is safe.
    """
    home = session.home()
    weights.send_sync(session, home, manifest)
    job = weights.sync_job(
        home,
        job_id,
        manifest,
        token=token,
        sibling_token=NO_SECRET if donor is None else donor.token,
        sibling_bytes_per_s_min=0.0 if donor is None else donor.bytes_per_s_min,
        verifies_again=verifies_again,
        mirror=mirror,
    )
    return jobs.start(session, job)


def read_sync(session: NodeSession, job_id: JobId) -> tuple[JobReport, str]:
    """How the download stands, and why it failed if it did."""
    report = jobs.read(session, job_id)
    if report.state is not JobState.FAILED:
        return report, ""
    _, words = weights.CAUSES.get(report.exit_code or 0, ("unknown", ""))
    last = report.log_tail[-1] if report.log_tail else ""
    return report, words or f"the download failed: {last}"


def sync_cause(report: JobReport) -> Cause | None:
    """Why a download failed, where another server may fare the same; None where nobody can tell."""
    name, _ = weights.CAUSES.get(report.exit_code or 0, ("", ""))
    return next((cause for cause in Cause if cause == name), None)


# -- launching


def start_engine(
    session: NodeSession,
    job_id: JobId,
    setup: Setup,
    support: EngineSupport,
    manifest: Manifest,
    *,
    port: int,
) -> None:
    """Start the engine on the node's loopback unless this job was started before. `setup` is as corrected.

    Raises:
        NodeError: it could not be started; trying again is safe.
    """
    engine = engine_of(setup.engine)
    folder = f"{session.home()}/{manifest.folder}"
    launch = engine.launch(
        setup, support, weights=folder, files=tuple(file.path for file in manifest.files), port=port
    )
    stamp = f"{folder}/{weights.COMPLETE_STAMP}"
    argv = within(_prefix(session, setup, support), launch.argv)
    jobs.start(session, jobs.JobSpec(job_id, argv, launch.env, needs_file=stamp))


def stop_engine(session: NodeSession, job_id: JobId, setup: Setup) -> None:
    """End a running engine as it wants to be ended, then for certain, so that its GPUs and port are free.

    Takes `STOP_WAIT_S` at most. Nothing happens when it has ended already.

    Raises:
        NodeError: the node cannot be asked.
    """
    if jobs.read(session, job_id).state is not JobState.RUNNING:
        return
    engine = engine_of(setup.engine)
    jobs.stop(session, job_id, signal_name=engine.stop_signal)
    deadline_s = time.monotonic() + min(STOP_WAIT_S, engine.stop_grace_s)
    while time.monotonic() < deadline_s:
        if jobs.read(session, job_id).state is not JobState.RUNNING:
            return
        time.sleep(STOP_POLL_S)
    jobs.stop(session, job_id, signal_name="KILL")


def read_engine(session: NodeSession, job_id: JobId, setup: Setup) -> tuple[JobReport, Diagnosis | None]:
    """How the engine's process stands, and what it died of if it did."""
    report = jobs.read(session, job_id)
    if report.state in (JobState.RUNNING, JobState.ABSENT):
        return report, None
    return report, engine_of(setup.engine).diagnose(report.log_tail, report.exit_code)


def is_healthy(socket: Path, setup: Setup, *, timeout_s: float = HEALTH_TIMEOUT_S) -> bool:
    """The engine behind the tunnel's `socket` says that it is ready."""
    try:
        with engine_client(socket) as client:
            return ask(client, "GET", engine_of(setup.engine).health_path, timeout_s)[0] == 200
    except (httpx.HTTPError, BadAnswer):
        return False


def read_metrics(socket: Path, setup: Setup) -> EngineMetrics | None:
    """The engine's own counters; None where it does not tell them."""
    try:
        with engine_client(socket) as client:
            status, answer = ask(client, "GET", METRICS_PATH, HEALTH_TIMEOUT_S)
    except (httpx.HTTPError, BadAnswer):
        return None
    return engine_of(setup.engine).metrics(answer.decode("utf-8", "replace")) if status == 200 else None

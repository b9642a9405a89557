"""What the phases of a replica ask of a node: each function is one look or one start, never both.

    INSTALLING   engine_missing                     the image must bring the engine; nothing is installed
    SYNCING      start_sync, read_sync              weights, by manifest
    LAUNCHING    start_engine, read_engine          the engine's process, then its readiness route
    VERIFYING    verify                             it streams, it answers, and how fast

Nothing here waits for work to end, keeps state or decides. Answers of engines come from strangers' machines:
they are read inside a size and a time, and text is cleaned.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from clorefleet.domain.identity import JobId
from clorefleet.domain.node import JobReport, JobState
from clorefleet.domain.recipe import EngineSupport
from clorefleet.domain.setup import Setup
from clorefleet.domain.text import clean_line
from clorefleet.engine import engine_of
from clorefleet.engine.base import parse_version
from clorefleet.engine.diagnosis import Diagnosis
from clorefleet.node import jobs, weights
from clorefleet.node.session import NodeSession, shell
from clorefleet.node.weights import Manifest

CHECK_TIMEOUT_S = 60.0
"""Importing an engine's package from a cold disk takes tens of seconds."""
HEALTH_TIMEOUT_S = 5.0
STOP_WAIT_S = 5.0
"""A tick waits no longer for an engine to end by itself; nobody is served by one that failed its checks."""
STOP_POLL_S = 0.1
VERIFY_TIMEOUT_S = 120.0
VERIFY_PROMPT = "Count from one to twenty in words."
VERIFY_TOKENS = 48
"""Enough for a first speed, few enough to take seconds on the slowest plan."""
WARM_UP_TOKENS = 4
ANSWER_MAX_BYTES = 2_000_000
SAMPLE_MAX_CHARS = 200
STREAM_END = "[DONE]"
_ODD_JSON = (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError)
"""What reading a stranger's JSON may raise: no JSON, another shape, or a bomb of brackets (G7)."""


@dataclass(frozen=True, slots=True)
class VerifyResult:
    """What an engine did when it was asked something."""

    answered: bool
    """It streamed, and it completed a prompt."""
    trouble: str = ""
    """Why it does not count as answered, cleaned."""
    text_sample: str = ""
    tokens_per_s: float | None = None
    """Of one request alone: tokens by the engine's count, seconds by our clock, prompt and line included."""
    is_simulated: bool = False
    """The engine's own model card says that it only simulates its hardware."""


# -- installing


def engine_missing(session: NodeSession, setup: Setup, support: EngineSupport) -> str:
    """Why the engine cannot run here; "" when it is there and new enough.

    Raises:
        NodeError: the node cannot be asked.
    """
    found = session.run(shell(engine_of(setup.engine).check_script()), timeout_s=CHECK_TIMEOUT_S)
    if not found.is_ok:
        return f"the image {setup.image} has no {setup.engine} on this server"
    needed, here = parse_version(support.min_version), parse_version(found.stdout)
    if needed and here and here < needed:
        words = ".".join(map(str, here))
        return f"its {setup.engine} is {words}, and {setup.model} needs {support.min_version}"
    return ""


# -- syncing


def start_sync(session: NodeSession, job_id: JobId, manifest: Manifest) -> None:
    """Start the download of `manifest` unless this job was started before.

    Raises:
        NodeError: it could not be started; trying again is safe.
    """
    home = session.home()
    weights.send_sync(session, home, manifest)
    jobs.start(session, weights.sync_job(home, job_id, manifest))


def read_sync(session: NodeSession, job_id: JobId) -> tuple[JobReport, str]:
    """How the download stands, and why it failed if it did."""
    report = jobs.read(session, job_id)
    if report.state is not JobState.FAILED:
        return report, ""
    _, words = weights.CAUSES.get(report.exit_code or 0, ("unknown", ""))
    last = report.log_tail[-1] if report.log_tail else ""
    return report, words or f"the download failed: {last}"


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
    jobs.start(session, jobs.JobSpec(job_id, launch.argv, launch.env, needs_file=stamp))


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
        with _client(socket) as client:
            return _ask(client, "GET", engine_of(setup.engine).health_path, timeout_s)[0] == 200
    except (httpx.HTTPError, _BadAnswer):
        return False


# -- verifying


def verify(socket: Path, setup: Setup) -> VerifyResult:
    """Ask the engine behind `socket` two questions: does it stream, and how fast does it answer?

    The first request also warms caches up, so that the second, which is measured, is a usual one.
    """
    question = {
        "model": setup.model,
        "messages": [{"role": "user", "content": VERIFY_PROMPT}],
        "temperature": 0,
    }
    streaming = {**question, "max_tokens": WARM_UP_TOKENS, "stream": True}
    try:
        with _client(socket) as client:
            is_simulated = _says_simulated(client)
            if not _streams(_complete(client, streaming)):
                return VerifyResult(False, "it does not stream", is_simulated=is_simulated)
            began_s = time.monotonic()
            body = _complete(client, {**question, "max_tokens": VERIFY_TOKENS})
            elapsed_s = time.monotonic() - began_s
        text, tokens = _completion(body)
    except _BadAnswer as error:
        return VerifyResult(False, str(error))
    except httpx.HTTPError as error:
        return VerifyResult(False, clean_line(error) or type(error).__name__)
    except _ODD_JSON:
        return VerifyResult(False, "its answer is not a completion")
    if not text.strip() or tokens < 1:
        return VerifyResult(False, "its answer is empty", is_simulated=is_simulated)
    return VerifyResult(
        True,
        text_sample=clean_line(text, max_chars=SAMPLE_MAX_CHARS),
        tokens_per_s=tokens / max(elapsed_s, 1e-3),
        is_simulated=is_simulated,
    )


def _completion(body: bytes) -> tuple[str, int]:
    """Text and token count of a chat completion; whatever is odd raises one of the errors of bad JSON."""
    document = json.loads(body)
    message = document["choices"][0]["message"]
    text = message.get("content") or message.get("reasoning_content") or ""
    tokens = document["usage"]["completion_tokens"]
    if not isinstance(text, str) or not isinstance(tokens, int) or tokens > VERIFY_TOKENS:
        raise ValueError("not the completion that was asked for")
    return text, tokens


def _streams(body: bytes) -> bool:
    """Some event with something new in it, and the end mark."""
    events = [
        line[5:].strip() for line in body.decode("utf-8", "replace").splitlines() if line[:5] == "data:"
    ]
    return bool(events) and events[-1] == STREAM_END and any(_has_delta(event) for event in events[:-1])


def _has_delta(event: str) -> bool:
    try:
        delta = json.loads(event)["choices"][0]["delta"]
        return bool(delta.get("content") or delta.get("reasoning_content"))
    except _ODD_JSON:
        return False


def _says_simulated(client: httpx.Client) -> bool:
    document = json.loads(_ask(client, "GET", "/v1/models", HEALTH_TIMEOUT_S)[1])
    cards = document.get("data", []) if isinstance(document, dict) else []
    return any(isinstance(card, dict) and card.get("simulated") is True for card in cards)


# -- asking an engine


class _BadAnswer(Exception):
    """A refusal, or more bytes or more time than an honest answer needs."""


def _client(socket: Path) -> httpx.Client:
    """Over the tunnel's socket alone: no proxy, no redirect, nothing of the user's environment.

    Each request has its own connection: an engine may close one right after an answer, and the news
    reaches this side of the tunnel too late for the next request.
    """
    return httpx.Client(
        transport=httpx.HTTPTransport(uds=str(socket), limits=httpx.Limits(max_keepalive_connections=0)),
        base_url="http://node",
        timeout=HEALTH_TIMEOUT_S,
        follow_redirects=False,
        trust_env=False,
    )


def _complete(client: httpx.Client, body: Mapping[str, Any]) -> bytes:
    status, answer = _ask(client, "POST", "/v1/chat/completions", VERIFY_TIMEOUT_S, body)
    if status != 200:
        raise _BadAnswer(
            f"it answers {status}: {clean_line(answer.decode('utf-8', 'replace'), max_chars=120)}"
        )
    return answer


def _ask(
    client: httpx.Client, method: str, path: str, timeout_s: float, body: Mapping[str, Any] | None = None
) -> tuple[int, bytes]:
    """Status and body, inside `timeout_s` as a whole and `ANSWER_MAX_BYTES` (A19, S15)."""
    deadline_s = time.monotonic() + timeout_s
    with client.stream(method, path, json=body, timeout=timeout_s) as answer:
        taken = bytearray()
        for chunk in answer.iter_raw():
            taken += chunk
            if len(taken) > ANSWER_MAX_BYTES or time.monotonic() > deadline_s:
                raise _BadAnswer("its answer is too long or too slow")
        return answer.status_code, bytes(taken)

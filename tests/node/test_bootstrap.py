"""What the phases ask of a node, apart from the way they follow each other."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import paramiko
import pytest

from clorefleet.domain.identity import JobId, LeaseId
from clorefleet.domain.node import JobState
from clorefleet.domain.recipe import EngineName, EngineSupport
from clorefleet.engine import engine_of
from clorefleet.engine.correction import corrected, next_correction
from clorefleet.node import bootstrap, jobs, weights
from clorefleet.node.keys import make_keys
from clorefleet.node.session import NodeSession
from clorefleet.node.weights import Manifest, WeightFile
from tests.fleet.builders import plan
from tests.node.peers import peer, send

SETUP = replace(plan().setup, engine=EngineName.SGLANG, image="lmsysorg/sglang:v1", memory_fraction=0.88)
SUPPORT = EngineSupport(EngineName.SGLANG, SETUP.image, (), min_version="0.5.10")
MANIFEST = Manifest("org/model", "a" * 40, (WeightFile("model.safetensors", 3, sha256="b" * 64),))


@pytest.mark.parametrize(
    "printed, status, why",
    [
        ("0.5.10\n", 0, ""),
        ("0.6.0.dev1\n", 0, ""),
        ("unknown version\n", 0, ""),
        ("0.5.9\n", 0, "is 0.5.9, and smollm2-135m needs 0.5.10"),
        ("\x1b[2J", 1, "has no sglang"),
    ],
)
def test_an_engine_must_be_there_and_new_enough(printed: str, status: int, why: str, tmp_path: Path):
    key = paramiko.ECDSAKey.generate()
    ours = make_keys(tmp_path, LeaseId("l1")).private_key_file
    pinned = f"{key.get_name()} {key.get_base64()}"
    with (
        peer(key, lambda channel: send(channel, printed.encode(), status)) as address,
        NodeSession.connect(address, ours, pinned_host_key=pinned, allow_loopback=True) as session,
    ):
        found = bootstrap.engine_missing(session, SETUP, SUPPORT)
    assert why in found and bool(found) == bool(why)


def ended(session: NodeSession, job_id: JobId) -> None:
    deadline_s = time.monotonic() + 15
    while jobs.read(session, job_id).state in (JobState.RUNNING, JobState.ABSENT):
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


@pytest.mark.parametrize(
    "line, fraction",
    [("1. set --mem-fraction-static to a smaller value (e.g., 0.8)", "0.83"), ("who knows", "0.88")],
)
def test_a_second_launch_corrects_what_the_first_died_of(session: NodeSession, line: str, fraction: str):
    first, second = (
        JobId(f"launch-{fraction}-1".replace(".", "")),
        JobId(f"launch-{fraction}-2".replace(".", "")),
    )
    jobs.start(session, jobs.JobSpec(first, ("sh", "-c", 'echo "$1"; exit 1', "sh", line)))
    ended(session, first)
    _, found = bootstrap.read_engine(session, first, SETUP)
    assert found is not None
    engine = engine_of(SETUP.engine)
    correction = next_correction(engine, SETUP, found.cause, ())
    setup = corrected(engine, SETUP, () if correction is None else (correction,))
    bootstrap.start_engine(session, second, setup, SUPPORT, MANIFEST, port=21_000)
    script = session.read_file(f"{session.home()}/.clorefleet/jobs/{second}/script").decode()
    assert f"--mem-fraction-static {fraction}" in script
    ended(session, second)


@pytest.mark.parametrize("listens", [True, False], ids=["ends when asked", "must be killed"])
def test_an_engine_that_fails_its_checks_is_ended_before_the_next_launch(
    session: NodeSession, listens: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(bootstrap, "STOP_WAIT_S", 0.5)
    job_id = JobId(f"stop-{listens}".lower())
    trap = "" if listens else "trap '' TERM; "
    jobs.start(session, jobs.JobSpec(job_id, ("sh", "-c", f"{trap}while :; do sleep 0.1; done")))
    bootstrap.stop_engine(session, job_id, SETUP)
    ended(session, job_id)
    bootstrap.stop_engine(session, job_id, SETUP)  # again: nothing happens


def test_a_sync_that_fails_says_why_in_words(session: NodeSession):
    """The hub of these tests is a port that nobody has: only the codes are of interest."""
    for code, (_, words) in weights.CAUSES.items():
        job_id = JobId(f"sync-{code}")
        jobs.start(session, jobs.JobSpec(job_id, ("sh", "-c", f"exit {code}")))
        ended(session, job_id)
        report, why = bootstrap.read_sync(session, job_id)
        assert (report.exit_code, why) == (code, words)


def test_a_manifest_comes_back_as_it_was_stored():
    assert Manifest.from_json(MANIFEST.to_json()) == MANIFEST
    for text in (b"", b"{}", b"[]", b'{"repo": "a/b", "revision": "c", "files": [{"nonsense": 1}]}'):
        with pytest.raises(ValueError):
            Manifest.from_json(text)


def test_weights_of_two_commits_never_share_a_folder():
    assert MANIFEST.folder != replace(MANIFEST, revision="b" * 40).folder
    assert MANIFEST.folder == ".clorefleet/weights/org--model/" + "a" * 40

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

"""S10: a hub's token goes where its owner allowed it, and stays nowhere."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from clorefleet.config.recipes import load_recipes
from clorefleet.domain.errors import WeightsFailed
from clorefleet.domain.failure import Cause
from clorefleet.domain.identity import JobId
from clorefleet.domain.node import JobState
from clorefleet.domain.secret import HubAccess, Secret
from clorefleet.node import bootstrap, jobs, weights
from clorefleet.node.operator import NodeOperator
from clorefleet.node.session import NodeSession
from clorefleet.node.weights import Manifest, WeightFile
from tests.fleet.builders import plan
from tests.node.file_hub import REPO, REVISION, FileHub, serving
from tests.node.rented import RecordingHub, files_with, rack_of, recording_hub, rent, sync
from tests.node.test_fetch_weights import blob
from tests.node.world import Server

CANARY = "hf_canary_that_must_not_stay"
ACCESS = HubAccess(Secret(CANARY), frozenset({plan().setup.repo}))


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RecordingHub]:
    with recording_hub(tmp_path_factory.mktemp("hub")) as running:
        yield running


@pytest.mark.parametrize("access", [ACCESS, replace(ACCESS, repos=frozenset({"another/repo"}))])
def test_only_a_repository_that_was_named_is_asked_for_with_the_token(
    access: HubAccess, hub: RecordingHub, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    hub.asked.clear()
    operator = NodeOperator(
        tmp_path / "state",
        hub_url=hub.url,
        recipes=load_recipes(),
        allow_loopback=True,
        known_answers=(),
        hub_access=access,
    )
    with caplog.at_level("DEBUG"), rack_of(hub, tmp_path) as rack:
        lease, order = rent(rack, operator, 1)
        sync(operator, lease, order)
        assert files_with(CANARY.encode(), tmp_path) == []
    given = {token for path, token in hub.asked if "/resolve/" in path or "/api/" in path}
    assert given == ({f"Bearer {CANARY}"} if access is ACCESS else {""})
    assert CANARY not in caplog.text
    operator.close()


def test_while_a_gated_download_runs_the_token_is_in_no_file_and_no_list_of_processes(
    server: Server, session: NodeSession
):
    """On both kinds of server; the host's root can read any process's memory all the same."""
    data = blob(1 << 22)
    manifest = Manifest(REPO, REVISION, (WeightFile("gated.bin", len(data), sha256=_sha256(data)),))
    job_id = JobId("sync-gated")
    with serving(FileHub({"gated.bin": data}, pause_s=0.02, token=CANARY)) as hub:
        weights.send_sync(session, session.home(), manifest)
        spec = weights.sync_job(session.home(), job_id, manifest, token=Secret(CANARY))
        jobs.start(session, replace(spec, env={**spec.env, "HF_ENDPOINT": hub.url}))
        while not hub.served_bytes:
            time.sleep(0.01)
        assert jobs.read(session, job_id).state is JobState.RUNNING
        looked = session.run(["grep", "-rl", CANARY, f"{session.home()}/.clorefleet"])
        assert looked.stdout == "" and looked.exit_status == 1
        arguments = session.run_ok(["sh", "-c", "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' '; echo"])
        assert "fetch_weights.py" in arguments
        assert CANARY not in arguments.replace(f"grep -rl {CANARY}", "")
        while jobs.read(session, job_id).state is JobState.RUNNING:
            time.sleep(0.05)
    assert jobs.read(session, job_id).state is JobState.SUCCEEDED


def test_a_refused_repository_says_how_to_opt_in_and_what_that_shows_to_whom(session: NodeSession):
    data = b"{}"
    manifest = Manifest(REPO, REVISION, (WeightFile("gated.json", 2, sha256=_sha256(data)),))
    job_id = JobId("sync-refused")
    with serving(FileHub({"gated.json": data}, token=CANARY)) as hub:
        weights.send_sync(session, session.home(), manifest)
        spec = weights.sync_job(session.home(), job_id, manifest)
        jobs.start(session, replace(spec, env={**spec.env, "HF_ENDPOINT": hub.url}))
        while (found := bootstrap.read_sync(session, job_id))[0].state is JobState.RUNNING:
            time.sleep(0.05)
    assert found[0].exit_code == 20
    assert bootstrap.sync_cause(found[0]) is Cause.UNAUTHORISED, (
        "no other server is rented for the same refusal"
    )
    assert all(word in found[1] for word in ("gated", "hub_token_for", "hub_token", "rented machine sees it"))


def test_our_own_question_to_the_hub_says_the_same(hub: RecordingHub):
    with pytest.raises(WeightsFailed, match="hub_token_for") as caught:
        weights.fetch_manifest(hub.url, replace(plan().setup, repo="nobody/nothing"))
    assert caught.value.cause == "unauthorised"


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()

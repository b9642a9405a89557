"""Weights where they are needed: laid out as the hub's own client wants them, whole after a host restart."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import uvicorn

from clorefleet.domain.identity import JobId
from clorefleet.domain.node import JobReport, JobState
from clorefleet.node import jobs, weights
from clorefleet.node.session import NodeSession
from clorefleet.node.weights import Manifest, WeightFile, fetch_manifest
from clorefleet.sandbox.hub import HubFaults, hub_app
from clorefleet.sandbox.lines import NodeLines
from tests.fleet.builders import plan
from tests.node.file_hub import REPO, REVISION, FileHub, serving
from tests.node.test_fetch_weights import SCRIPT, blob
from tests.node.world import SandboxNode, prove_nonce, sandbox_node
from tests.sandbox.node_world import tiny_assets

MIB = 1 << 20
HF = shutil.which("hf", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")


@pytest.fixture(scope="module")
def hub_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        app = hub_app(
            assets=tiny_assets(tmp_path_factory.mktemp("hub")), lines=NodeLines(), faults=HubFaults()
        )
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        thread.join(10)


@pytest.mark.skipif(HF is None, reason="no `hf` command installed")
def test_the_hubs_own_client_accepts_what_was_fetched_and_finds_a_flipped_byte(hub_url: str, tmp_path: Path):
    setup = replace(
        plan().setup, repo="zai-org/GLM-5.1-FP8", files=("*.json", "*.txt", "model-0000*.safetensors")
    )
    manifest = fetch_manifest(hub_url, setup)
    assert len({file.path for file in manifest.files}) > 3
    (tmp_path / "manifest.json").write_bytes(manifest.to_json())
    target = tmp_path / "weights"
    env = {"HF_ENDPOINT": hub_url, "HF_HOME": str(tmp_path / "hf"), "PATH": os.environ["PATH"]}
    subprocess.run([sys.executable, "-I", SCRIPT, tmp_path / "manifest.json", target], env=env, check=True)

    def verify() -> subprocess.CompletedProcess[str]:
        words = [str(HF), "cache", "verify", setup.repo, "--revision", manifest.revision]
        return subprocess.run(
            [*words, "--local-dir", str(target)], env=env, capture_output=True, text=True, check=False
        )

    good = verify()
    assert good.returncode == 0, good.stdout + good.stderr
    victim = target / next(file.path for file in manifest.files if file.path.endswith(".safetensors"))
    data = bytearray(victim.read_bytes())
    data[-1] ^= 1
    victim.write_bytes(data)
    assert verify().returncode != 0


def test_a_download_goes_on_after_the_job_was_killed_and_after_the_host_was_restarted(tmp_path: Path):
    """F12: three attempts, one file; each goes on near where the one before it was ended."""
    size = 24 * MIB
    files = {"big.gguf": blob(size)}
    with (
        serving(FileHub(files, pause_s=0.01)) as hub,
        sandbox_node(tmp_path) as node,
    ):
        manifest = Manifest(
            REPO, REVISION, (WeightFile("big.gguf", size, sha256=_sha256(files["big.gguf"])),)
        )
        with _login(node) as session:
            first = _start(session, manifest, hub, 1)
            _until_served(hub, size // 4)
            jobs.stop(session, first, signal_name="KILL")
            assert _ended(session, first).state is JobState.LOST
            second = _start(session, manifest, hub, 2)
            _until_served(hub, size // 2)
        node.restart()
        hub.pause_s = 0
        with _login(node) as session:
            assert jobs.read(session, second).state is JobState.LOST
            final = f"{session.home()}/{manifest.folder}/big.gguf"
            assert not session.run(["test", "-e", final]).is_ok, "half a file has no final name"
            report = _ended(session, _start(session, manifest, hub, 3))
            assert report.state is JobState.SUCCEEDED, report.log_tail
            assert session.run_ok(["sha256sum", final]).split()[0] == _sha256(files["big.gguf"])
        # Each of the two ends costs what was under way since the last note of eight workers.
        assert hub.served_bytes < 2 * size


def test_a_download_tells_its_speed_and_when_it_will_be_done(tmp_path: Path):
    files = {"big.gguf": blob(24 * MIB)}
    with serving(FileHub(files, pause_s=0.03)) as hub:
        process = subprocess.Popen(
            [sys.executable, "-I", SCRIPT, hub.manifest(tmp_path), tmp_path / "w", "--workers", "2"],
            env={"HF_ENDPOINT": hub.url, "PROGRESS_FILE": str(tmp_path / "progress")},
            stdout=subprocess.DEVNULL,
        )
        try:
            deadline_s = time.monotonic() + 30
            text = ""
            while "left" not in text and time.monotonic() < deadline_s:
                time.sleep(0.1)
                if (tmp_path / "progress").exists():
                    text = json.loads((tmp_path / "progress").read_text())["text"]
        finally:
            process.kill()
            process.wait()
    assert "MB/s" in text and "left" in text


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _login(node: SandboxNode) -> NodeSession:
    session = NodeSession.connect(node.address, node.keys.private_key_file, allow_loopback=True)
    prove_nonce(session, node)
    return session


def _start(session: NodeSession, manifest: Manifest, hub: FileHub, attempt: int) -> JobId:
    job_id = JobId(f"sync-{attempt}")
    home = session.home()
    weights.send_sync(session, home, manifest)
    spec = weights.sync_job(home, job_id, manifest)
    argv = (*spec.argv, "--segment-bytes", str(4 * MIB))
    assert jobs.start(session, replace(spec, argv=argv, env={**spec.env, "HF_ENDPOINT": hub.url}))
    return job_id


def _until_served(hub: FileHub, more: int) -> None:
    wanted, deadline_s = hub.served_bytes + more, time.monotonic() + 40
    while hub.served_bytes < wanted and time.monotonic() < deadline_s:
        time.sleep(0.01)
    assert hub.served_bytes >= wanted


def _ended(session: NodeSession, job_id: JobId) -> JobReport:
    deadline_s = time.monotonic() + 40
    while True:
        report = jobs.read(session, job_id)
        if report.state not in (JobState.RUNNING, JobState.ABSENT) or time.monotonic() > deadline_s:
            return report
        time.sleep(0.05)

"""The engine on a base image: real pip, and uv where there is one, against the sandbox's index."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import uvicorn

from clorefleet.config.recipes import load_recipes
from clorefleet.domain.failure import Cause
from clorefleet.domain.identity import JobId
from clorefleet.domain.node import JobReport, JobState
from clorefleet.domain.recipe import EngineName, EngineSupport, ImageVariant
from clorefleet.node import bootstrap, install, jobs
from clorefleet.node.session import NodeSession
from clorefleet.sandbox.hub import Hub, HubFaults, hub_app
from clorefleet.sandbox.lines import NodeLines
from clorefleet.sandbox.package_index import RELEASES, Release
from tests.fleet.builders import plan
from tests.node.world import IMAGE, TRUTH, SandboxNode, prove_nonce, sandbox_node
from tests.sandbox.node_world import tiny_assets

SCRIPT = Path(install.__file__).parent / "payload" / "install_engine.py"
PINS = ImageVariant(IMAGE, "12.8", packages=("sglang==0.5.10",), install_bytes=1_000_000)
SUPPORT = EngineSupport(EngineName.SGLANG, "lmsysorg/sglang:v1", (), min_version="0.5.10", variants=(PINS,))
SETUP = replace(plan().setup, engine=EngineName.SGLANG, image=IMAGE, memory_fraction=0.88)
SGLANG, TORCH, TRANSFORMERS = (
    "sglang-0.5.10-py3-none-any.whl",
    "torch-2.9.1-py3-none-any.whl",
    "transformers-5.3.0-py3-none-any.whl",
)
SLOW_MBIT_S, FAST_MBIT_S = 0.2, 10_000.0


@dataclass
class Index:
    url: str
    hub: Hub
    lines: NodeLines

    @property
    def asked(self) -> dict[str, int]:
        return dict(self.hub.packages.asked)


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    lines = NodeLines()
    app = hub_app(assets=tiny_assets(tmp_path), lines=lines, faults=HubFaults())
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        yield Index(f"http://127.0.0.1:{listening.getsockname()[1]}", app.state.hub, lines)
        server.should_exit = True
        server.force_exit = True
        thread.join(10)


@pytest.fixture
def node(tmp_path: Path, index: Index) -> Iterator[SandboxNode]:
    with sandbox_node(tmp_path, index.url) as running:
        yield running


def login(node: SandboxNode) -> NodeSession:
    session = NodeSession.connect(node.address, node.keys.private_key_file, allow_loopback=True)
    prove_nonce(session, node)
    return session


def ended(session: NodeSession, job_id: JobId) -> tuple[JobReport, Cause | None, str]:
    deadline_s = time.monotonic() + 120
    while True:
        found = install.read_install(session, job_id)
        if found[0].state not in (JobState.RUNNING, JobState.ABSENT) or time.monotonic() > deadline_s:
            return found
        time.sleep(0.1)


def installed(session: NodeSession, name: str, variant: ImageVariant = PINS) -> Cause | None:
    """Run one install to its end; its cause where it failed."""
    install.start_install(session, JobId(name), variant)
    report, cause, words = ended(session, JobId(name))
    assert report.state in (JobState.SUCCEEDED, JobState.FAILED), report
    assert bool(words) == (cause is not None)
    assert (report.state is JobState.FAILED) == (cause is not None), report.log_tail
    return cause


def until_asked(index: Index, file: str) -> None:
    deadline_s = time.monotonic() + 60
    while not index.asked.get(file) and time.monotonic() < deadline_s:
        time.sleep(0.02)
    assert index.asked.get(file)


@pytest.mark.timeout(300)
def test_an_install_goes_on_after_a_kill_and_after_a_host_restart_and_fetches_nothing_twice(
    node: SandboxNode, index: Index
):
    index.lines.connect(1, down_mbit_s=SLOW_MBIT_S)
    with login(node) as session:
        assert bootstrap.engine_missing(session, SETUP, SUPPORT), "nothing is there before"
        first = JobId("install-1")
        install.start_install(session, first, PINS)
        until_asked(index, TORCH)
        jobs.stop(session, first, signal_name="KILL")
        assert ended(session, first)[0].state is JobState.LOST
        assert bootstrap.engine_missing(session, SETUP, SUPPORT), "half an install is none"
        second = JobId("install-2")
        install.start_install(session, second, PINS)
        deadline_s = time.monotonic() + 60
        while index.asked[TORCH] < 2 and time.monotonic() < deadline_s:
            time.sleep(0.02)
    node.restart()
    index.lines.connect(1, down_mbit_s=FAST_MBIT_S)
    with login(node) as session:
        assert jobs.read(session, second).state is JobState.LOST
        assert installed(session, "install-3") is None
        assert index.asked == {SGLANG: 1, TORCH: 3, TRANSFORMERS: 1}, "only what was cut came again"
        assert bootstrap.engine_missing(session, SETUP, SUPPORT) == ""
        newer = replace(SUPPORT, min_version="0.6.0")
        assert "is 0.5.10" in bootstrap.engine_missing(session, SETUP, newer)

        assert installed(session, "install-4") is None, "again: it is there already"
        prefix = install.prefix_of(session.home(), PINS.packages)
        session.run_ok(["rm", "-r", prefix])
        assert installed(session, "install-5") is None
        assert sum(index.asked.values()) == 5, "made anew from the cache alone"


@pytest.mark.timeout(300)
def test_what_cannot_be_installed_says_why_by_its_cause(node: SandboxNode, index: Index):
    index.hub.packages.releases = (*RELEASES, Release("asks", "1.0", ("nowhere==1.0",)))
    with login(node) as session:
        for number, (pins, cause) in enumerate(
            [
                (("sglang==9.9.9",), Cause.PACKAGE_NOT_FOUND),
                (("no-such-package==1.0",), Cause.PACKAGE_NOT_FOUND),
                (("asks==1.0",), Cause.PACKAGE_NOT_FOUND),
                (("only-source==1.0",), Cause.BUILD_NEEDED),
            ]
        ):
            assert installed(session, f"pins-{number}", replace(PINS, packages=pins)) is cause, pins
        before = index.asked
        huge = replace(PINS, install_bytes=TRUTH.disk_free_bytes * 2)
        assert installed(session, "no-room", huge) is Cause.DISK_FULL
        assert index.asked == before, "the disk is looked at before anything is fetched"

        index.hub.faults.wrong_bytes_in.add(TORCH)
        assert installed(session, "wrong-bytes") is Cause.BAD_PACKAGE
        assert bootstrap.engine_missing(session, SETUP, SUPPORT)
        index.hub.faults.wrong_bytes_in.clear()
        assert installed(session, "right-bytes") is None, "wrong bytes were not kept in the cache"


def test_without_an_index_the_cause_is_the_index(tmp_path: Path):
    with sandbox_node(tmp_path) as node, login(node) as session:
        assert installed(session, "no-index") is Cause.INDEX_UNREACHABLE


def run_script(
    tmp_path: Path, index: Index, *words: str, python: str = sys.executable, path: str = os.environ["PATH"]
) -> subprocess.CompletedProcess[str]:
    """The installer on this machine itself, as a node would run it."""
    return subprocess.run(
        [python, "-I", str(SCRIPT), str(tmp_path / "engines/x"), str(tmp_path / "wheels"), *words],
        env={
            "PATH": path,
            "HOME": str(tmp_path),
            "PIP_INDEX_URL": f"{index.url}/simple",
            "PIP_CONSTRAINT": "/an/image/of/its/own",
            "PROGRESS_FILE": str(tmp_path / "progress"),
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_a_line_too_slow_ends_by_the_deadline_and_leaves_nothing_that_looks_whole(
    tmp_path: Path, index: Index
):
    index.lines.connect(1, down_mbit_s=0.001)
    slow = replace(index, url=f"{index.url}/n/1")
    run = run_script(tmp_path, slow, "--deadline-s", "3", "sglang==0.5.10")
    assert run.returncode == 35, run.stdout
    assert install.CAUSES[35][0] is Cause.TOOK_TOO_LONG
    assert not (tmp_path / "engines/x/.complete").exists()
    assert json.loads((tmp_path / "progress").read_text())["text"]


def test_where_the_images_pip_is_none_or_too_old_the_environment_gets_its_own(tmp_path: Path, index: Index):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "image"], check=True)
    python = str(tmp_path / "image/bin/python")
    done = run_script(tmp_path, index, "sglang==0.5.10", python=python, path=str(tmp_path / "no uv"))
    assert done.returncode == 0, done.stdout
    assert (tmp_path / "engines/x/bin/pip").exists()
    assert index.asked == {SGLANG: 1, TORCH: 1, TRANSFORMERS: 1}


@pytest.mark.skipif(shutil.which("uv") is None, reason="no `uv` command installed")
def test_uv_does_the_same_where_there_is_one(tmp_path: Path, index: Index):
    assert run_script(tmp_path, index, "sglang==9.9.9").returncode == 31
    assert run_script(tmp_path, index, "only-source==1.0").returncode == 32
    index.hub.faults.wrong_bytes_in.add(TORCH)
    assert run_script(tmp_path, index, "sglang==0.5.10").returncode == 34
    index.hub.faults.wrong_bytes_in.clear()
    done = run_script(tmp_path, index, "sglang==0.5.10")
    assert done.returncode == 0, done.stdout
    asked = index.asked
    shutil.rmtree(tmp_path / "engines/x")
    assert run_script(tmp_path, index, "sglang==0.5.10").returncode == 0
    assert index.asked == asked, "made anew from the cache alone"


def test_every_pin_of_the_recipes_is_in_the_sandboxs_index():
    pins = {
        pin
        for recipe in load_recipes().values()
        for support in recipe.engines
        for image in (support.image, *(each.image for each in support.variants))
        for pin in support.variant_of(image).packages
    }
    assert pins and pins <= {f"{each.name}=={each.version}" for each in RELEASES}

"""Weights from this machine: whole or not at all, and resumed where the line was cut."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from clorefleet.domain.errors import NodeUnreachable, WeightsFailed
from clorefleet.domain.node import JobReport, JobState
from clorefleet.domain.setup import Setup
from clorefleet.node import push
from clorefleet.node.push import Push, manifest_of_path
from clorefleet.node.session import NodeSession
from clorefleet.node.weights import COMPLETE_STAMP, Manifest
from tests.fleet.builders import plan
from tests.node.test_fetch_weights import blob
from tests.node.world import Server

MIB = 1 << 20


def setup_of(path: Path, *patterns: str) -> Setup:
    return replace(plan().setup, repo=path.as_uri(), files=patterns or ("*",))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "my model"
    (folder / "sub").mkdir(parents=True)
    (folder / "big file.gguf").write_bytes(blob(24 * MIB + 17))
    (folder / "sub/config.json").write_bytes(b"{}")
    (folder / "empty.txt").write_bytes(b"")
    (folder / ".hidden").write_bytes(b"mine")
    return folder


def ended(each: Push) -> JobReport:
    deadline_s = time.monotonic() + 60
    while each.report.state is JobState.RUNNING and time.monotonic() < deadline_s:
        time.sleep(0.02)
    return each.report


def send(setup: Setup, session: NodeSession) -> tuple[JobReport, Manifest]:
    kept: list[Manifest] = []
    each = Push(setup, lambda: session, kept.append, sleep=lambda _: None)
    each.start()
    return ended(each), kept[0]


def digest(session: NodeSession, manifest: Manifest, path: str) -> str:
    return session.run_ok(["sha256sum", f"{session.home()}/{manifest.folder}/{path}"]).split()[0]


def test_a_folder_arrives_whole_and_is_stamped(source: Path, session: NodeSession):
    report, manifest = send(setup_of(source), session)
    assert (report.state, report.progress_done) == (JobState.SUCCEEDED, manifest.total_bytes), report
    assert [file.path for file in manifest.files] == ["big file.gguf", "empty.txt", "sub/config.json"]
    for file in manifest.files:
        assert digest(session, manifest, file.path) == file.sha256
    session.run_ok(["test", "-s", f"{session.home()}/{manifest.folder}/{COMPLETE_STAMP}"])


def test_one_file_is_enough(source: Path, session: NodeSession):
    report, manifest = send(setup_of(source / "sub/config.json"), session)
    assert report.state is JobState.SUCCEEDED
    assert [file.path for file in manifest.files] == ["config.json"]


def test_what_was_cut_goes_on_where_it_was(source: Path, session: NodeSession, server: Server):
    """Two connections: the first dies in the middle of the file."""
    sent = 0

    def sessions() -> Iterator[NodeSession]:
        first = NodeSession.connect(
            server.address,
            server.keys.private_key_file,
            pinned_host_key=session.host_key,
            allow_loopback=True,
        )
        original = first.append_file

        def cut(path: str, offset: int, read: object) -> Iterator[int]:
            for count in original(path, offset, read):  # type: ignore[arg-type]
                yield count
                if each._sent > 16 * MIB:
                    first.close()

        first.append_file = cut  # type: ignore[method-assign]
        yield first
        while True:
            yield session

    source_of = sessions()
    kept: list[Manifest] = []
    (source / "big file.gguf").write_bytes(blob(24 * MIB + 17, seed=5))
    each = Push(setup_of(source, "*.gguf"), lambda: next(source_of), kept.append, sleep=lambda _: None)
    each.start()
    report = ended(each)
    assert report.state is JobState.SUCCEEDED, report
    sent, size = each._sent, kept[0].total_bytes
    assert size < sent <= size + push.REWIND_BYTES + 9 * MIB
    assert digest(session, kept[0], "big file.gguf") == kept[0].files[0].sha256


def test_a_second_push_sends_nothing(source: Path, session: NodeSession):
    send(setup_of(source), session)
    each = Push(setup_of(source), lambda: session, lambda _: None)
    each.start()
    assert ended(each).state is JobState.SUCCEEDED and each._sent == 0


def test_wrong_bytes_get_no_name_and_are_sent_again(source: Path, session: NodeSession):
    """What a part begins with is somebody else's."""
    (source / "big file.gguf").write_bytes(blob(24 * MIB + 17, seed=9))
    _, manifest = manifest_of_path(setup_of(source, "*.gguf"))
    folder = f"{session.home()}/{manifest.folder}"
    session.run_ok(["mkdir", "-p", folder])
    session.run_ok(["sh", "-c", 'head -c 20000000 /dev/zero > "$1/big file.gguf.part"', "sh", folder])
    report, manifest = send(setup_of(source, "*.gguf"), session)
    assert report.state is JobState.SUCCEEDED
    assert digest(session, manifest, "big file.gguf") == manifest.files[0].sha256


def test_a_line_that_stays_dead_is_a_typed_end(source: Path):
    def nobody() -> NodeSession:
        raise NodeUnreachable("gone")

    each = Push(setup_of(source), nobody, lambda _: None, sleep=lambda _: None)
    each.start()
    report = ended(each)
    assert (report.state, report.exit_code) == (JobState.FAILED, 25) and "gone" in report.log_tail[-1]


@pytest.mark.parametrize("name", ["nowhere", "my model"])
def test_a_path_without_the_wanted_files_says_so(name: str, source: Path):
    with pytest.raises(WeightsFailed) as caught:
        manifest_of_path(setup_of(source.parent / name, "*.safetensors"))
    assert caught.value.cause == "not_found"

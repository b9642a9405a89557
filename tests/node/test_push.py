"""Weights from this machine: whole or not at all, and resumed where the line was cut."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from clorefleet.domain.errors import NodeUnreachable, WeightsFailed
from clorefleet.domain.failure import Cause, blames_host
from clorefleet.domain.identity import JobId, LeaseId
from clorefleet.domain.node import JobReport, JobState
from clorefleet.domain.setup import Setup
from clorefleet.node import bootstrap, push
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
    assert (report.state, bootstrap.sync_cause(report)) == (JobState.FAILED, Cause.UPLOAD_BROKE)
    assert "gone" in report.log_tail[-1]


class Keepless:
    """A node that takes what is sent and then fails to write it (a quota, a disk that is read-only)."""

    tries = 0

    def home(self) -> str:
        return "/root"

    def run_ok(self, *_: object, **__: object) -> str:
        return "-\n0\n999999999999\n"  # no file, no part of one, and room

    def append_file(self, path: str, offset: int, read: Callable[[], bytes]) -> Iterator[int]:
        self.tries += 1
        yield len(read())
        raise NodeUnreachable("Failure")


def test_a_node_that_keeps_nothing_is_given_up_though_bytes_leave(source: Path):
    session = Keepless()
    each = Push(setup_of(source), lambda: cast(NodeSession, session), lambda _: None, sleep=lambda _: None)
    each.start()
    assert ended(each).state is JobState.FAILED
    assert session.tries == push.CUTS_MAX


def test_weights_that_are_gone_or_changed_here_are_nobody_elses_fault(source: Path, session: NodeSession):
    """They were there when the server was rented."""
    (source / "big file.gguf").write_bytes(blob(MIB, seed=2))
    lost, _ = send_after(lambda: (source / "big file.gguf").unlink(), setup_of(source), session)
    assert bootstrap.sync_cause(lost) is Cause.LOCAL_WEIGHTS, lost
    (source / "big file.gguf").write_bytes(blob(MIB, seed=4))
    changed, _ = send_after(
        lambda: (source / "big file.gguf").write_bytes(blob(MIB, seed=3)), setup_of(source), session
    )
    assert bootstrap.sync_cause(changed) is Cause.LOCAL_WEIGHTS and "changed" in changed.log_tail[-1], changed
    for cause in (Cause.LOCAL_WEIGHTS, Cause.UPLOAD_BROKE):
        assert not blames_host(cause, setup_of(source))


def send_after(change: Callable[[], object], setup: Setup, session: NodeSession) -> tuple[JobReport, Push]:
    """`change` happens once the list of files is made."""
    each = Push(setup, lambda: session, lambda _: change(), sleep=lambda _: None)
    each.start()
    return ended(each), each


def test_a_file_damaged_on_the_node_is_sent_again_and_no_other(source: Path, session: NodeSession):
    _, manifest = send(setup_of(source), session)
    big = f"{session.home()}/{manifest.folder}/big file.gguf"
    damage = 'printf XXXX | dd of="$1" bs=1 seek=9000000 conv=notrunc 2>/dev/null'
    session.run_ok(["sh", "-c", damage, "sh", big])
    each = Push(setup_of(source), lambda: session, lambda _: None, verifies_again=True)
    each.start()
    assert ended(each).state is JobState.SUCCEEDED and each._sent == 24 * MIB + 17
    assert digest(session, manifest, "big file.gguf") == manifest.files[0].sha256


def test_each_start_of_the_job_is_one_push(source: Path, session: NodeSession):
    pushes, made = push.Pushes(), []

    def make() -> Push:
        made.append(Push(setup_of(source), lambda: session, lambda _: None))
        return made[-1]

    lease_id, first, again = LeaseId("l1"), JobId("l1-syncing-1"), JobId("l1-syncing-again-1")
    for _ in range(2):
        pushes.start(lease_id, first, make)
    assert ended(made[0]).state is JobState.SUCCEEDED and len(made) == 1
    assert pushes.report(lease_id, again).state is JobState.ABSENT
    pushes.start(lease_id, again, make)
    assert ended(made[1]).state is JobState.SUCCEEDED and pushes.report(lease_id, again) == made[1].report


@pytest.mark.parametrize("name", ["nowhere", "my model"])
def test_a_path_without_the_wanted_files_says_so(name: str, source: Path):
    with pytest.raises(WeightsFailed) as caught:
        manifest_of_path(setup_of(source.parent / name, "*.safetensors"))
    assert caught.value.cause == "not_found"

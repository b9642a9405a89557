"""The downloader that runs on nodes: resumable, verified, and never a half file under a final name."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import clorefleet.node
from clorefleet.node.payload import fetch_weights
from clorefleet.node.weights import CAUSES
from tests.node.file_hub import FileHub, serving

SCRIPT = Path(clorefleet.node.__file__).parent / "payload" / "fetch_weights.py"
MIB = 1 << 20
SEGMENT_BYTES = MIB
CODES = {name: code for code, (name, _) in CAUSES.items()}


def blob(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


@pytest.fixture
def hub() -> Iterator[FileHub]:
    files = {"big.gguf": blob(5 * MIB + 123), "sub/folder/small.json": b"{}\n", "empty.txt": b""}
    with serving(FileHub(files)) as running:
        yield running


class Run:
    """One run of the script, with what it left on disk."""

    def __init__(self, hub: FileHub, folder: Path, manifest: Path | None = None, **env: str) -> None:
        self.target = folder / "weights"
        self.progress_file = folder / "progress"
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-I", str(SCRIPT), str(manifest or hub.manifest(folder)), str(self.target)),
                *("--segment-bytes", str(SEGMENT_BYTES), "--workers", "3"),
            ],
            env={"HF_ENDPOINT": hub.url, "PROGRESS_FILE": str(self.progress_file), **env},
            stdout=subprocess.PIPE,
            text=True,
        )

    def end(self) -> int:
        self.output = self.process.communicate(timeout=60)[0]
        return self.process.returncode

    def files(self) -> dict[str, bytes]:
        """Everything under a final name."""
        found = sorted(path for path in self.target.rglob("*") if path.is_file())
        names = [path.relative_to(self.target) for path in found]
        return {
            str(name): path.read_bytes()
            for name, path in zip(names, found, strict=True)
            if name.parts[0] not in (".parts", ".complete")
        }


def test_a_checkpoint_arrives_whole_and_side_by_side(hub: FileHub, tmp_path: Path):
    hub.pause_s = 0.002
    run = Run(hub, tmp_path)
    assert run.end() == 0, run.output
    assert run.files() == hub.files
    assert hub.open_bodies_max > 1
    stamp = (run.target / ".complete").read_text().strip()
    assert stamp == hashlib.sha256((tmp_path / "manifest.json").read_bytes()).hexdigest()
    assert not (run.target / ".parts").exists()
    progress = json.loads(run.progress_file.read_text())
    total = sum(map(len, hub.files.values()))
    assert (progress["done"], progress["total"], progress["verified"], progress["files"]) == (
        total,
        total,
        3,
        3,
    )


def test_a_second_run_asks_for_nothing(hub: FileHub, tmp_path: Path):
    assert Run(hub, tmp_path).end() == 0
    before = len(hub.requests)
    assert Run(hub, tmp_path).end() == 0
    assert len(hub.requests) == before


def test_what_an_engine_calls_damaged_is_verified_again_and_only_the_damaged_file_is_fetched(
    hub: FileHub, tmp_path: Path
):
    assert Run(hub, tmp_path).end() == 0
    big = tmp_path / "weights" / "big.gguf"
    big.write_bytes(b"XXXX" + big.read_bytes()[4:])
    before = hub.served_bytes
    trusting = Run(hub, tmp_path)
    assert trusting.end() == 0 and hub.served_bytes == before
    again = Run(hub, tmp_path, VERIFY_AGAIN="1")
    assert again.end() == 0 and "big.gguf: damaged on this disk" in again.output
    assert again.files() == hub.files and hub.served_bytes == before + len(hub.files["big.gguf"])
    progress = json.loads(again.progress_file.read_text())
    assert (progress["done"], progress["verified"]) == (progress["total"], 3)


def test_while_files_are_verified_again_the_folder_does_not_count_as_whole(hub: FileHub, tmp_path: Path):
    """An engine is launched by the stamp alone."""
    assert Run(hub, tmp_path).end() == 0
    big = tmp_path / "weights" / "big.gguf"
    big.write_bytes(b"XXXX" + big.read_bytes()[4:])
    hub.refusals = [404]
    assert Run(hub, tmp_path, VERIFY_AGAIN="1").end() == CODES["not_found"]
    assert not big.exists() and not (tmp_path / "weights" / ".complete").exists()


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path):
    """F12: what was served in both runs together is hardly more than the file."""
    size = 16 * MIB
    with serving(FileHub({"big.gguf": blob(size)}, pause_s=0.004)) as hub:
        first = Run(hub, tmp_path)
        deadline_s = time.monotonic() + 30
        while hub.served_bytes < size // 2 and time.monotonic() < deadline_s:
            time.sleep(0.01)
        first.process.kill()
        first.end()
        assert first.files() == {}
        before = hub.served_bytes
        assert size // 2 <= before < size
        hub.pause_s = 0
        second = Run(hub, tmp_path)
        assert second.end() == 0, second.output
        assert second.files() == hub.files
        # Of each of the three segments that were under way, what came after the last note is fetched again;
        # besides, what the killed run had been sent and had not read yet.
        assert hub.served_bytes <= size + 3 * SEGMENT_BYTES + 3 * MIB


def test_a_line_that_breaks_is_taken_up_again(hub: FileHub, tmp_path: Path):
    hub.cut_after = [300_000, 100_000]
    run = Run(hub, tmp_path)
    assert run.end() == 0, run.output
    assert run.files() == hub.files
    assert "ended" in run.output and "early" in run.output


def test_a_try_that_brings_bytes_begins_the_count_of_tries_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(fetch_weights, "PAUSE_FIRST_S", 0.0)
    (tmp_path / ".parts").mkdir()
    entry = {"path": "a", "size": 1000, "sha256": "0" * 64}
    manifest = {"repo": "a/b", "revision": "c", "files": [entry]}
    fetcher = fetch_weights.Fetcher(
        manifest, str(tmp_path), fetch_weights.Progress(1000, 1, None), segment_bytes=1 << 20
    )
    [part] = fetcher.parts
    brings = [0] * (fetch_weights.ATTEMPTS_MAX - 1) + [500] + [0] * (fetch_weights.ATTEMPTS_MAX - 2) + [500]

    def fetch_rest(part: object, index: int) -> None:
        part.done[index] += brings.pop(0)
        if brings:
            raise ConnectionError("broke")

    monkeypatch.setattr(fetcher, "fetch_rest", fetch_rest)
    fetcher.fetch_segment(part, 0)
    assert part.done == [1000]


def test_a_server_without_ranges_serves_all_the_same(hub: FileHub, tmp_path: Path):
    hub.has_ranges = False
    run = Run(hub, tmp_path)
    assert run.end() == 0, run.output
    assert run.files() == hub.files


def test_wrong_bytes_of_the_right_length_never_get_a_name(hub: FileHub, tmp_path: Path):
    """F13, S12."""
    manifest = hub.manifest(tmp_path)
    hub.files["big.gguf"] = blob(5 * MIB + 123, seed=2)
    run = Run(hub, tmp_path, manifest)
    assert run.end() == CODES["checksum"]
    assert "big.gguf" not in run.files() and not (run.target / ".complete").exists()
    assert not list((run.target / ".parts").glob("*.part"))


def test_wrong_bytes_once_are_fetched_again(hub: FileHub, tmp_path: Path):
    manifest = hub.manifest(tmp_path)
    good = hub.files["big.gguf"]
    hub.files["big.gguf"] = blob(len(good), seed=2)
    hub.pause_s = 0.001
    run = Run(hub, tmp_path, manifest)
    while sum("big" in path for path, *_ in hub.requests) < 6:
        time.sleep(0.001)
    hub.files["big.gguf"] = good
    assert run.end() == 0, run.output
    assert run.files() == hub.files and "wrong bytes; fetching it again" in run.output


def test_a_journal_that_claims_too_much_is_found_out(hub: FileHub, tmp_path: Path):
    """A host that crashed may have kept the journal and lost the data."""
    manifest = hub.manifest(tmp_path)
    run = Run(hub, tmp_path, manifest)
    run.process.kill()
    run.end()
    shutil.rmtree(run.target, ignore_errors=True)
    (run.target / ".parts").mkdir(parents=True)
    stem = run.target / ".parts" / hashlib.sha256(b"big.gguf").hexdigest()[:24]
    data = hub.files["big.gguf"]
    digest = hashlib.sha256(data).hexdigest()
    stem.with_suffix(".part").write_bytes(bytes(len(data)))
    stem.with_suffix(".journal").write_text(
        f"{len(data)} {SEGMENT_BYTES} {digest}\n0 1048576\n1 9999999999\n2 12"
    )
    run = Run(hub, tmp_path, manifest)
    assert run.end() == 0, run.output
    assert run.files() == hub.files


@pytest.mark.parametrize(
    "refusals, cause",
    [([401], "unauthorised"), ([403], "unauthorised"), ([404], "not_found"), ([416], "checksum")],
)
def test_a_refusal_that_waiting_does_not_cure_ends_the_run(
    refusals: list[int], cause: str, hub: FileHub, tmp_path: Path
):
    hub.refusals = refusals
    run = Run(hub, tmp_path)
    assert run.end() == CODES[cause]
    assert "FAILED" in run.output


def test_a_hub_that_limits_the_rate_or_stumbles_is_asked_again(hub: FileHub, tmp_path: Path):
    hub.refusals = [429, 500, 503, 429]
    run = Run(hub, tmp_path)
    assert run.end() == 0, run.output
    assert run.files() == hub.files


def test_a_hub_that_goes_on_limiting_is_given_up(hub: FileHub, tmp_path: Path):
    hub.refusals = [429] * 1000
    assert Run(hub, tmp_path).end() == CODES["rate_limited"]


def test_the_token_goes_to_the_hub_alone(hub: FileHub, tmp_path: Path):
    """S10: large files come from elsewhere."""
    with serving(FileHub(hub.files), host="localhost") as elsewhere:
        hub.moved_to = elsewhere.url
        run = Run(hub, tmp_path, HF_TOKEN="hf_canary")
        assert run.end() == 0, run.output
        assert {token for *_, token in hub.requests} == {"Bearer hf_canary"}
        assert {token for *_, token in elsewhere.requests} == {None}
    left = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(b"hf_canary" in data for data in left) and "hf_canary" not in run.output


def test_a_disk_that_is_too_small_is_told_before_the_first_byte(hub: FileHub, tmp_path: Path):
    """F9."""
    entry = {"path": "huge.gguf", "size": shutil.disk_usage(tmp_path).free, "sha256": "0" * 64}
    run = Run(hub, tmp_path, hub.manifest(tmp_path, files=[entry]))
    assert run.end() == CODES["disk_full"]
    assert hub.requests == []


def test_a_disk_that_fills_up_under_way_is_told_as_that(hub: FileHub, tmp_path: Path):
    """E2: a write that finds no space, by a device that never has any."""
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    target = tmp_path / "weights"
    (target / ".parts").mkdir(parents=True)
    data = b"x" * 1000
    hub.files = {"small.bin": data}
    journal = target / ".parts" / (hashlib.sha256(b"small.bin").hexdigest()[:24] + ".journal")
    journal.symlink_to("/dev/full")
    run = Run(hub, tmp_path)
    assert run.end() == CODES["disk_full"], run.output
    assert run.files() == {}


@pytest.mark.parametrize(
    "entry",
    [
        {"path": "../outside"},
        {"path": "/tmp/outside"},
        {"path": "a/../../outside"},
        {"path": "a//b"},
        {"path": ".parts/x"},
        {"path": ".complete"},
        {"path": "a\nb"},
        {"path": "big.gguf/under-a-file"},
        {"size": -1},
        {"size": "many"},
        {"sha256": ""},
        {"path": None},
    ],
)
def test_a_manifest_that_cannot_be_trusted_is_refused_whole(entry: dict, hub: FileHub, tmp_path: Path):
    """G2, S14."""
    good = {"path": "big.gguf", "size": 3, "sha256": "0" * 64}
    run = Run(hub, tmp_path, hub.manifest(tmp_path, files=[good, {**good, "path": "other", **entry}]))
    assert run.end() == CODES["bad_manifest"]
    assert hub.requests == [] and not (tmp_path / "outside").exists()


def test_a_folder_that_is_a_link_out_is_not_followed(hub: FileHub, tmp_path: Path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "sub").symlink_to(outside)
    run = Run(hub, tmp_path)
    assert run.end() == CODES["bad_manifest"], run.output
    assert not [path for path in outside.rglob("*") if path.is_file()]


@pytest.mark.parametrize("text", ["", "[]", "{", '{"files": {}}', "\x00"])
def test_nonsense_in_place_of_a_manifest_is_typed(text: str, hub: FileHub, tmp_path: Path):
    file = tmp_path / "nonsense.json"
    file.write_text(text)
    assert Run(hub, tmp_path, file).end() == CODES["bad_manifest"]


def test_a_folder_that_cannot_be_written_is_no_fault_of_the_line(hub: FileHub, tmp_path: Path):
    (tmp_path / "weights").write_text("a file is in the way")
    assert Run(hub, tmp_path).end() == CODES["storage"]

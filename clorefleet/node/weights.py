"""What a checkpoint consists of, asked of the hub by us; and the job that brings it to the node.

The manifest (path, bytes, digest) is read on our side, from the hub, never from the node. The node
fetches by it and verifies each file before it gets its final name (`payload/fetch_weights.py`).
"""

from __future__ import annotations

import json
import re
import time
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx

from clorefleet.config.settings import DEFAULT_HUB_URL
from clorefleet.domain.errors import WeightsFailed
from clorefleet.domain.identity import JobId
from clorefleet.domain.secret import NO_SECRET, Secret
from clorefleet.domain.setup import Setup
from clorefleet.domain.text import clean_line
from clorefleet.node.jobs import JobSpec
from clorefleet.node.session import NodeSession

HUB_TIMEOUT_S = 30.0
HUB_ANSWER_S_MAX = 90.0
"""For one whole answer: the timeout above starts anew with every byte (A19)."""
ANSWER_MAX_BYTES = 16 << 20
FILES_MAX = 5_000
PATH_MAX_CHARS = 300
PAGES_MAX = 50
WEIGHTS_DIR = ".clorefleet/weights"
"""Below the node's home."""
COMPLETE_STAMP = ".complete"
"""In the weights' folder once every file was verified."""
_SCRIPT_PATH = ".clorefleet/bin/fetch_weights.py"
_RESERVED = (".parts", COMPLETE_STAMP)
_WITH_PYTHON = """
command -v python3 >/dev/null || {
  echo "the image has no python3; installing it"
  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends python3
}
exec python3 "$@"
"""
"""Some engine images, llama.cpp's among them, come without Python [assumed]; all are Debian or Ubuntu."""
_REPO = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SHA1 = re.compile(r"[0-9a-f]{40}")

HOW_TO_OPT_IN = (
    "Where your account may read it, name it in hub_token_for of config.toml and set hub_token: one that "
    "reads this repository alone and runs out soon, since the rented machine sees it"
)
CAUSES = {
    20: ("unauthorised", f"the hub refuses the weights: the model is gated or not there. {HOW_TO_OPT_IN}"),
    21: ("not_found", "the hub does not have the weights"),
    22: ("rate_limited", "the hub limits the rate of downloads"),
    23: ("disk_full", "the disk is full"),
    24: ("checksum", "a file arrived with wrong bytes twice"),
    25: ("network", "the download broke too often"),
    26: ("bad_manifest", "the list of files cannot be used"),
    27: ("storage", "the disk cannot be written"),
    28: ("local_weights", "the files on this machine cannot be had"),
    29: ("upload_broke", "the way from this machine to the server broke too often"),
}
"""Exit codes of the node's downloader, with a stable name and words; the last two are of `node.push`."""


@dataclass(frozen=True, slots=True)
class WeightFile:
    path: str
    size: int
    sha256: str = ""
    """Of files kept as large objects; the others have `git_sha1`."""
    git_sha1: str = ""


@dataclass(frozen=True, slots=True)
class Manifest:
    repo: str
    revision: str
    """The commit, so that the files cannot change under the download."""
    files: tuple[WeightFile, ...]

    @property
    def total_bytes(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def folder(self) -> str:
        """Where the files lie on the node, below its home. Another commit is another folder, so that files
        of two can never mix."""
        return f"{WEIGHTS_DIR}/{self.repo.replace('/', '--')}/{self.revision}"

    def to_json(self) -> bytes:
        return json.dumps(
            {"repo": self.repo, "revision": self.revision, "files": [asdict(file) for file in self.files]}
        ).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Manifest:
        """What `to_json` wrote on this machine.

        Raises:
            ValueError: it is something else.
        """
        try:
            document = json.loads(data)
            files = tuple(WeightFile(**entry) for entry in document["files"])
            return cls(document["repo"], document["revision"], files)
        except (KeyError, TypeError) as error:
            raise ValueError("no manifest") from error


def mirror_of(hub_url: str) -> str:
    """The hub that rented servers are told to use; "" leaves it to each server, whose own is the public one.

    A mirror on this machine's loopback is nobody's there, and an address with a password is not given away.
    """
    parts = urlsplit(hub_url)
    host = parts.hostname or ""
    is_here = host == "localhost" or host == "::1" or host.startswith("127.")
    return "" if hub_url == DEFAULT_HUB_URL or is_here or "@" in parts.netloc else hub_url


def fetch_manifest(hub_url: str, setup: Setup, token: Secret = NO_SECRET) -> Manifest:
    """Ask the hub for the files of a setup's checkpoint; a token, if any, goes to that address alone.

    Raises:
        WeightsFailed: with a cause of `CAUSES`.
    """
    if not _REPO.fullmatch(setup.repo):
        raise WeightsFailed(f"“{clean_line(setup.repo)}” is no repository.", cause="bad_manifest")
    base = f"{hub_url.rstrip('/')}/api/models/{setup.repo}"
    headers = {"Authorization": f"Bearer {token.reveal()}"} if token.reveal() else {}
    # Redirects are how the hub answers for repositories that were renamed; elsewhere no token goes along.
    with httpx.Client(
        timeout=HUB_TIMEOUT_S, follow_redirects=True, max_redirects=3, headers=headers
    ) as client:
        info = _get(client, f"{base}/revision/{quote(setup.revision, safe='')}")[0]
        revision = info.get("sha") if isinstance(info, dict) else None
        if not isinstance(revision, str) or not _SHA1.fullmatch(revision):
            raise WeightsFailed("The hub names no commit for the repository.", cause="bad_manifest")
        entries: list[Any] = []
        url: str | None = f"{base}/tree/{revision}?recursive=true&expand=false"
        for _ in range(PAGES_MAX):
            if url is None:
                break
            page, following = _get(client, url)
            entries.extend(page if isinstance(page, list) else [])
            # The next page is where this one was, or nowhere.
            url = following if following and urlsplit(following).netloc == urlsplit(base).netloc else None
    return manifest_of(setup, revision, entries)


def manifest_of(setup: Setup, revision: str, entries: list[Any]) -> Manifest:
    """The wanted files of a hub's tree; anything that does not look like one is refused.

    Raises:
        WeightsFailed: no file matches, a path would leave its folder, or a digest is missing.
    """
    files = []
    for entry in entries:
        if not isinstance(entry, dict) or entry.get("type") != "file":
            continue
        path = entry.get("path")
        if not isinstance(path, str) or not any(fnmatchcase(path, pattern) for pattern in setup.files):
            continue
        files.append(_file(path, entry))
    if not files:
        raise WeightsFailed(
            f"{setup.repo} has no file like {', '.join(setup.files)}.",
            cause="not_found",
            remedy="Check the recipe's files.",
        )
    if len(files) > FILES_MAX:
        raise WeightsFailed(f"{setup.repo} has more than {FILES_MAX} files.", cause="bad_manifest")
    return Manifest(setup.repo, revision, tuple(sorted(files, key=lambda file: file.path)))


def _file(path: str, entry: dict[str, Any]) -> WeightFile:
    parts = path.split("/")
    is_safe = (
        len(path) <= PATH_MAX_CHARS
        and path.isprintable()
        and not any(part in ("", ".", "..") for part in parts)
        and parts[0] not in _RESERVED
    )
    size = entry.get("size")
    lfs = entry.get("lfs")
    if isinstance(lfs, dict):
        digest = str(lfs.get("oid", "")).removeprefix("sha256:")
        size = lfs.get("size", size)
        file = WeightFile(path, size if isinstance(size, int) else -1, sha256=digest)
        has_digest = bool(_SHA256.fullmatch(digest))
    else:
        digest = str(entry.get("oid", ""))
        file = WeightFile(path, size if isinstance(size, int) else -1, git_sha1=digest)
        has_digest = bool(_SHA1.fullmatch(digest))
    if not is_safe or file.size < 0 or not has_digest:
        raise WeightsFailed(
            f"The hub's entry for “{clean_line(path, max_chars=80)}” cannot be trusted.", cause="bad_manifest"
        )
    return file


def _get(client: httpx.Client, url: str) -> tuple[Any, str | None]:
    """A JSON answer, bounded, and the next page's address where there is one."""
    deadline_s = time.monotonic() + HUB_ANSWER_S_MAX
    try:
        with client.stream("GET", url) as answer:
            body = bytearray()
            for chunk in answer.iter_bytes():
                body += chunk
                if len(body) > ANSWER_MAX_BYTES:
                    raise WeightsFailed("The hub's answer is too large.", cause="bad_manifest")
                if time.monotonic() > deadline_s:
                    raise WeightsFailed("The hub's answer comes too slowly.", cause="network")
            status = answer.status_code
            following = answer.links.get("next", {}).get("url")
    except httpx.HTTPError as error:
        raise WeightsFailed(
            f"The hub does not answer: {clean_line(error) or type(error).__name__}", cause="network"
        ) from error
    if status in (401, 403):
        raise WeightsFailed(
            f"The hub refuses: no such repository, or it is gated. {HOW_TO_OPT_IN}.", cause="unauthorised"
        )
    if status == 404:
        raise WeightsFailed("The hub has no such repository or revision.", cause="not_found")
    if status == 429:
        raise WeightsFailed("The hub limits our requests.", cause="rate_limited")
    if status != 200:
        raise WeightsFailed(f"The hub answered {status}.", cause="network")
    try:
        return json.loads(body), following
    except (ValueError, RecursionError) as error:
        raise WeightsFailed("The hub's answer is not JSON.", cause="network") from error


def sync_job(
    home: str,
    job_id: JobId,
    manifest: Manifest,
    *,
    token: Secret = NO_SECRET,
    sibling_token: Secret = NO_SECRET,
    sibling_bytes_per_s_min: float = 0.0,
    verifies_again: bool = False,
    mirror: str = "",
) -> JobSpec:
    """The job that brings the files of `manifest` to the node; `send_sync` must have gone before.

    `token` is the hub's. With `sibling_token` the downloader waits for a sibling's connections, and gives
    them up below `sibling_bytes_per_s_min`. Without a `mirror` the node's environment may name a hub
    (HF_ENDPOINT). With `verifies_again` files that have their names are not believed to be whole still.
    """
    secrets = {"HF_TOKEN": token, "SIBLING_TOKEN": sibling_token}
    return JobSpec(
        job_id,
        (
            *("/bin/sh", "-c", _WITH_PYTHON, "fetch_weights"),
            *(f"{home}/{_SCRIPT_PATH}", manifest_path(home, manifest), f"{home}/{manifest.folder}"),
        ),
        {
            "PROGRESS_FILE": f"{home}/.clorefleet/jobs/{job_id}/progress",
            "SIBLING_BYTES_PER_S_MIN": f"{sibling_bytes_per_s_min:.0f}",
            **({"VERIFY_AGAIN": "1"} if verifies_again else {}),
            **({"HF_ENDPOINT": mirror} if mirror else {}),
        },
        {name: secret for name, secret in secrets.items() if secret.reveal()},
    )


def send_sync(session: NodeSession, home: str, manifest: Manifest) -> None:
    """Put the downloader and the manifest on the node; doing it again changes nothing.

    Raises:
        NodeError: the node cannot hold them.
    """
    script = Path(__file__).parent / "payload" / "fetch_weights.py"
    session.write_file(f"{home}/{_SCRIPT_PATH}", script.read_bytes(), mode=0o700)
    session.write_file(manifest_path(home, manifest), manifest.to_json())


def manifest_path(home: str, manifest: Manifest) -> str:
    """Where `send_sync` puts it on the node."""
    return f"{home}/.clorefleet/manifests/{manifest.revision}.json"

"""Asking a model hub what a repository holds: its `config.json` and its files with their sizes.

Answers come from strangers: they are read inside a size and a time, and only numbers and file names are used.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from clorefleet.domain.errors import BadInput, HubError

TIMEOUT_S = 20.0
ANSWER_MAX_BYTES = 8 * 1024 * 1024
FILES_MAX = 20_000
_REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


@dataclass(frozen=True, slots=True)
class HubModel:
    repo: str
    revision: str
    """The commit that was read."""
    config: Mapping[str, Any]
    """Empty where the repository has no `config.json`, as GGUF repositories do not."""
    files: Mapping[str, int]
    """Path to bytes."""
    weights_total: int | None
    """Bytes of all safetensors by their own index, where there is one."""
    is_simulated: bool = False
    """Served by a sandbox, whose large files are scaled down."""


def fetch_model(hub_url: str, repo: str) -> HubModel:
    """
    Raises:
        BadInput: `repo` is no ORG/NAME.
        HubError: the hub cannot be reached, or does not have the repository.
    """
    import httpx

    if not _REPO.fullmatch(repo):
        raise BadInput(f"“{repo[:60]}” is no repository.", remedy="Give it as ORG/NAME, as on the hub.")
    base = hub_url.rstrip("/")
    # Redirects are how the hub answers for repositories that were renamed; no secret goes along.
    with httpx.Client(timeout=TIMEOUT_S, follow_redirects=True, max_redirects=3) as client:
        about = _get(client, f"{base}/api/models/{repo}?blobs=true", repo)
        names = {
            str(each.get("rfilename")): int(each.get("size") or 0)
            for each in about.get("siblings", [])[:FILES_MAX]
            if isinstance(each, dict)
        }
        config = (
            _get(client, f"{base}/{repo}/resolve/main/config.json", repo) if "config.json" in names else {}
        )
        index_name = "model.safetensors.index.json"
        index = _get(client, f"{base}/{repo}/resolve/main/{index_name}", repo) if index_name in names else {}
    sandbox = about.get("sandbox")
    scale = float(sandbox.get("scale", 1)) if isinstance(sandbox, dict) else 1.0
    metadata = index.get("metadata")
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    return HubModel(
        repo=repo,
        revision=str(about.get("sha", ""))[:40],
        config=config,
        files={name: int(size / scale) for name, size in names.items()},
        weights_total=total if isinstance(total, int) and total > 0 else None,
        is_simulated=isinstance(sandbox, dict),
    )


def _get(client: Any, url: str, repo: str) -> dict[str, Any]:
    import httpx

    try:
        with client.stream("GET", url) as answer:
            if answer.status_code in (401, 403, 404):
                raise HubError(
                    f"The hub has no repository {repo} that is open to all.", remedy="Check its name."
                )
            answer.raise_for_status()
            body = b""
            for chunk in answer.iter_bytes():
                body += chunk
                if len(body) > ANSWER_MAX_BYTES:
                    raise HubError(
                        f"The hub's answer for {repo} is too large.", remedy="Nothing was written."
                    )
        document = json.loads(body)
    except (httpx.HTTPError, ValueError, RecursionError) as error:
        raise HubError(
            f"The hub did not answer for {repo}: {type(error).__name__}.", remedy="Try again."
        ) from error
    if not isinstance(document, dict):
        raise HubError(f"The hub's answer for {repo} has an unknown shape.", remedy="Nothing was written.")
    return document

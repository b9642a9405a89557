"""A stand-in for the Hugging Face hub: the routes that download clients use, over `repository.Shelf`.

    GET       /api/models/{org}/{name}[/revision/{revision}]
    GET       /api/models/{org}/{name}/tree/{revision}
    POST      /api/models/{org}/{name}/paths-info/{revision}
    GET HEAD  /{org}/{name}/resolve/{revision}/{path}
    GET HEAD  /cdn/{org}/{name}/{revision}/{path}

and, beside them, a package index (`package_index`), which the real hub does not have:

    GET HEAD  /simple/{name}/
    GET HEAD  /simple/{name}/files/{file}

Each also exists below `/n/{order}/`, which is the endpoint given to the node of that order: downloads come
at that node's line speed then. A revision is `main` or any full commit id; a repository here has one state.
Large files are answered where they are asked for, or, with `redirects_large`, by a redirect to `/cdn/` as the
real hub does (there to another host).

Every description says that it is simulated and how far it is scaled down, in an extra `sandbox` key.

Faults are fields of `HubFaults` that may be set at any time.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from clorefleet.sandbox.assets import Assets, ensure_assets
from clorefleet.sandbox.lines import Line, NodeLines
from clorefleet.sandbox.package_index import PackageIndex
from clorefleet.sandbox.repository import DEFAULT_WEIGHTS_SCALE, RepoFile, Repository, Shelf

MAIN = "main"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")
_CHUNK_BYTES = 64 * 1024
_ZIP_TIME_AT = 10
"""In the time of a wheel's first entry: the archive stays readable, and only its digest tells."""
_PATHS_MAX = 1000


class CutConnection(Exception):
    """Raised inside a body to end its connection: a fault that was asked for."""


@dataclass(slots=True)
class HubFaults:
    """What the hub does wrong. Counts go down as faults fire; 0 = off."""

    refuse_next: int = 0
    """Answer this many requests with 429."""
    retry_after_s: int = 1
    cut_next: int = 0
    """End this many file bodies in the middle, after `cut_after_bytes`."""
    cut_after_bytes: int = 64 * 1024
    wrong_bytes_in: set[str] = field(default_factory=set)
    """Paths whose bodies have the right length and a wrong byte in the middle (F13); of a wheel, its name."""
    fired: dict[str, int] = field(default_factory=dict)

    def take(self, name: str) -> bool:
        """Use up one of a counted fault."""
        left = getattr(self, name)
        if left <= 0:
            return False
        setattr(self, name, left - 1)
        self.count(name)
        return True

    def count(self, name: str) -> None:
        self.fired[name] = self.fired.get(name, 0) + 1


@dataclass(frozen=True, slots=True)
class _Refusal(Exception):
    status: int
    code: str
    message: str


class Hub:
    def __init__(
        self, shelf: Shelf, *, lines: NodeLines, faults: HubFaults, redirects_large: bool = False
    ) -> None:
        self.shelf = shelf
        self.redirects_large = redirects_large
        self.faults = faults
        self.packages = PackageIndex()
        self._lines = lines

    async def answer(self, request: Request) -> Response:
        parts = [part for part in request.path_params["path"].split("/") if part]
        line = None
        if len(parts) >= 2 and parts[0] == "n" and parts[1].isdecimal():
            line = self._lines.of(int(parts[1]))
            parts = parts[2:]
        if self.faults.take("refuse_next"):
            return _too_many(self.faults.retry_after_s)
        try:
            return await self._route(request, parts, line)
        except _Refusal as refusal:
            return JSONResponse(
                {"error": refusal.message},
                status_code=refusal.status,
                headers={"X-Error-Code": refusal.code, "X-Error-Message": refusal.message},
            )

    async def _route(self, request: Request, parts: list[str], line: Line | None) -> Response:
        match parts:
            case ["api", "models", org, name]:
                return await self._describe(request, f"{org}/{name}", MAIN)
            case ["api", "models", org, name, "revision", revision]:
                return await self._describe(request, f"{org}/{name}", revision)
            case ["api", "models", org, name, "tree", revision]:
                return await self._tree(f"{org}/{name}", revision)
            case ["api", "models", org, name, "paths-info", revision]:
                return await self._paths_info(request, f"{org}/{name}", revision)
            case ["simple", name]:
                return self._package(name)
            case ["simple", _, "files", file]:
                return self._package_file(file, line)
            case [org, name, "resolve", revision, *path] if path:
                return await self._resolve(request, f"{org}/{name}", revision, "/".join(path), line)
            case ["cdn", org, name, revision, *path] if path:
                return await self._resolve(
                    request, f"{org}/{name}", revision, "/".join(path), line, is_redirected=True
                )
        raise _Refusal(404, "NotFound", "Sorry, we can't find the page you are looking for.")

    def _package(self, name: str) -> Response:
        page = self.packages.page(name)
        if page is None:
            raise _Refusal(404, "PackageNotFound", "404 Not Found")
        return HTMLResponse(page)

    def _package_file(self, name: str, line: Line | None) -> Response:
        data = self.packages.file(name)
        if data is None:
            raise _Refusal(404, "FileNotFound", "404 Not Found")
        if name in self.faults.wrong_bytes_in:
            data = _with_wrong_byte(data, _ZIP_TIME_AT)
            self.faults.count("wrong_bytes_in")
        headers = {
            "Content-Length": str(len(data)),
            "Content-Type": "application/octet-stream",
            # As PyPI says of its files, which never change.
            "Cache-Control": "max-age=365000000, immutable, public",
        }
        return StreamingResponse(_carried(data, line), headers=headers)

    async def _find(self, name: str, revision: str) -> Repository:
        repository = await asyncio.to_thread(self.shelf.find, name)
        if repository is None:
            # The real hub answers 401, so as not to tell which private repositories exist.
            raise _Refusal(401, "RepoNotFound", "Invalid username or password.")
        if revision != MAIN and not _COMMIT.fullmatch(revision):
            raise _Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return repository

    async def _describe(self, request: Request, name: str, revision: str) -> Response:
        repository = await self._find(name, revision)
        siblings: list[dict[str, Any]] = [{"rfilename": path} for path in repository.files]
        if request.query_params.get("blobs") in ("true", "True", "1"):
            siblings = await asyncio.to_thread(_siblings, list(repository.files.values()))
        return JSONResponse(
            {
                "_id": repository.commit[:24],
                "id": repository.id,
                "modelId": repository.id,
                "sha": _commit(repository, revision),
                "private": False,
                "gated": False,
                "disabled": False,
                "tags": ["simulated"],
                "siblings": siblings,
                "sandbox": {
                    "simulated": True,
                    "scale": self.shelf.weights_scale if repository.is_scaled else 1,
                    "true_bytes": sum(file.true_bytes for file in repository.files.values()),
                },
            }
        )

    async def _tree(self, name: str, revision: str) -> Response:
        repository = await self._find(name, revision)
        return JSONResponse(await asyncio.to_thread(_entries, list(repository.files.values())))

    async def _paths_info(self, request: Request, name: str, revision: str) -> Response:
        repository = await self._find(name, revision)
        if request.headers.get("content-type", "").startswith("application/json"):
            paths = (await request.json()).get("paths", [])
        else:
            paths = (await request.form()).getlist("paths")
        files = [repository.files[path] for path in paths[:_PATHS_MAX] if path in repository.files]
        return JSONResponse(await asyncio.to_thread(_entries, files))

    async def _resolve(
        self,
        request: Request,
        name: str,
        revision: str,
        path: str,
        line: Line | None,
        *,
        is_redirected: bool = False,
    ) -> Response:
        repository = await self._find(name, revision)
        file = repository.files.get(path)
        if file is None:
            raise _Refusal(404, "EntryNotFound", "Entry not found")
        etag = await asyncio.to_thread(lambda: file.etag)
        size = file.content.size
        headers = {
            "ETag": f'"{etag}"',
            "X-Repo-Commit": _commit(repository, revision),
            "Accept-Ranges": "bytes",
            "Content-Type": "application/octet-stream" if file.is_large else "text/plain; charset=utf-8",
            "Content-Disposition": f'inline; filename="{path.rsplit("/", 1)[-1]}"',
            "X-Sandbox-True-Bytes": str(file.true_bytes),
        }
        if file.is_large:
            headers |= {"X-Linked-Size": str(size), "X-Linked-Etag": f'"{etag}"'}
            if self.redirects_large and not is_redirected:
                where = str(request.url.replace(query="")).replace(
                    f"/{name}/resolve/{revision}/", f"/cdn/{name}/{revision}/"
                )
                return Response(status_code=302, headers={**headers, "Location": where})
        wanted = request.headers.get("range")
        if wanted is not None and request.headers.get("if-range", headers["ETag"]) != headers["ETag"]:
            wanted = None
        span = _span(wanted, size)
        if span is None:
            return Response(status_code=416, headers={**headers, "Content-Range": f"bytes */{size}"})
        start, end = span
        headers["Content-Length"] = str(end - start)
        if wanted is not None:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        status = 206 if wanted is not None else 200
        if request.method == "HEAD":
            return Response(status_code=status, headers=headers)
        return StreamingResponse(self._body(file, start, end, line), status_code=status, headers=headers)

    async def _body(self, file: RepoFile, start: int, end: int, line: Line | None) -> AsyncIterator[bytes]:
        is_cut = end - start > self.faults.cut_after_bytes and self.faults.take("cut_next")
        cut_at = start + self.faults.cut_after_bytes
        wrong_at = file.content.size // 2 if file.path in self.faults.wrong_bytes_in else -1
        for offset in range(start, end, _CHUNK_BYTES):
            if is_cut and offset >= cut_at:
                raise CutConnection
            chunk = file.content.read(offset, min(_CHUNK_BYTES, end - offset))
            if offset <= wrong_at < offset + len(chunk):
                chunk = _with_wrong_byte(chunk, wrong_at - offset)
                self.faults.count("wrong_bytes_in")
            if line is not None:
                await line.carry(len(chunk))
            yield chunk


def hub_app(
    *,
    assets: Assets | None = None,
    lines: NodeLines | None = None,
    weights_scale: float = DEFAULT_WEIGHTS_SCALE,
    faults: HubFaults | None = None,
    redirects_large: bool = False,
) -> Starlette:
    """The hub as an ASGI application; `app.state.hub` is the `Hub`.

    Share `lines` with the `Rack` to have each node's downloads at its own speed. Without `assets` the
    small real model is looked for, and fetched if need be, when it is first asked for.
    """
    had: list[Assets] = [] if assets is None else [assets]

    def ready_assets() -> Assets:
        if not had:
            had.append(ensure_assets())
        return had[0]

    hub = Hub(
        Shelf(assets=ready_assets, weights_scale=weights_scale),
        lines=lines or NodeLines(),
        faults=faults or HubFaults(),
        redirects_large=redirects_large,
    )
    app = Starlette(routes=[Route("/{path:path}", hub.answer, methods=["GET", "HEAD", "POST"])])
    app.state.hub = hub
    return app


async def _carried(data: bytes, line: Line | None) -> AsyncIterator[bytes]:
    for offset in range(0, len(data), _CHUNK_BYTES):
        chunk = data[offset : offset + _CHUNK_BYTES]
        if line is not None:
            await line.carry(len(chunk))
        yield chunk


def _commit(repository: Repository, revision: str) -> str:
    return repository.commit if revision == MAIN else revision


def _entries(files: list[RepoFile]) -> list[dict[str, Any]]:
    """The tree route's form. Blocks while digests are computed for the first time."""
    return [_entry(file) for file in files]


def _siblings(files: list[RepoFile]) -> list[dict[str, Any]]:
    """The description's form with `?blobs=true`, which names the same facts otherwise than the tree."""
    told = []
    for file in files:
        sibling: dict[str, Any] = {"rfilename": file.path, "size": file.content.size, "blobId": file.git_oid}
        if file.is_large:
            sibling["lfs"] = {
                "sha256": file.etag,
                "size": file.content.size,
                "pointerSize": len(file.pointer),
            }
        told.append(sibling)
    return told


def _entry(file: RepoFile) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "type": "file",
        "path": file.path,
        "size": file.content.size,
        "oid": file.git_oid,
        "sandbox": {"true_bytes": file.true_bytes},
    }
    if file.is_large:
        entry["lfs"] = {"oid": file.etag, "size": file.content.size, "pointerSize": len(file.pointer)}
    return entry


def _span(wanted: str | None, size: int) -> tuple[int, int] | None:
    """Half-open byte range of a Range header; None if it cannot be satisfied. A form that is not
    understood (several ranges) is answered whole, as HTTP allows."""
    match = _RANGE.fullmatch(wanted or "")
    if match is None or match.groups() == ("", ""):
        return 0, size
    first, last = match.groups()
    if not first:
        return (size - min(int(last), size), size) if int(last) else None
    start, end = int(first), min(int(last) + 1 if last else size, size)
    return (start, end) if start < end else None


def _with_wrong_byte(chunk: bytes, at: int) -> bytes:
    return chunk[:at] + bytes([chunk[at] ^ 0xFF]) + chunk[at + 1 :]


def _too_many(retry_after_s: int) -> Response:
    return JSONResponse(
        {"error": "We had to rate limit your IP."},
        status_code=429,
        headers={"Retry-After": str(retry_after_s)},
    )

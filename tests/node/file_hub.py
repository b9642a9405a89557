"""A small hub over HTTP that counts what it serves and misbehaves on request."""

from __future__ import annotations

import hashlib
import http.server
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

REPO, REVISION = "org/model", "a" * 40
_CHUNK_BYTES = 64 * 1024


@dataclass
class FileHub:
    files: dict[str, bytes]
    pause_s: float = 0.0
    """Between chunks of 64 KiB."""
    refusals: list[int] = field(default_factory=list)
    """Statuses that the next requests get, in turn."""
    cut_after: list[int] = field(default_factory=list)
    """Bytes after which the next bodies break off, in turn."""
    has_ranges: bool = True
    token: str = ""
    """What requests must carry, where it is set: as a gated repository."""
    moved_to: str = ""
    """Another hub's address that all files are to be fetched from."""
    url: str = ""
    served_bytes: int = 0
    requests: list[tuple[str, str | None, str | None]] = field(default_factory=list)
    """Path, Range and Authorization of each."""
    open_bodies: int = 0
    open_bodies_max: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def manifest(self, folder: Path, **changes: object) -> Path:
        entries = [
            {"path": path, "size": len(data), "sha256": hashlib.sha256(data).hexdigest(), "git_sha1": ""}
            for path, data in self.files.items()
        ]
        file = folder / "manifest.json"
        file.write_text(json.dumps({"repo": REPO, "revision": REVISION, "files": entries} | changes))
        return file


def _handler(hub: FileHub) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            prefix = f"/{REPO}/resolve/{REVISION}/"
            with hub.lock:
                hub.requests.append((self.path, self.headers["Range"], self.headers["Authorization"]))
                refusal = hub.refusals.pop(0) if hub.refusals else 0
                cut = hub.cut_after.pop(0) if hub.cut_after and not refusal else None
            name = unquote(self.path.removeprefix(prefix))
            data = hub.files.get(name)
            if hub.token and self.headers["Authorization"] != f"Bearer {hub.token}":
                self._empty(401, {})
            elif refusal or data is None:
                self._empty(refusal or 404, {"Retry-After": "0"})
            elif hub.moved_to:
                self._empty(302, {"Location": hub.moved_to + self.path})
            else:
                self._body(data, cut)

        def _empty(self, status: int, headers: dict[str, str]) -> None:
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def _body(self, data: bytes, cut: int | None) -> None:
            wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"] or "")
            start, end = (int(wanted[1]), int(wanted[2]) + 1) if wanted and hub.has_ranges else (0, len(data))
            if start >= len(data) > 0:
                return self._empty(416, {})
            part = data[start:end]
            self.send_response(206 if wanted and hub.has_ranges else 200)
            self.send_header("Content-Length", str(len(part)))
            self.end_headers()
            with hub.lock:
                hub.open_bodies += 1
                hub.open_bodies_max = max(hub.open_bodies_max, hub.open_bodies)
            try:
                for at in range(0, len(part) if cut is None else min(cut, len(part)), _CHUNK_BYTES):
                    chunk = part[at : at + _CHUNK_BYTES]
                    self.wfile.write(chunk)
                    with hub.lock:
                        hub.served_bytes += len(chunk)
                    time.sleep(hub.pause_s)
            except OSError:
                pass
            finally:
                with hub.lock:
                    hub.open_bodies -= 1
                self.close_connection = True

        def log_message(self, *_: object) -> None:
            return

    return Handler


@contextmanager
def serving(hub: FileHub, host: str = "127.0.0.1") -> Iterator[FileHub]:
    server = http.server.ThreadingHTTPServer((host, 0), _handler(hub))
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    hub.url = f"http://{host}:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)

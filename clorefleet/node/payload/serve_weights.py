#!/usr/bin/env python3
"""Let one other server read verified weights of this one, through whoever joins the two.

Sent to a rented server and run there as a job; needs Python 3.8 and nothing else.

    serve_weights.py MANIFEST.json FOLDER

From the environment: SIBLING_TOKEN, which every request must carry.

Listens on loopback, on a port of the system's choice that is printed. Answers GET with single ranges, for the
files that the manifest names and for nothing else: a request's path is looked up, never joined to a folder.
Serves only where the whole manifest was verified. Ends by itself when nobody asks any more.

Exit codes: 0 nobody asks any more, 1 bad input, 3 the weights here are not the verified ones.
"""

import hashlib
import hmac
import http.server
import json
import os
import re
import sys
import threading
import time
import urllib.parse

IDLE_S = 120
LIFE_S_MAX = 4 * 3600
CONNECTIONS_MAX = 16
CHUNK_BYTES = 256 << 10
STAMP = ".complete"
RANGE = re.compile(r"bytes=([0-9]{1,18})-([0-9]{1,18})")


def verified_files(manifest_path, folder):
    """Path of a request to file and size; None unless this manifest was verified here, whole."""
    with open(manifest_path, "rb") as file:
        raw = file.read()
    try:
        with open(os.path.join(folder, STAMP)) as file:
            stamp = file.read().strip()
    except OSError:
        return None
    if stamp != hashlib.sha256(raw).hexdigest():
        return None
    root, files = os.path.realpath(folder), {}
    for entry in json.loads(raw.decode("utf-8"))["files"]:
        file = os.path.realpath(os.path.join(root, *entry["path"].split("/")))
        is_here = os.path.commonpath([file, root]) == root and os.path.isfile(file)
        if is_here and os.path.getsize(file) == entry["size"]:
            files["/" + entry["path"]] = (file, entry["size"])
    return files


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, files, token):
        self.files, self.token = files, token
        self.asked_s = time.monotonic()
        self.slots = threading.BoundedSemaphore(CONNECTIONS_MAX)
        super().__init__(("127.0.0.1", 0), Handler)

    def process_request(self, request, client_address):
        if self.slots.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request, client_address):
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.slots.release()

    def handle_error(self, request, client_address):
        """A connection that broke is the other side's business."""


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = IDLE_S

    def do_GET(self):
        given = (self.headers["Authorization"] or "").encode("utf-8", "replace")
        if not hmac.compare_digest(given, b"Bearer " + self.server.token):
            return self.refuse(401)
        found = self.server.files.get(urllib.parse.unquote(self.path))
        if found is None:
            return self.refuse(404)
        file, size = found
        wanted = RANGE.fullmatch(self.headers["Range"] or "")
        start, end = (int(wanted.group(1)), int(wanted.group(2)) + 1) if wanted else (0, size)
        if not start < end <= size:
            return self.refuse(416)
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(end - start))
        self.end_headers()
        with open(file, "rb") as data:
            data.seek(start)
            while start < end:
                chunk = data.read(min(CHUNK_BYTES, end - start))
                if not chunk:
                    self.close_connection = True
                    return None
                self.wfile.write(chunk)
                start += len(chunk)
                self.server.asked_s = time.monotonic()
        return None

    def refuse(self, status):
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        """Requests are counted by who asks."""


def main():
    token = os.environ.pop("SIBLING_TOKEN", "").encode()
    if len(sys.argv) != 3 or not token:
        print("usage: SIBLING_TOKEN=... serve_weights.py MANIFEST.json FOLDER", flush=True)
        return 1
    files = verified_files(sys.argv[1], os.path.expanduser(sys.argv[2]))
    if files is None:
        print("the weights here are not the verified ones", flush=True)
        return 3
    server = Server(files, token)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print("sibling port %d" % server.server_port, flush=True)
    began_s = time.monotonic()
    while time.monotonic() - server.asked_s < IDLE_S and time.monotonic() - began_s < LIFE_S_MAX:
        time.sleep(1)
    print("nobody asks any more", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

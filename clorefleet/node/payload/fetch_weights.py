#!/usr/bin/env python3
"""Download a checkpoint to this machine, resumably, and let nothing unverified get its final name.

Sent to a rented server and run there as a job; needs Python 3.8 and nothing else.

    fetch_weights.py MANIFEST.json TARGET_DIR

From the environment: HF_ENDPOINT, HF_TOKEN (optional), PROGRESS_FILE (optional).

Each file is fetched into `.parts/NAME.part` by ranges, so that a killed run goes on where it was; when it
is whole its digest is computed, and only then is it renamed into place. A file whose digest is wrong is
thrown away and fetched once more. Exit codes: 0 done, 20 unauthorised, 21 not found, 22 rate limited,
23 disk full, 24 checksum, 25 network, 26 bad manifest.
"""

import concurrent.futures
import errno
import hashlib
import json
import os
import shutil
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request

UNAUTHORISED, NOT_FOUND, RATE_LIMITED, DISK_FULL, CHECKSUM, NETWORK, BAD_MANIFEST = range(20, 27)
WORKERS = 6
CHUNK_BYTES = 1 << 20
TIMEOUT_S = 60
ATTEMPTS_MAX = 8
PAUSE_MAX_S = 30
SPARE_BYTES = 64 << 20
PROGRESS_EVERY_S = 0.5


class Failed(Exception):
    def __init__(self, code, text):
        super().__init__(text)
        self.code = code


class Progress:
    """Counts bytes over all threads and tells them now and then."""

    def __init__(self, total, path):
        self.done, self.total, self.path = 0, total, path
        self.began, self.began_with = time.monotonic(), None
        self.lock, self.told = threading.Lock(), 0.0

    def add(self, count, text=""):
        with self.lock:
            self.done += count
            now = time.monotonic()
            if now - self.told < PROGRESS_EVERY_S and not text:
                return
            self.told = now
            if self.began_with is None:
                self.began, self.began_with = now, self.done
            rate = (self.done - self.began_with) / max(0.001, now - self.began)
            words = text or "%.1f of %.1f MB, %.1f MB/s" % (self.done / 1e6, self.total / 1e6, rate / 1e6)
            if self.path:
                temporary = self.path + ".tmp"
                with open(temporary, "w") as file:
                    json.dump({"done": self.done, "total": self.total, "text": words}, file)
                os.replace(temporary, self.path)


class NoAuthOnRedirect(urllib.request.HTTPRedirectHandler):
    """The hub sends large files elsewhere; the token is for the hub alone."""

    def redirect_request(self, request, file, code, message, headers, url):
        new = super().redirect_request(request, file, code, message, headers, url)
        if (
            new is not None
            and urllib.parse.urlsplit(url).netloc != urllib.parse.urlsplit(request.full_url).netloc
        ):
            new.remove_header("Authorization")
        return new


OPENER = urllib.request.build_opener(NoAuthOnRedirect)


def open_from(url, offset):
    request = urllib.request.Request(
        url, headers={"User-Agent": "clorefleet-node", "Accept-Encoding": "identity"}
    )
    if offset:
        request.add_header("Range", "bytes=%d-" % offset)
    token = os.environ.get("HF_TOKEN")
    if token:
        request.add_header("Authorization", "Bearer " + token)
    return OPENER.open(request, timeout=TIMEOUT_S)


def digest_of(path, entry):
    if entry.get("sha256"):
        digest = hashlib.sha256()
    else:
        digest = hashlib.sha1(b"blob %d\0" % entry["size"])  # git's name of a small file
    with open(path, "rb") as file:
        for chunk in iter(lambda: file.read(CHUNK_BYTES), b""):
            digest.update(chunk)
    return digest.hexdigest()


def is_right(path, entry):
    return digest_of(path, entry) == (entry.get("sha256") or entry["git_sha1"])


def append_rest(url, part, entry, progress):
    """Fetch what `part` lacks; raises OSError or HTTPError when the line breaks."""
    have = os.path.getsize(part) if os.path.exists(part) else 0
    if have > entry["size"]:
        os.unlink(part)
        have = 0
    if have == entry["size"]:
        return
    with open_from(url, have) as answer:
        if have and answer.status != 206:
            progress.add(-have)  # the server does not do ranges: begin again
            have = 0
        with open(part, "r+b" if have else "wb") as file:
            file.seek(have)
            left = entry["size"] - have
            while left:
                chunk = answer.read(min(CHUNK_BYTES, left))
                if not chunk:
                    raise ConnectionError("the answer ended %d bytes early" % left)
                file.write(chunk)
                left -= len(chunk)
                progress.add(len(chunk))


def fetch(endpoint, manifest, entry, target, progress):
    final = os.path.join(target, *entry["path"].split("/"))
    if os.path.exists(final) and os.path.getsize(final) == entry["size"]:
        progress.add(entry["size"])
        return  # it got its name by being verified
    part = os.path.join(target, ".parts", hashlib.sha256(entry["path"].encode()).hexdigest()[:24] + ".part")
    url = "%s/%s/resolve/%s/%s" % (
        endpoint,
        manifest["repo"],
        manifest["revision"],
        urllib.parse.quote(entry["path"]),
    )
    if os.path.exists(part):
        progress.add(min(os.path.getsize(part), entry["size"]))
    wrong = 0
    for attempt in range(ATTEMPTS_MAX):
        try:
            append_rest(url, part, entry, progress)
            if is_right(part, entry):
                os.makedirs(os.path.dirname(final), exist_ok=True)
                os.replace(part, final)
                return
            wrong += 1
            os.unlink(part)
            progress.add(-entry["size"])
            if wrong > 1:
                raise Failed(CHECKSUM, "%s: wrong bytes, twice" % entry["path"])
            print("%s: wrong bytes; fetching it again" % entry["path"], flush=True)
        except urllib.error.HTTPError as error:
            give_up_or_wait(error, entry, attempt)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise Failed(DISK_FULL, "%s: no space left" % entry["path"]) from error
            if attempt + 1 == ATTEMPTS_MAX:
                raise Failed(NETWORK, "%s: %s" % (entry["path"], error)) from error
            print("%s: %s; going on in a moment" % (entry["path"], error), flush=True)
            time.sleep(min(PAUSE_MAX_S, 0.5 * 2**attempt))
    raise Failed(NETWORK, "%s: gave up after %d attempts" % (entry["path"], ATTEMPTS_MAX))


def give_up_or_wait(error, entry, attempt):
    if error.code in (401, 403):
        raise Failed(UNAUTHORISED, "%s: the hub refuses it (%d)" % (entry["path"], error.code))
    if error.code == 404:
        raise Failed(NOT_FOUND, "%s: the hub does not have it" % entry["path"])
    if attempt + 1 == ATTEMPTS_MAX:
        code = RATE_LIMITED if error.code == 429 else NETWORK
        raise Failed(code, "%s: HTTP %d, %d times" % (entry["path"], error.code, ATTEMPTS_MAX))
    wanted = error.headers.get("Retry-After", "")
    pause = float(wanted) if wanted.isdigit() else 0.5 * 2**attempt
    time.sleep(min(PAUSE_MAX_S, pause))


def check(manifest):
    for entry in manifest["files"]:
        names = entry["path"].split("/")
        if (
            entry["path"].startswith("/")
            or any(name in ("", ".", "..") for name in names)
            or "\0" in entry["path"]
        ):
            raise Failed(BAD_MANIFEST, "a path leaves the folder")
        if not (entry.get("sha256") or entry.get("git_sha1")):
            raise Failed(BAD_MANIFEST, "%s has no digest" % entry["path"])


def check_disk(manifest, target):
    missing = sum(
        entry["size"]
        for entry in manifest["files"]
        if not os.path.exists(os.path.join(target, *entry["path"].split("/")))
    )
    parts = os.path.join(target, ".parts")
    have = sum(os.path.getsize(os.path.join(parts, name)) for name in os.listdir(parts))
    free = shutil.disk_usage(target).free
    if missing - have + SPARE_BYTES > free:
        raise Failed(DISK_FULL, "%d bytes are missing and %d are free" % (missing - have, free))


def main():
    with open(sys.argv[1]) as file:
        manifest = json.load(file)
    target = os.path.expanduser(sys.argv[2])
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    os.makedirs(os.path.join(target, ".parts"), exist_ok=True)
    files = manifest["files"]
    progress = Progress(sum(entry["size"] for entry in files), os.environ.get("PROGRESS_FILE"))
    try:
        check(manifest)
        check_disk(manifest, target)
        # Large files first, so that the last worker is not left with the largest.
        ordered = sorted(files, key=lambda entry: -entry["size"])
        with concurrent.futures.ThreadPoolExecutor(WORKERS) as pool:
            futures = [pool.submit(fetch, endpoint, manifest, entry, target, progress) for entry in ordered]
            for future in concurrent.futures.as_completed(futures):
                error = future.exception()
                if error is not None:
                    for other in futures:
                        other.cancel()
                    raise error
    except Failed as error:
        print("FAILED %d: %s" % (error.code, error), flush=True)
        os._exit(error.code)  # other threads may still wait for the network
    shutil.rmtree(os.path.join(target, ".parts"), ignore_errors=True)
    progress.add(0, "%d files, %.1f MB, all verified" % (len(files), progress.total / 1e6))
    print("complete: %d files" % len(files), flush=True)


if __name__ == "__main__":
    main()

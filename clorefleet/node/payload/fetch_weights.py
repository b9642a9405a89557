#!/usr/bin/env python3
"""Download a checkpoint to this machine, resumably, and let nothing unverified get its final name.

Sent to a rented server and run there as a job; needs Python 3.8 and nothing else.

    fetch_weights.py MANIFEST.json TARGET_DIR [--workers N] [--segment-bytes N]

From the environment: HF_ENDPOINT, HF_TOKEN (optional), PROGRESS_FILE (optional). With SIBLING_TOKEN it prints
a loopback port and waits there for connections to a server that has the same files; what comes over them is
believed as little as anything else, and the hub gives the rest. SIBLING_BYTES_PER_S_MIN: slower is given up.
With VERIFY_AGAIN files that have their names already are compared with their digests first; those that are
damaged are thrown away.

Files are cut into segments that are fetched side by side, by ranges, into `.parts/NAME.part`. A journal
beside it says how far each segment is, so that a killed run goes on where it was. When all segments of a
file are there its digest is computed, and only then is it renamed into place. A file whose digest is wrong
is thrown away and fetched once more. The journal may claim more than a crashed host really wrote: the digest
finds that too. `.complete` names the manifest that all files here were verified by.

Exit codes: 0 done, 20 unauthorised, 21 not found, 22 rate limited, 23 disk full, 24 checksum, 25 network,
26 bad manifest, 27 the disk cannot be written.
"""

import argparse
import collections
import concurrent.futures
import contextlib
import errno
import hashlib
import http.client
import json
import os
import shutil
import socket
import threading
import time
import urllib.error
import urllib.parse
import urllib.request

UNAUTHORISED, NOT_FOUND, RATE_LIMITED, DISK_FULL, CHECKSUM, NETWORK, BAD_MANIFEST, STORAGE = range(20, 28)
WORKERS = 8
SEGMENT_BYTES = 256 << 20
JOURNAL_EVERY_BYTES = 8 << 20
CHUNK_BYTES = 1 << 20
TIMEOUT_S = 60
ATTEMPTS_MAX = 8
"""In a row without a single new byte."""
PAUSE_FIRST_S = 0.5
PAUSE_MAX_S = 30
WRONG_MAX = 2
FILES_MAX = 5000
SPARE_BYTES = 64 << 20
PROGRESS_EVERY_S = 0.5
RATE_WINDOW_S = 10
SIBLING_WAIT_S = 20
SIBLING_WINDOW_S = 20
PARTS, STAMP = ".parts", ".complete"


class Failed(Exception):
    def __init__(self, code, text):
        super().__init__(text)
        self.code = code


@contextlib.contextmanager
def storage_errors(name):
    """Keep faults of the disk apart from faults of the line, which are OSErrors too."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise Failed(DISK_FULL, "%s: no space left" % name) from error
        raise Failed(STORAGE, "%s: %s" % (name, error)) from error


# -- what is wanted


def read_manifest(path):
    """The manifest and its digest; Failed unless every entry is safe to act on."""
    try:
        with open(path, "rb") as file:
            raw = file.read()
        manifest = json.loads(raw.decode("utf-8"))
        entries = manifest["files"]
        names = [entry["path"] for entry in entries]
        ok = (
            0 < len(entries) <= FILES_MAX
            and len(set(names)) == len(names)
            and manifest["repo"].count("/") == 1
            and manifest["revision"].isalnum()
            and all(is_safe(entry) for entry in entries)
        )
        folders = {name.rsplit("/", depth)[0] for name in names for depth in range(1, name.count("/") + 1)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Failed(BAD_MANIFEST, "the manifest cannot be read: %s" % error) from error
    if not ok or folders & set(names):
        raise Failed(BAD_MANIFEST, "the manifest has an entry that cannot be used")
    return manifest, hashlib.sha256(raw).hexdigest()


def is_safe(entry):
    parts = entry["path"].split("/")
    return (
        entry["path"].isprintable()
        and not any(part in ("", ".", "..") for part in parts)
        and parts[0] not in (PARTS, STAMP)
        and type(entry["size"]) is int
        and entry["size"] >= 0
        and len(entry.get("sha256") or "") + len(entry.get("git_sha1") or "") in (64, 40)
    )


# -- one file on its way


class Part:
    """A file in `.parts` with the journal of its segments. Threads share it, each on its own segments."""

    def __init__(self, target, entry, segment_bytes):
        self.entry, self.size = entry, entry["size"]
        self.final = os.path.join(target, *entry["path"].split("/"))
        stem = os.path.join(target, PARTS, hashlib.sha256(entry["path"].encode()).hexdigest()[:24])
        self.data_path, self.journal_path = stem + ".part", stem + ".journal"
        self.segments = [
            (start, min(segment_bytes, self.size - start)) for start in range(0, self.size, segment_bytes)
        ] or [(0, 0)]
        self.head = "%d %d %s\n" % (self.size, segment_bytes, entry.get("sha256") or entry["git_sha1"])
        self.done = self._read_journal()
        self.left = len(self.segments)
        self.lock = threading.Lock()
        self.data = self.journal = None
        self.has_sibling_bytes = self.is_counted = False

    def is_there(self):
        """It got its name by being verified."""
        return os.path.isfile(self.final) and os.path.getsize(self.final) == self.size

    def _read_journal(self):
        done = [0] * len(self.segments)
        if not (os.path.exists(self.data_path) and os.path.exists(self.journal_path)):
            return done
        with open(self.journal_path, encoding="ascii", errors="replace") as file:
            if file.readline() != self.head:
                return done
            for line in file:
                words = line.split()
                # The last line may be torn.
                if line.endswith("\n") and len(words) == 2 and words[0].isdigit() and words[1].isdigit():
                    index, count = int(words[0]), int(words[1])
                    if index < len(done):
                        done[index] = min(count, self.segments[index][1])
        return done

    def open(self):
        with self.lock:
            if self.data is not None:
                return
            is_new = not any(self.done)
            self.data = os.open(self.data_path, os.O_RDWR | os.O_CREAT | (os.O_TRUNC if is_new else 0), 0o600)
            os.ftruncate(self.data, self.size)
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | (os.O_TRUNC if is_new else 0)
            self.journal = os.open(self.journal_path, flags, 0o600)
            # After a torn line a newline costs nothing; an empty line is no entry.
            os.write(self.journal, self.head.encode() if is_new else b"\n")

    def write(self, index, chunk):
        start = self.segments[index][0] + self.done[index]
        view = memoryview(chunk)
        with storage_errors(self.entry["path"]):
            while view:
                count = os.pwrite(self.data, view, start)
                view, start = view[count:], start + count
        self.done[index] += len(chunk)

    def note(self, index):
        """Data first, journal second: it never claims what was not handed to the system."""
        with storage_errors(self.entry["path"]):
            os.write(self.journal, b"%d %d\n" % (index, self.done[index]))

    def close(self):
        for handle in (self.data, self.journal):
            if handle is not None:
                os.close(handle)
        self.data = self.journal = None

    def segment_is_done(self):
        """True for the one caller that finished the last of them."""
        with self.lock:
            self.left -= 1
            return self.left == 0

    def digest_is_right(self, path):
        if self.entry.get("sha256"):
            digest, wanted = hashlib.sha256(), self.entry["sha256"]
        else:
            # git's name of a small file
            digest, wanted = hashlib.sha1(b"blob %d\0" % self.size), self.entry["git_sha1"]
        with open(path, "rb") as file:
            for chunk in iter(lambda: file.read(CHUNK_BYTES), b""):
                digest.update(chunk)
        return digest.hexdigest() == wanted

    def put_in_place(self, root):
        folder = os.path.dirname(self.final)
        os.makedirs(folder, exist_ok=True)
        if os.path.commonpath([os.path.realpath(folder), root]) != root:
            raise Failed(BAD_MANIFEST, "%s lies outside the folder" % self.entry["path"])
        os.fsync(self.data)
        os.replace(self.data_path, self.final)
        os.unlink(self.journal_path)

    def begin_again(self):
        self.close()
        self.done = [0] * len(self.segments)


# -- fetching


class Redirects(urllib.request.HTTPRedirectHandler):
    """The hub sends large files elsewhere. The token is for the hub alone, and a safe line stays safe."""

    def redirect_request(self, request, file, code, message, headers, url):
        before, after = urllib.parse.urlsplit(request.full_url), urllib.parse.urlsplit(url)
        if after.scheme not in ("http", "https") or (before.scheme, after.scheme) == ("https", "http"):
            raise urllib.error.URLError("a redirect to %s is not followed" % after.scheme)
        new = super().redirect_request(request, file, code, message, headers, url)
        if new is not None and before[:2] != after[:2]:
            new.remove_header("Authorization")
        return new


OPENER = urllib.request.build_opener(Redirects)


def open_range(url, start, end, is_whole):
    request = urllib.request.Request(
        url, headers={"User-Agent": "clorefleet-node", "Accept-Encoding": "identity"}
    )
    if not is_whole:
        request.add_header("Range", "bytes=%d-%d" % (start, end - 1))
    token = os.environ.get("HF_TOKEN")
    if token:
        request.add_header("Authorization", "Bearer " + token)
    return OPENER.open(request, timeout=TIMEOUT_S)


class Sibling:
    """A server that has the same files, on connections that were opened towards us.

    Given up for good when the last of them ends, when it sends wrong bytes, or is slower than the hub.
    """

    def __init__(self, token, bytes_per_s_min, window_s=SIBLING_WINDOW_S):
        self.token, self.bytes_per_s_min = token, bytes_per_s_min
        self.window_s = window_s
        self.free, self.live, self.is_over = [], 0, False
        self.since_s, self.bytes = 0.0, 0
        self.changed = threading.Condition(threading.RLock())
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.settimeout(SIBLING_WAIT_S)
        print("sibling port %d" % self.listener.getsockname()[1], flush=True)
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        try:
            while not self.is_over:
                accepted, _ = self.listener.accept()
                accepted.settimeout(TIMEOUT_S)
                connection = http.client.HTTPConnection("sibling")
                connection.sock, connection.auto_open = accepted, 0
                with self.changed:
                    self.live += 1
                    self.free.append(connection)
                    self.changed.notify_all()
        except OSError:
            if not self.live:
                self.end("nobody came")
        finally:
            self.listener.close()

    def lend(self):
        """A free connection, or None when there is no sibling any more."""
        with self.changed:
            while not self.free and not self.is_over:
                self.changed.wait(1)
            if self.is_over:
                return None
            if len(self.free) == self.live:
                self.since_s, self.bytes = time.monotonic(), 0
            return self.free.pop()

    def give_back(self, connection, is_good):
        with self.changed:
            if is_good and not self.is_over:
                self.free.append(connection)
            else:
                connection.close()
                self.live -= 1
                if not self.live:
                    self.end("its connections ended")
            self.changed.notify_all()

    def count(self, size):
        """Raises ConnectionError when it is given up, now or before."""
        with self.changed:
            self.bytes += size
            seconds = time.monotonic() - self.since_s
            if seconds > self.window_s:
                if self.bytes < self.bytes_per_s_min * seconds:
                    self.end("it is slower than the hub")
                self.since_s, self.bytes = time.monotonic(), 0
            if self.is_over:
                raise ConnectionError("the sibling was given up")

    def end(self, why):
        with self.changed:
            if not self.is_over:
                print("no more from the sibling: %s" % why, flush=True)
            self.is_over = True
            for connection in self.free:
                connection.close()
            self.live -= len(self.free)
            self.free = []
            self.changed.notify_all()

    def open_range(self, connection, path, start, end):
        headers = {"Authorization": "Bearer " + self.token, "Range": "bytes=%d-%d" % (start, end - 1)}
        try:
            connection.request("GET", "/" + urllib.parse.quote(path), headers=headers)
            answer = connection.getresponse()
        except http.client.HTTPException as error:
            # Its text may quote what was sent; the log is no place for that.
            raise ConnectionError("the sibling talks nonsense (%s)" % type(error).__name__) from error
        if answer.status != 206 or answer.length != end - start:
            raise ConnectionError("the sibling answers %d" % answer.status)
        return answer


class Fetcher:
    def __init__(self, manifest, target, progress, segment_bytes):
        token = os.environ.pop("SIBLING_TOKEN", "")
        rate_min = float(os.environ.get("SIBLING_BYTES_PER_S_MIN") or 0)
        self.sibling = Sibling(token, rate_min) if token else None
        endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
        self.base = "%s/%s/resolve/%s/" % (endpoint.rstrip("/"), manifest["repo"], manifest["revision"])
        self.root = os.path.realpath(target)
        self.progress = progress
        self.parts = [Part(target, entry, segment_bytes) for entry in manifest["files"]]
        self.is_stopped = threading.Event()

    def missing_bytes(self):
        return sum(part.size - sum(part.done) for part in self.parts if not part.is_there())

    def throw_away_damaged(self, workers):
        """Compare what is there with its digests once more, so that only whole files keep their names."""

        def check(part):
            with storage_errors(part.entry["path"]):
                if part.digest_is_right(part.final):
                    part.is_counted = True
                    self.progress.add(part.size, verified=1)
                    return
                os.unlink(part.final)
            print("%s: damaged on this disk; fetching it again" % part.entry["path"], flush=True)

        there = sorted((part for part in self.parts if part.is_there()), key=lambda part: -part.size)
        with concurrent.futures.ThreadPoolExecutor(workers) as pool:
            for future in [pool.submit(check, part) for part in there]:
                future.result()

    def run(self, workers):
        # Large files first, so that the last worker is not left with the largest.
        parts = sorted(self.parts, key=lambda part: -part.size)
        wanted = []
        for part in parts:
            if part.is_there():
                if not part.is_counted:
                    self.progress.add(part.size, verified=1)
            else:
                self.progress.add(sum(part.done))
                wanted += [(part, index) for index in range(len(part.segments))]
        pool = concurrent.futures.ThreadPoolExecutor(workers)
        futures = [pool.submit(self.fetch, part, index) for part, index in wanted]
        try:
            for future in concurrent.futures.as_completed(futures):
                future.result()
        except BaseException:
            self.is_stopped.set()  # and do not wait: others may sit in a read until it times out
            raise
        pool.shutdown()

    def fetch(self, part, index):
        if self.is_stopped.is_set():
            return
        with storage_errors(part.entry["path"]):
            self.fetch_segment(part, index)
            if part.segment_is_done():
                self.finish(part)

    def finish(self, part):
        wrong = 0
        while wrong < WRONG_MAX:
            self.progress.tell("verifying %s" % part.entry["path"])
            if part.digest_is_right(part.data_path):
                part.put_in_place(self.root)
                part.close()
                self.progress.add(0, verified=1)
                return
            self.progress.add(-part.size)
            part.begin_again()
            if part.has_sibling_bytes:
                # Not the hub's fault: it still has both of its attempts.
                self.sibling.end("%s has wrong bytes" % part.entry["path"])
                part.has_sibling_bytes = False
            else:
                wrong += 1
            if wrong < WRONG_MAX:
                print("%s: wrong bytes; fetching it again" % part.entry["path"], flush=True)
                for index in range(len(part.segments)):
                    self.fetch_segment(part, index)
        os.unlink(part.data_path)
        os.unlink(part.journal_path)
        raise Failed(CHECKSUM, "%s: wrong bytes, twice" % part.entry["path"])

    def fetch_segment(self, part, index):
        name, attempts = part.entry["path"], 0
        part.open()
        while part.done[index] < part.segments[index][1]:
            before = part.done[index]
            try:
                self.fetch_rest(part, index)
                continue
            except (OSError, http.client.HTTPException) as error:
                attempts = 1 if part.done[index] > before else attempts + 1
                if isinstance(error, urllib.error.HTTPError):
                    pause = pause_after(error, name, attempts)
                else:
                    pause = pause_of(attempts)
                    if attempts >= ATTEMPTS_MAX:
                        raise Failed(NETWORK, "%s: %s" % (name, error)) from error
                    print("%s: %s; going on in a moment" % (name, error), flush=True)
            self.is_stopped.wait(pause)
            if self.is_stopped.is_set():
                raise Failed(NETWORK, "stopped")

    def fetch_rest(self, part, index):
        """Fetch what a segment lacks; raises OSError or HTTPError when the line breaks."""
        start, length = part.segments[index]
        at, end = start + part.done[index], start + length
        is_whole = (at, end) == (0, part.size)
        with self.open_body(part, at, end, is_whole) as (answer, arrived):
            # A server that does no ranges sends all from the beginning.
            skip = 0 if is_whole or answer.status == 206 else at
            noted = part.done[index]
            try:
                while part.done[index] < length:
                    if self.is_stopped.is_set():
                        return
                    left = skip or length - part.done[index]
                    chunk = answer.read(min(CHUNK_BYTES, left))
                    if not chunk:
                        raise ConnectionError("the answer ended %d bytes early" % left)
                    if skip:
                        skip -= len(chunk)
                        continue
                    part.write(index, chunk)
                    arrived(len(chunk))
                    self.progress.add(len(chunk), name=part.entry["path"])
                    if part.done[index] - noted >= JOURNAL_EVERY_BYTES:
                        part.note(index)
                        noted = part.done[index]
            finally:
                part.note(index)

    @contextlib.contextmanager
    def open_body(self, part, at, end, is_whole):
        """The sibling's answer where there is a sibling, else the hub's; and what to call for each chunk."""
        path = part.entry["path"]
        connection = None if self.sibling is None else self.sibling.lend()
        if connection is None:
            with open_range(self.base + urllib.parse.quote(path), at, end, is_whole) as answer:
                yield answer, lambda size: None
            return
        is_good = False
        try:
            answer = self.sibling.open_range(connection, path, at, end)
            part.has_sibling_bytes = True
            yield answer, self.sibling.count
            is_good = answer.isclosed() and not answer.will_close
        finally:
            self.sibling.give_back(connection, is_good)


def pause_after(error, name, attempts):
    """Seconds to wait after a refusal of the hub, or Failed where waiting does not help."""
    error.close()
    if error.code in (401, 403):
        raise Failed(UNAUTHORISED, "%s: the hub refuses it (%d)" % (name, error.code))
    if error.code in (404, 410):
        raise Failed(NOT_FOUND, "%s: the hub does not have it" % name)
    if error.code == 416:
        raise Failed(CHECKSUM, "%s: the hub's file is shorter than its manifest" % name)
    if attempts >= ATTEMPTS_MAX:
        code = RATE_LIMITED if error.code == 429 else NETWORK
        raise Failed(code, "%s: HTTP %d, %d times" % (name, error.code, ATTEMPTS_MAX))
    wanted = error.headers.get("Retry-After", "")
    return min(PAUSE_MAX_S, float(wanted)) if wanted.isdigit() else pause_of(attempts)


def pause_of(attempts):
    """Seconds to wait after this many attempts in a row."""
    return min(PAUSE_MAX_S, PAUSE_FIRST_S * 2 ** (attempts - 1))


# -- telling


def time_left(size, rate):
    """In a person's words, by the speed of the last seconds."""
    seconds = size / rate
    if seconds < 90:
        return "%d s left" % (seconds + 1)
    return "%d min left" % (seconds / 60 + 1) if seconds < 5400 else "%.1f h left" % (seconds / 3600)


class Progress:
    """Counts over all threads and tells them now and then, one line of JSON in one file."""

    def __init__(self, total, files, path):
        self.done, self.total, self.verified, self.files, self.path = 0, total, 0, files, path
        self.name = ""
        self.samples = collections.deque()
        self.lock = threading.Lock()

    def add(self, count, name="", verified=0):
        with self.lock:
            self.done += count
            self.verified += verified
            self.name = name or self.name
            now = time.monotonic()
            if not verified and self.samples and now - self.samples[-1][0] < PROGRESS_EVERY_S:
                return
            self.samples.append((now, self.done))
            while now - self.samples[0][0] > RATE_WINDOW_S:
                self.samples.popleft()
            self._write("")

    def tell(self, text):
        with self.lock:
            self._write(text)

    def _write(self, text):
        if not self.path or not self.samples:
            return
        (first, before), (last, after) = self.samples[0], self.samples[-1]
        rate = max(0, int((after - before) / (last - first))) if last > first else 0
        words = "%.1f of %.1f GB, %.0f MB/s%s, %d of %d files verified" % (
            self.done / 1e9,
            self.total / 1e9,
            rate / 1e6,
            ", " + time_left(self.total - self.done, rate) if rate and self.done < self.total else "",
            self.verified,
            self.files,
        )
        document = {
            "done": self.done,
            "total": self.total,
            "text": text or words,
            "rate_bytes_per_s": rate,
            "file": self.name,
            "verified": self.verified,
            "files": self.files,
        }
        # A full disk is told by the file that does not fit, not by this one.
        with contextlib.suppress(OSError):
            temporary = self.path + ".tmp"
            with open(temporary, "w") as file:
                json.dump(document, file)
            os.replace(temporary, self.path)


# -- the run


def fetch_all(options):
    manifest, digest = read_manifest(options.manifest)
    target = os.path.expanduser(options.target)
    os.makedirs(os.path.join(target, PARTS), exist_ok=True)
    total = sum(entry["size"] for entry in manifest["files"])
    progress = Progress(total, len(manifest["files"]), os.environ.get("PROGRESS_FILE"))
    fetcher = Fetcher(manifest, target, progress, options.segment_bytes)
    if os.environ.get("VERIFY_AGAIN"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(target, STAMP))
        fetcher.throw_away_damaged(options.workers)
    missing = fetcher.missing_bytes()
    free = shutil.disk_usage(target).free
    if missing and missing + SPARE_BYTES > free:
        raise Failed(DISK_FULL, "%d bytes are missing and %d are free" % (missing, free))
    fetcher.run(options.workers)
    write_stamp(os.path.join(target, STAMP), digest)
    shutil.rmtree(os.path.join(target, PARTS), ignore_errors=True)
    progress.tell("%d files, %.1f GB, all verified" % (len(manifest["files"]), total / 1e9))
    print("complete: %d files" % len(manifest["files"]), flush=True)


def write_stamp(path, digest):
    with open(path + ".tmp", "w") as file:
        file.write(digest + "\n")
    os.replace(path + ".tmp", path)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("manifest")
    parser.add_argument("target")
    parser.add_argument("--workers", type=int, default=WORKERS)
    parser.add_argument("--segment-bytes", type=int, default=SEGMENT_BYTES)
    options = parser.parse_args()
    try:
        with storage_errors(options.target):
            fetch_all(options)
    except Failed as failure:
        print("FAILED %d: %s" % (failure.code, failure), flush=True)
        os._exit(failure.code)  # other threads may still wait for the network


if __name__ == "__main__":
    main()

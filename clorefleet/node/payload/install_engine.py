#!/usr/bin/env python3
"""Install pinned packages into an environment of their own, resumably, and say why where that fails.

Sent to a rented server and run there as a job; needs Python 3.8 and nothing else.

    install_engine.py TARGET CACHE --needs-bytes N --deadline-s N NAME==VERSION...

From the environment: PIP_INDEX_URL (optional, else PyPI), PROGRESS_FILE (optional).

`uv` does the work where the image has it, else `python3 -m venv` and pip: the image's own, or, where that is
too old to work for another environment than its own, one that is put there, which takes seconds more. Both
keep each file that they have fetched whole in CACHE, so that a killed run fetches only what is missing. What
it left in TARGET is thrown away: half a package cannot be told from a whole one. `.complete` in TARGET names
the pins that were installed; with it there, nothing is done.

Only wheels are taken, from one index: a source package runs a stranger's code to be built, and a second index
could answer for a name of the first. Each wheel's SHA-256 is compared with the index's. One that differs is
fetched once more, without the cache that holds it.

What failed is found out by asking the index, not by reading the tool's prose, wherever that can tell.

Exit codes: 0 done, 30 index unreachable, 31 no such version, 32 build needed, 33 disk full, 34 checksum,
35 timed out, 36 no Python tools, 37 failed otherwise.
"""

import argparse
import contextlib
import fcntl
import html
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request

UNREACHABLE, NO_VERSION, BUILD_NEEDED, DISK_FULL, CHECKSUM, TIMED_OUT, NO_TOOLS, FAILED = range(30, 38)
DEFAULT_INDEX = "https://pypi.org/simple"
STAMP = ".complete"
ASK_TIMEOUT_S = 20
PAGE_MAX_BYTES = 32 << 20
LINE_TIMEOUT_S = 30
RETRIES = 3
TAIL_LINES = 60
BETWEEN_LOCK_LOOKS_S = 1
_NO_SPACE = re.compile(r"No space left on device|os error 28|Errno 28|Disk quota exceeded", re.I)
_WRONG_HASH = re.compile(r"DO NOT MATCH THE HASHES|hash mismatch|Bad CRC", re.I)
_GET_VENV = "apt-get update -qq && apt-get install -y -qq --no-install-recommends python3-venv"
_HREF = re.compile(r"<a\s[^>]*href=[\"']([^\"'#]+)", re.I)


class Failed(Exception):
    def __init__(self, code, text):
        super().__init__(text)
        self.code = code


def _pip_for_others():
    """The program by which this Python's pip works for another one; None where it is none or older than 22.3.

    `pip --python` starts just this, but as a second process, which would outlive the first one's end.
    """
    found = importlib.util.find_spec("pip")
    if found is None or not found.origin:
        return None
    runner = os.path.join(os.path.dirname(found.origin), "__pip-runner__.py")
    return runner if os.path.isfile(runner) else None


class Install:
    def __init__(self, target, cache, pins, deadline_s):
        self.target, self.cache, self.pins = target, cache, pins
        self.index = (os.environ.get("PIP_INDEX_URL") or DEFAULT_INDEX).rstrip("/")
        self.python = os.path.join(target, "bin", "python")
        self.uv = shutil.which("uv")
        self.pip = None if self.uv else _pip_for_others()
        self.ends_at_s = time.monotonic() + deadline_s
        self.tail = []
        self.seen = 0

    # -- what is there

    def is_complete(self):
        try:
            with open(os.path.join(self.target, STAMP), encoding="utf-8") as file:
                return file.read().split() == self.pins
        except OSError:
            return False

    def check_disk(self, needs_bytes):
        """Before anything is fetched. What an earlier run left counts as there."""
        there = _bytes_below(self.cache)
        free, missing = _free_bytes(os.path.dirname(self.target)), max(0, needs_bytes - there)
        if free < missing:
            raise Failed(DISK_FULL, "%.1f GB are needed and %.1f GB are free" % (missing / 1e9, free / 1e9))

    # -- the work

    def run(self):
        shutil.rmtree(self.target, ignore_errors=True)
        self.make_environment()
        try:
            self.install()
        except Failed as failed:
            if failed.code != CHECKSUM:
                raise
            print("%s; once more, without the cache" % failed, flush=True)
            shutil.rmtree(self.cache, ignore_errors=True)
            os.makedirs(self.cache)
            self.install()
        os.sync()
        draft = os.path.join(self.target, STAMP + ".new")
        with open(draft, "w", encoding="utf-8") as file:
            file.write("\n".join(self.pins) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, os.path.join(self.target, STAMP))

    def make_environment(self):
        say("making an environment")
        if self.uv:
            self.call([self.uv, "venv", "--python", sys.executable, self.target])
            return
        if self.pip:
            self.call([sys.executable, "-m", "venv", "--without-pip", self.target])
            return
        try:
            self.call([sys.executable, "-m", "venv", self.target])
        except Failed as failed:
            if failed.code != FAILED:
                raise
            # Debian and Ubuntu keep half of `venv` in a package of its own.
            say("the image's Python has no venv; installing it")
            self.call(
                ["sh", "-c", _GET_VENV],
                DEBIAN_FRONTEND="noninteractive",
                code=NO_TOOLS,
            )
            shutil.rmtree(self.target, ignore_errors=True)
            self.call([sys.executable, "-m", "venv", self.target], code=NO_TOOLS)

    def install(self):
        if not self.uv:
            self.call(
                [
                    self.python,
                    *([self.pip] if self.pip else ["-m", "pip"]),
                    *("install", "--only-binary", ":all:"),
                    *("--cache-dir", self.cache, "--timeout", str(LINE_TIMEOUT_S)),
                    *("--retries", str(RETRIES), "--no-input", "--progress-bar", "off"),
                    *("--disable-pip-version-check", *self.pins),
                ],
                asks_index=True,
            )
            return
        # uv compares with the index's digests only those that a list of requirements names.
        wanted, lock = (os.path.join(self.target, name) for name in ("wanted.txt", "lock.txt"))
        with open(wanted, "w", encoding="utf-8") as file:
            file.write("\n".join(self.pins) + "\n")
        common = ["--only-binary", ":all:", "--python", self.python, "--cache-dir", self.cache]
        self.call(
            [self.uv, "pip", "compile", "--generate-hashes", "--no-header", *common, "-o", lock, wanted],
            asks_index=True,
            is_quiet=True,
        )
        self.call(
            [self.uv, "pip", "install", "--require-hashes", "--no-deps", *common, "-r", lock], asks_index=True
        )

    def call(self, argv, *, asks_index=False, is_quiet=False, code=FAILED, **more):
        """Run one program to its end, following what it prints; Failed when it fails."""
        env = {
            # An image's own settings for pip and uv (constraints, mirrors) are not what was planned.
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("PIP_", "UV_", "PYTHON")) and name != "VIRTUAL_ENV"
        }
        env.update(more, PIP_CONFIG_FILE=os.devnull, UV_NO_CONFIG="1", UV_NO_PROGRESS="1")
        # In the environment, not in the command: an index's address may hold a password.
        env.update(PIP_INDEX_URL=self.index, UV_DEFAULT_INDEX=self.index)
        host = urllib.parse.urlsplit(self.index).hostname or ""
        if host in ("127.0.0.1", "localhost"):
            # pip caches nothing that comes by plain HTTP, unless told that the machine can trust itself.
            env.update(PIP_TRUSTED_HOST=host)
        env.update(UV_HTTP_TIMEOUT=str(LINE_TIMEOUT_S), UV_PYTHON_DOWNLOADS="never")
        self.tail = []
        try:
            process = subprocess.Popen(
                argv, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
        except OSError as error:
            raise Failed(NO_TOOLS, "%s cannot be run: %s" % (argv[0], error)) from error
        left_s = max(0.0, self.ends_at_s - time.monotonic())
        is_late = threading.Event()

        def end():
            is_late.set()
            process.kill()

        timer = threading.Timer(left_s, end)
        timer.daemon = True
        timer.start()
        try:
            for raw in process.stdout:
                self.follow(raw.decode("utf-8", "replace").rstrip(), is_quiet=is_quiet)
            status = process.wait()
        finally:
            timer.cancel()
        if is_late.is_set():
            raise Failed(TIMED_OUT, "it was not done in time")
        if status:
            raise self.why(asks_index=asks_index, code=code)

    def follow(self, line, *, is_quiet):
        if not line:
            return
        self.tail = [*self.tail, line][-TAIL_LINES:]
        if not is_quiet:
            print(line, flush=True)
        words = line.split()
        if words[0] == "Collecting" and len(words) > 1:
            self.seen += 1
            say("package %d: %s" % (self.seen, re.split(r"[<>=!~\[;]", words[1])[0]))
        elif line.startswith(("Installing collected", "Prepared", "Installed")):
            say("unpacking the packages")

    # -- why it failed

    def why(self, *, asks_index, code):
        said = "\n".join(self.tail)
        last = self.tail[-1] if self.tail else "it said nothing"
        if _NO_SPACE.search(said):
            return Failed(DISK_FULL, "no space left")
        if _WRONG_HASH.search(said):
            return Failed(CHECKSUM, "a wheel's bytes are not the index's")
        if asks_index:
            for pin in self.pins:
                found = self.trouble_of(pin)
                if found is not None:
                    return found
            if re.search(r"No matching distribution|No solution found", said):
                return Failed(NO_VERSION, last)
            if re.search(r"Connection|timed out|Max retries|error sending request", said, re.I):
                return Failed(UNREACHABLE, last)
        return Failed(code, last)

    def trouble_of(self, pin):
        """What the index itself says against a pin; None when it has a wheel."""
        name, _, version = pin.partition("==")
        name = re.sub(r"[-_.]+", "-", name).lower()
        try:
            with urllib.request.urlopen("%s/%s/" % (self.index, name), timeout=ASK_TIMEOUT_S) as answer:
                page = answer.read(PAGE_MAX_BYTES).decode("utf-8", "replace")
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return Failed(NO_VERSION, "the index has no %s" % name)
            return Failed(UNREACHABLE, "the index answers %d for %s" % (error.code, name))
        except (OSError, ValueError) as error:
            return Failed(UNREACHABLE, "the index does not answer: %s" % getattr(error, "reason", error))
        links = [html.unescape(href).rsplit("/", 1)[-1] for href in _HREF.findall(page)]
        files = [urllib.parse.unquote(link).lower() for link in links]
        of_version = [each for each in files if _is_of(each, name, version.lower())]
        if not of_version:
            return Failed(NO_VERSION, "the index has no %s %s" % (name, version))
        wheels = [each for each in of_version if each.endswith(".whl")]
        fits = [each for each in wheels if self.takes(each)]
        if not fits:
            what = "a source package" if not wheels else "wheels for other systems"
            return Failed(BUILD_NEEDED, "of %s %s the index has only %s" % (name, version, what))
        return None

    def takes(self, wheel):
        """Whether the wheel's tags look like this Python's. A doubt counts as yes: it is only to explain."""
        python, abi, platform = wheel[: -len(".whl")].split("-")[-3:]
        here = "cp%d%d" % sys.version_info[:2]
        fits_python = "py3" in python or here in python.split(".") or abi == "abi3"
        return fits_python and (platform == "any" or ("linux" in platform and os.uname().machine in platform))


def _is_of(file, name, version):
    """`file` is a wheel or a source package of that version."""
    wanted = re.escape(version)
    return bool(
        re.match(
            "%s-%s(-.*\\.whl|\\.tar\\.gz|\\.zip)$" % (re.escape(name).replace("\\-", "[-_.]+"), wanted), file
        )
    )


def _bytes_below(folder):
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(place, name)).st_size
    return total


def _free_bytes(folder):
    """As `df` tells, which knows a container's quota where the system call may not."""
    with contextlib.suppress(OSError, ValueError, IndexError, subprocess.SubprocessError):
        told = subprocess.run(
            ["df", "-Pk", folder], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=30, check=True
        )
        return int(told.stdout.decode().splitlines()[1].split()[3]) * 1024
    return shutil.disk_usage(folder).free


def say(text):
    """Replace the progress file in one step."""
    file = os.environ.get("PROGRESS_FILE")
    if not file:
        return
    with contextlib.suppress(OSError):
        with open(file + ".new", "w", encoding="utf-8") as draft:
            json.dump({"text": text[:120]}, draft)
        os.replace(file + ".new", file)


@contextlib.contextmanager
def alone(target, ends_at_s):
    """One install of a target at a time: a job that was given up may still have a child at work."""
    with open(target + ".lock", "w", encoding="utf-8") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() > ends_at_s:
                    raise Failed(TIMED_OUT, "another install does not end") from None
                say("waiting for an earlier install to end")
                time.sleep(BETWEEN_LOCK_LOOKS_S)
        yield


def main(words):
    parser = argparse.ArgumentParser()
    parser.add_argument("target")
    parser.add_argument("cache")
    parser.add_argument("--needs-bytes", type=int, default=0)
    parser.add_argument("--deadline-s", type=float, default=1500)
    parser.add_argument("pins", nargs="+")
    args = parser.parse_args(words)
    target, cache = os.path.abspath(args.target), os.path.abspath(args.cache)
    install = Install(target, cache, args.pins, args.deadline_s)
    try:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.makedirs(cache, exist_ok=True)
        with alone(target, install.ends_at_s):
            if install.is_complete():
                print("everything is there already", flush=True)
                return 0
            install.check_disk(args.needs_bytes)
            install.run()
    except Failed as failed:
        print(failed, flush=True)
        return failed.code
    except OSError as error:
        print(error, flush=True)
        return DISK_FULL if _NO_SPACE.search(str(error)) else FAILED
    print("installed: %s" % ", ".join(args.pins), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

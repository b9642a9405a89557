"""Weights from this machine to a node: a folder or a single file, by SFTP, resumed where it was cut.

A recipe names them by `repo = "file:///path"`. They have no hub, so that this is the one long piece of work
that runs in our process and not on the node; nothing of it is lost with the process all the same. A file
grows under `NAME.part`, is compared with our own SHA-256 on the node when it is whole, and only then gets its
name. Who begins again finds what is there: files with their name are done, a part goes on at its end.

Every path is ours: nothing that the node says names a file here or there.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO
from urllib.parse import unquote, urlsplit

from clorefleet.domain.download import LOCAL
from clorefleet.domain.errors import CommandFailed, NodeError, NodeUnreachable, WeightsFailed
from clorefleet.domain.identity import JobId, LeaseId
from clorefleet.domain.node import JobReport, JobState
from clorefleet.domain.setup import Setup
from clorefleet.domain.text import clean_line
from clorefleet.node.session import NodeSession, shell
from clorefleet.node.weights import CAUSES, COMPLETE_STAMP, FILES_MAX, Manifest, WeightFile

CHUNK_BYTES = 1 << 20
REWIND_BYTES = 8 << 20
"""Of a part that is taken up again, this much is sent anew: what a crashed host had not written yet."""
CUTS_MAX = 8
"""In a row without a new byte."""
PAUSE_S = 2.0
PAUSE_MAX_S = 30.0
HASH_BYTES_PER_S_MIN = 20e6
"""A node's time limit for the digest of a file."""
SPARE_BYTES = 64 << 20
_CODES = {cause: code for code, (cause, _) in CAUSES.items()}
# $1 folder, $2 file, $3 its digest: names the part if it is what was sent, throws it away if it is not.
_FINISH = r"""
cd "$1" || exit 2
if [ "$(sha256sum < "$2.part" | cut -d' ' -f1)" != "$3" ]; then rm -f "$2.part"; exit 3; fi
sync "$2.part" 2>/dev/null
mv -f "$2.part" "$2"
"""
# $1 folder, $2 file, $3 its digest: throws away a named file that is not what was sent.
_VERIFY = r"""
cd "$1" || exit 2
[ "$(sha256sum < "$2" | cut -d' ' -f1)" = "$3" ] || { rm -f "$2"; exit 3; }
"""
# $1 folder, $2 file: bytes under the name (or -) and of the part (or 0), and bytes free.
_STANDING = r"""
mkdir -p "$(dirname "$1/$2")" || exit 2
if [ -f "$1/$2" ]; then wc -c < "$1/$2"; else echo -; fi
if [ -f "$1/$2.part" ]; then wc -c < "$1/$2.part"; else echo 0; fi
df -B1 --output=avail "$1" | tail -n1
"""


def is_local(repo: str) -> bool:
    return repo.startswith(LOCAL)


def manifest_of_path(setup: Setup) -> tuple[Path, Manifest]:
    """The folder that holds a setup's local weights, and what is in it. Reads every byte.

    Raises:
        WeightsFailed: there is no such path, or no file in it that the recipe wants.
    """
    path = Path(unquote(urlsplit(setup.repo).path))
    root, wanted = (path.parent, [path]) if path.is_file() else (path, sorted(path.rglob("*")))
    files = []
    for file in wanted:
        name = file.relative_to(root).as_posix()
        is_wanted = path.is_file() or any(fnmatchcase(name, pattern) for pattern in setup.files)
        if is_wanted and file.is_file() and not name.startswith("."):
            files.append(WeightFile(name, file.stat().st_size, sha256=_sha256(file)))
    if not files or len(files) > FILES_MAX:
        raise WeightsFailed(
            f"{clean_line(path)} has no file like {', '.join(setup.files)}.",
            cause="not_found",
            remedy="Check the recipe's repo and files.",
        )
    listed = "\n".join(f"{file.path} {file.sha256}" for file in files)
    name = "".join(char if char.isalnum() else "-" for char in path.name)[:60] or "weights"
    return root, Manifest(f"local/{name}", hashlib.sha256(listed.encode()).hexdigest()[:40], tuple(files))


def _sha256(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


class Push:
    """One lease's weights on their way; `report` is as of a job on the node."""

    def __init__(
        self,
        setup: Setup,
        session_of: Callable[[], NodeSession],
        keep_manifest: Callable[[Manifest], None],
        *,
        verifies_again: bool = False,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """With `verifies_again` files that have their names on the node are compared with ours once more."""
        self._setup = setup
        self._verifies_again = verifies_again
        self._session_of = session_of
        self._keep_manifest = keep_manifest
        self._sleep = sleep
        self._report = JobReport(JobState.RUNNING, progress_text="reading the weights on this machine")
        self._is_stopped = threading.Event()
        self._done = self._total = self._sent = self._kept = 0
        self._began_s = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="push", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End soon; what arrived stays on the node."""
        self._is_stopped.set()

    @property
    def report(self) -> JobReport:
        return self._report

    def _run(self) -> None:
        try:
            root, manifest = _local_manifest(self._setup)
            self._keep_manifest(manifest)
            self._total = manifest.total_bytes
            for file in manifest.files:
                self._bring(root, manifest.folder, file)
            self._stamp(manifest)
        except WeightsFailed as error:
            code = _CODES.get(error.cause, _CODES["upload_broke"])
            self._report = JobReport(JobState.FAILED, code, log_tail=(clean_line(error.what),))
        except NodeError as error:
            cause = "upload_broke" if isinstance(error, NodeUnreachable) else "storage"
            self._report = JobReport(JobState.FAILED, _CODES[cause], log_tail=(clean_line(error),))
        except OSError as error:
            # The node's edge raises none: this machine could not keep what it has to.
            self._report = JobReport(JobState.FAILED, _CODES["local_weights"], log_tail=(clean_line(error),))
        else:
            self._report = JobReport(
                JobState.SUCCEEDED, 0, progress_done=self._total, progress_total=self._total
            )

    def _bring(self, root: Path, folder: str, file: WeightFile) -> None:
        """One file, over as many connections as it takes.

        Raises:
            WeightsFailed: cut too often, the node's disk is full, or wrong bytes arrived twice.
        """
        cuts = wrong = most = 0
        while True:
            try:
                if self._send(root, folder, file):
                    return
                wrong, most = wrong + 1, 0
                _check_unchanged(root, file)
                if wrong > 1:
                    raise WeightsFailed(f"{file.path}: wrong bytes arrived, twice.", cause="checksum")
            except (NodeUnreachable, OSError, EOFError) as error:
                # What the node keeps, not what left this machine: its disk may refuse all of it.
                cuts, most = (1, self._kept) if self._kept > most else (cuts + 1, most)
                if cuts >= CUTS_MAX or self._is_stopped.is_set():
                    raise WeightsFailed(f"{file.path}: {clean_line(error)}", cause="upload_broke") from error
                self._sleep(min(PAUSE_MAX_S, PAUSE_S * 2 ** (cuts - 1)))

    def _send(self, root: Path, folder: str, file: WeightFile) -> bool:
        """True when the file has its name; false when what arrived was not what was sent."""
        session = self._session_of()
        target = f"{session.home()}/{folder}"
        named, part, free = self._standing(session, target, file.path)
        self._kept = min(part, file.size)
        base = self._done
        if named == file.size and (not self._verifies_again or self._is_whole(session, target, file)):
            self._done = base + file.size
            return True
        start = max(0, min(part, file.size) - REWIND_BYTES) if part <= file.size else 0
        if file.size - start + SPARE_BYTES > free + part:
            raise WeightsFailed(f"{file.path} does not fit: {free:,} bytes are free.", cause="disk_full")
        with _opened(root, file) as source:
            source.seek(start)
            for count in session.append_file(f"{target}/{file.path}.part", start, _chunks(source, file)):
                self._sent += count
                start += count
                self._tell(base + start)
                if self._is_stopped.is_set():
                    raise WeightsFailed("stopped", cause="upload_broke")
        finished = session.run(shell(_FINISH, target, file.path, file.sha256), timeout_s=_hash_s_max(file))
        if finished.is_ok:
            self._done = base + file.size
        return finished.is_ok

    @staticmethod
    def _is_whole(session: NodeSession, target: str, file: WeightFile) -> bool:
        """A file under its name is what was sent; if not, it is gone after this."""
        verify = shell(_VERIFY, target, file.path, file.sha256)
        return session.run(verify, timeout_s=_hash_s_max(file)).is_ok

    @staticmethod
    def _standing(session: NodeSession, target: str, path: str) -> tuple[int | None, int, int]:
        """Raises `CommandFailed` when the node's answer is not three numbers."""
        words = session.run_ok(shell(_STANDING, target, path)).split()
        if len(words) != 3 or not all(word == "-" or (word.isascii() and word.isdigit()) for word in words):
            raise CommandFailed("The server does not tell what is there.", exit_status=0)
        named, part, free = (None if word == "-" else int(word[:18]) for word in words)
        return named, part or 0, free or 0

    def _stamp(self, manifest: Manifest) -> None:
        session = self._session_of()
        path = f"{session.home()}/{manifest.folder}/{COMPLETE_STAMP}"
        session.write_file(path, hashlib.sha256(manifest.to_json()).hexdigest().encode() + b"\n")

    def _tell(self, done: int) -> None:
        rate = self._sent / max(time.monotonic() - self._began_s, 1e-3)
        left_s = (self._total - done) / max(rate, 1.0)
        self._report = JobReport(
            JobState.RUNNING,
            progress_text=f"{done / 1e9:.1f} of {self._total / 1e9:.1f} GB from this machine, "
            f"{rate / 1e6:.0f} MB/s, {left_s / 60:.0f} min left",
            progress_done=done,
            progress_total=self._total,
        )


def _local_manifest(setup: Setup) -> tuple[Path, Manifest]:
    """As `manifest_of_path`, after something was rented for it: what is wrong here is no server's fault.

    Raises:
        WeightsFailed: `local_weights`.
    """
    try:
        return manifest_of_path(setup)
    except WeightsFailed as error:
        raise WeightsFailed(error.what, cause="local_weights", remedy=error.remedy) from error
    except OSError as error:
        raise WeightsFailed(_unreadable(error), cause="local_weights") from error


def _opened(root: Path, file: WeightFile) -> IO[bytes]:
    try:
        return (root / file.path).open("rb")
    except OSError as error:
        raise WeightsFailed(_unreadable(error), cause="local_weights") from error


def _check_unchanged(root: Path, file: WeightFile) -> None:
    """Wrong bytes arrived: not the line's fault where they were sent from a file that changed meanwhile.

    Raises:
        WeightsFailed: `local_weights`.
    """
    try:
        is_same = _sha256(root / file.path) == file.sha256
    except OSError as error:
        raise WeightsFailed(_unreadable(error), cause="local_weights") from error
    if not is_same:
        raise WeightsFailed(f"{file.path} changed on this machine while it was sent.", cause="local_weights")


def _unreadable(error: OSError) -> str:
    return f"The weights on this machine cannot be read: {clean_line(error)}."


def _chunks(source: IO[bytes], file: WeightFile) -> Callable[[], bytes]:
    def read() -> bytes:
        try:
            return source.read(CHUNK_BYTES)
        except OSError as error:
            raise WeightsFailed(f"{file.path}: {_unreadable(error)}", cause="local_weights") from error

    return read


def _hash_s_max(file: WeightFile) -> float:
    return 60 + file.size / HASH_BYTES_PER_S_MIN


@dataclass(slots=True)
class Pushes:
    """The pushes of a daemon, one per lease."""

    _by_lease: dict[LeaseId, tuple[JobId, Push]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def start(self, lease_id: LeaseId, job_id: JobId, make: Callable[[], Push]) -> None:
        """Begin `job_id`, unless it was begun before; an earlier one of the same lease ends."""
        with self._lock:
            before_id, before = self._by_lease.get(lease_id, (None, None))
            if before_id == job_id:
                return
            if before is not None:
                before.stop()
            push = make()
            self._by_lease[lease_id] = job_id, push
        push.start()

    def report(self, lease_id: LeaseId, job_id: JobId) -> JobReport:
        """ABSENT where it was not begun by this process: then it is begun, and finds what is there."""
        with self._lock:
            found_id, found = self._by_lease.get(lease_id, (None, None))
        return found.report if found is not None and found_id == job_id else JobReport(JobState.ABSENT)

    def forget(self, lease_id: LeaseId) -> None:
        with self._lock:
            _, found = self._by_lease.pop(lease_id, (None, None))
        if found is not None:
            found.stop()

    def close(self) -> None:
        with self._lock:
            lease_ids = list(self._by_lease)
        for lease_id in lease_ids:
            self.forget(lease_id)

"""The last lines of each replica's work, as of the daemon's last look: kept on this machine for looking at.

Reading them takes no connection, and they are still there when the server is not. They come from rented
hosts: cleaned and bounded before they are written, and again when they are read. Nothing is decided by them.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Sequence
from pathlib import Path

from clorefleet.config.places import make_private_dir
from clorefleet.domain.identity import LeaseId
from clorefleet.domain.text import clean_lines

FOLDER = "log-tails"
LINES_MAX = 200
BYTES_MAX = 128 * 1024
FILES_MAX = 200
"""Those of leases that have ended stay for whoever asks why, until so many newer ones are there."""
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


class LogTails:
    """Written by the daemon's looks."""

    def __init__(self, state_dir: Path) -> None:
        self._folder = state_dir / FOLDER
        self._written: dict[LeaseId, Sequence[str]] = {}

    def note(self, lease_id: LeaseId, lines: Sequence[str]) -> None:
        """Keep the lines, where they are others than before. A full disk loses them, and nothing else."""
        if not lines or self._written.get(lease_id) == lines:
            return
        is_new = lease_id not in self._written
        self._written[lease_id] = lines
        with contextlib.suppress(OSError):
            if is_new:
                make_private_dir(self._folder)
                self._drop_old()
            file = self._folder / f"{lease_id}.log"
            draft = file.with_suffix(".new")
            text = "\n".join(lines[-LINES_MAX:]) + "\n"
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as out:
                out.write(text)
            draft.replace(file)

    def forget(self, lease_id: LeaseId) -> None:
        """The lease has ended; its file stays."""
        self._written.pop(lease_id, None)

    def _drop_old(self) -> None:
        newest_first = sorted(self._folder.glob("*.log"), key=lambda file: file.stat().st_mtime, reverse=True)
        for file in newest_first[FILES_MAX - 1 :]:
            file.unlink(missing_ok=True)


def read_log_tail(state_dir: Path, lease_id: str) -> tuple[str, ...]:
    """The kept lines of a lease, the oldest first; none where none were kept on this machine."""
    if not _PLAIN_NAME.fullmatch(lease_id):
        return ()  # an id of ours names no path
    try:
        with (state_dir / FOLDER / f"{lease_id}.log").open("rb") as file:
            text = file.read(BYTES_MAX).decode("utf-8", "replace")
    except OSError:
        return ()
    return tuple(clean_lines(text, max_lines=LINES_MAX))

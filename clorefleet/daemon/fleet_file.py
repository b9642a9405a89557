"""Follow the applied fleet file: what spends less is done at once, the rest waits for `clorefleet apply`.

`fleet/change.py` says which is which and why. Here are the file's hazards: it is read only when its bytes
have stayed the same over two looks, so that half a file is not taken for one, and not at all when somebody
else could have written it.
"""

from __future__ import annotations

import hashlib
import logging
import os
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from clorefleet.clock import Clock
from clorefleet.config.fleet_file import read_fleet_file
from clorefleet.config.toml_file import FILE_BYTES_MAX, BadTomlFile
from clorefleet.domain.alert import NotifyPolicy
from clorefleet.domain.event import Event
from clorefleet.domain.fleet_file import FleetFile
from clorefleet.domain.report_policy import ReportPolicy
from clorefleet.fleet.change import Change, Kind, changes, followed
from clorefleet.store.database import FencingToken, Store

log = logging.getLogger("clorefleet.daemon")


Leadership = Callable[[], FencingToken | None]
"""The leadership of this process, while it is held."""


class FileFollower:
    """Looks at the applied file from time to time. The newest readable `[notify]` and `[report]` parts
    are kept in memory only."""

    def __init__(
        self, store: Store, token: Leadership, clock: Clock, *, wake: Callable[[], None] = lambda: None
    ) -> None:
        self._store = store
        self._token = token
        self._held: FencingToken | None = None
        self._clock = clock
        self._wake = wake
        self._seen = ""
        """Digest of the bytes at the last look."""
        self._done: tuple[str, str] = ("", "")
        """Digest that was acted upon, and that of the file as it was applied then."""
        self.notify = NotifyPolicy()
        self.report: ReportPolicy | None = None

    def look(self) -> None:
        """
        Raises:
            LostLeadership: another process acts now.
        """
        self._held = self._token()
        if self._held is None:
            return
        with self._store.read() as tx:
            applied = tx.applied_file()
        if applied is None:
            return
        path = Path(applied.path)
        try:
            data = _read_ours(path)
        except OSError as error:
            self._tell_once("missing", applied.digest, f"{path} cannot be read: {error.strerror or error}")
            return
        digest = hashlib.sha256(data).hexdigest()
        is_steady, self._seen = digest == self._seen, digest
        # What was applied was read whole by the user's own command; only an edit has to settle.
        if self._done == (digest, applied.digest) or not (is_steady or digest == applied.digest):
            return
        try:
            file = read_fleet_file(str(path), data)
        except BadTomlFile as error:
            first = error.problems[0]
            where = f"{path}:{first.place.line}:{first.place.column}"
            self._tell_once(digest, applied.digest, f"{where}: {first.text}")
            return
        self.notify, self.report = file.notify, file.report
        self._follow(file)
        self._done = (digest, applied.digest)

    def _tell_once(self, digest: str, applied_digest: str, why: str) -> None:
        if self._done == (digest, applied_digest):
            return
        text = f"The fleet file is not followed: {why}. Everything goes on as it was applied."
        log.warning("fleet_file_not_followed why=%s", why)
        with self._store.write(self._held) as tx:
            tx.add_event(Event(self._clock.now(), "fleet_file_not_followed", text))
        self._done = (digest, applied_digest)

    def _follow(self, file: FleetFile) -> None:
        now = self._clock.now()
        with self._store.write(self._held) as tx:
            stored, ceiling = tx.deployments(), tx.guard().per_day
            lowered = followed(file, stored, ceiling)
            for change in lowered.changes:
                if change.kind is Kind.CEILING:
                    tx.put_guard(replace(tx.guard(), per_day=lowered.fleet_budget))
                elif change.after is not None:
                    tx.put_deployment(change.after)
                tx.add_event(Event(now, "fleet_file_followed", _in_words(change), change.deployment_id))
            rest = changes(file, tx.deployments(), tx.guard().per_day, now=now).changes
            if rest:
                names = ", ".join(sorted({each.deployment_id or "the fleet's budget" for each in rest}))
                text = (
                    f"The fleet file says more than is followed by itself ({names}): "
                    "`clorefleet diff` shows it, `clorefleet apply` does it."
                )
                tx.add_event(Event(now, "fleet_file_waits", text))
        if lowered.changes:
            log.info("fleet_file_followed changes=%s", len(lowered.changes))
            self._wake()


def _in_words(change: Change) -> str:
    parts = ", ".join(f"{each.key} {each.before} → {each.after}" for each in change.differences)
    return f"By the edited fleet file, which spends less now: {change.deployment_id or 'the fleet'}: {parts}."


def _read_ours(path: Path) -> bytes:
    """
    Raises:
        OSError: not there, not a plain file, or others than its owner and us could write it.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise OSError("it is not a plain file")
        if found.st_uid not in (os.getuid(), 0) or stat.S_IMODE(found.st_mode) & 0o022:
            raise OSError("others than you can write it; type: chmod go-w " + path.name)
        return file.read(FILE_BYTES_MAX + 1)

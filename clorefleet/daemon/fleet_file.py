"""Follow the applied fleet file: what spends less is done at once, the rest waits for `clorefleet apply`.

`fleet/change.py` says which is which and why. Here are the file's hazards: it is read only when its bytes
have stayed the same over two looks, so that half a file is not taken for one, and not at all when somebody
else could have written it.

What is followed is an edit, not the file: a daemon that begins anew finds the file as it was applied, or as
it was followed last, and leaves alone what the user has set since by other commands. An edit made while no
daemon ran is followed in all that it says, as nobody knows what of it is new.
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
from clorefleet.domain.fleet_file import AppliedFile, FleetFile
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
        self._done: tuple[str, AppliedFile | None] = ("", None)
        """Digest that was acted upon, and the file as it was applied then."""
        self._said: FleetFile | None = None
        """What the file said when it was last applied or followed; None while that is not known."""
        self._said_under: AppliedFile | None = None
        self.notify: NotifyPolicy | None = None
        """None while it is not known: a file was applied, and this daemon could not read it yet."""
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
            applied, guard = tx.applied_file(), tx.guard()
        if applied is None:
            self.notify = NotifyPolicy()
            return
        followed_digest = guard.followed_digest if guard.followed_since == applied.applied_at else ""
        path = Path(applied.path)
        try:
            data = _read_ours(path)
        except OSError as error:
            self._tell_once("missing", applied, f"{path} cannot be read: {error.strerror or error}")
            return
        digest = hashlib.sha256(data).hexdigest()
        is_steady, self._seen = digest == self._seen, digest
        # What was applied was read whole by the user's own command; only an edit has to settle.
        if self._done == (digest, applied) or not (is_steady or digest == applied.digest):
            return
        try:
            file = read_fleet_file(str(path), data)
        except BadTomlFile as error:
            first = error.problems[0]
            where = f"{path}:{first.place.line}:{first.place.column}"
            self._tell_once(digest, applied, f"{where}: {first.text}")
            return
        # Whoever sees the ways out sees the report that may be due by them.
        self.report, self.notify = file.report, file.notify
        if self._said_under != applied:
            self._said = file if digest in (applied.digest, followed_digest) else None
        if self._said is None or self._said.digest != digest:
            self._follow(file, applied)
        self._said, self._said_under = file, applied
        self._done = (digest, applied)

    def _tell_once(self, digest: str, applied: AppliedFile, why: str) -> None:
        if self._done == (digest, applied):
            return
        text = f"The fleet file is not followed: {why}. Everything goes on as it was applied."
        log.warning("fleet_file_not_followed why=%s", why)
        with self._store.write(self._held) as tx:
            tx.add_event(Event(self._clock.now(), "fleet_file_not_followed", text))
        self._done = (digest, applied)

    def _follow(self, file: FleetFile, applied: AppliedFile) -> None:
        now = self._clock.now()
        with self._store.write(self._held) as tx:
            stored, guard = tx.deployments(), tx.guard()
            tx.put_guard(replace(guard, followed_digest=file.digest, followed_since=applied.applied_at))
            lowered = followed(file, stored, guard.per_day, said=self._said)
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

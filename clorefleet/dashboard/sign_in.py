"""How a browser proves that its user is this user: one-time links, and the sessions that they open.

A *link* holds a code in its fragment, which browsers send to nobody. The state folder, which only its user
can read, keeps the code's digest in a file of that name; removing the file is taking the code, so that it
works once, in whatever process it was made. A *session* is a random cookie, of which the process keeps the
digest. Neither codes nor cookies are ever written to a log or a page.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from clorefleet.config.places import make_private_dir, write_private_file

CODE_BYTES = 24
LINK_LIFE = timedelta(minutes=10)
SESSION_LIFE = timedelta(hours=12)
SESSIONS_MAX = 16
"""The oldest gives way: a user has a few browsers."""
SECRET_CHARS_MAX = 128
FOLDER = "dashboard-links"

Now = Callable[[], datetime]


class Links:
    """One-time codes of a profile, good for `LINK_LIFE`."""

    def __init__(self, state_dir: Path, now: Now) -> None:
        self._folder = state_dir / FOLDER
        self._now = now

    def issue(self) -> str:
        """A new code, for whoever can read this process's output."""
        make_private_dir(self._folder)
        self._drop_old()
        code = secrets.token_urlsafe(CODE_BYTES)
        expires_at = self._now() + LINK_LIFE
        write_private_file(self._folder / _digest(code), expires_at.isoformat().encode())
        return code

    def redeem(self, code: str) -> bool:
        """Whether the code was good. It is not afterwards."""
        if not code or len(code) > SECRET_CHARS_MAX:
            return False
        file = self._folder / _digest(code)
        try:
            expires_at = _expiry(file)
            file.unlink()  # of several that try at once, one succeeds
        except OSError:
            return False
        return expires_at is not None and self._now() < expires_at

    def _drop_old(self) -> None:
        for file in self._folder.iterdir():
            expires_at = _expiry(file)
            if expires_at is None or expires_at <= self._now():
                file.unlink(missing_ok=True)


def _expiry(file: Path) -> datetime | None:
    """None for a file that holds no time.

    Raises:
        OSError: there is no such file.
    """
    try:
        return datetime.fromisoformat(file.read_text("ascii"))
    except ValueError:
        return None


@dataclass(frozen=True, slots=True)
class Session:
    csrf_token: str
    """Shown in every form of this session, and asked back from it."""
    expires_at: datetime

    def accepts(self, csrf_token: str) -> bool:
        return hmac.compare_digest(self.csrf_token.encode(), csrf_token.encode())


class Sessions:
    """Those of this process; they die with it."""

    def __init__(self, now: Now) -> None:
        self._now = now
        self._lock = threading.Lock()
        self._by_digest: dict[str, Session] = {}

    def open(self) -> str:
        """The new session's cookie."""
        cookie = secrets.token_urlsafe(CODE_BYTES)
        session = Session(secrets.token_urlsafe(CODE_BYTES), self._now() + SESSION_LIFE)
        with self._lock:
            self._drop_old()
            while len(self._by_digest) >= SESSIONS_MAX:
                del self._by_digest[next(iter(self._by_digest))]
            self._by_digest[_digest(cookie)] = session
        return cookie

    def find(self, cookie: str) -> Session | None:
        if not cookie or len(cookie) > SECRET_CHARS_MAX:
            return None
        with self._lock:
            session = self._by_digest.get(_digest(cookie))
        return session if session is not None and self._now() < session.expires_at else None

    def close(self, cookie: str) -> None:
        with self._lock:
            self._by_digest.pop(_digest(cookie), None)

    def _drop_old(self) -> None:
        now = self._now()
        for digest in [key for key, each in self._by_digest.items() if each.expires_at <= now]:
            del self._by_digest[digest]


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()

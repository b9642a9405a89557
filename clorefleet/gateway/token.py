"""The gateway's token: made once per profile, kept in a 0600 file, compared in constant time.

The file holds the token itself, since `deploy` prints the command that uses it; the gateway's memory
holds only its digest. A file that others could read, or that is too short to be one of ours, has no
worth any more: a new token takes its place, and clients of the old one are refused.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path

from clorefleet.config.places import write_private_file
from clorefleet.domain.secret import Secret

log = logging.getLogger("clorefleet.gateway")

TOKEN_BYTES = 24
"""192 random bits."""
TOKEN_MIN_CHARS = 22
"""128 bits in base64."""
TOKEN_MAX_CHARS = 256
FILE_NAME = "gateway.token"


def load_or_create_token(state_dir: Path) -> Secret:
    """The profile's token; made now if there is none that can be trusted.

    Raises:
        OSError: the state folder cannot be written.
    """
    file = state_dir / FILE_NAME
    kept, why_not = _kept_token(file)
    if kept is not None:
        return kept
    if why_not:
        log.warning("gateway_token_replaced why=%s", why_not)
    token = Secret(f"cf-{secrets.token_urlsafe(TOKEN_BYTES)}")
    write_private_file(file, token.reveal().encode())
    return token


load_or_create = load_or_create_token
"""The name that the wiring uses."""


def _kept_token(file: Path) -> tuple[Secret | None, str]:
    """The token in `file`, or why it is not used; "" when there simply is none."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None, ""
    except OSError:
        return None, "not a plain file"
    with os.fdopen(descriptor, "rb") as opened:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.getuid():
            return None, "not a file of this user"
        if found.st_mode & 0o077:
            return None, "readable by others"
        text = opened.read(TOKEN_MAX_CHARS + 1).decode("ascii", "replace").strip()
    if not TOKEN_MIN_CHARS <= len(text) <= TOKEN_MAX_CHARS or not text.isascii() or not text.isprintable():
        return None, "damaged"
    return Secret(text), ""


@dataclass(frozen=True, slots=True)
class TokenCheck:
    """Knows whether a token is right without knowing the token."""

    digest: bytes

    @classmethod
    def of(cls, token: Secret) -> TokenCheck:
        return cls(hashlib.sha256(token.reveal().encode()).digest())

    def accepts(self, authorization: str | None) -> bool:
        """Whether an `Authorization` header shows the token; equally slow for every wrong one."""
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer":
            return False
        return hmac.compare_digest(hashlib.sha256(token.strip().encode()).digest(), self.digest)

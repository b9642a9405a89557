"""The gateway's token: made once per profile, kept in a 0600 file, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from pathlib import Path

from clorefleet.config.places import write_private_file
from clorefleet.domain.secret import Secret

TOKEN_BYTES = 24
"""192 random bits."""
FILE_NAME = "gateway.token"


def load_or_create(state_dir: Path) -> Secret:
    file = state_dir / FILE_NAME
    if file.exists():
        text = file.read_text("ascii").strip()
        if text:
            return Secret(text)
    token = f"cf-{secrets.token_urlsafe(TOKEN_BYTES)}"
    write_private_file(file, token.encode())
    return Secret(token)


@dataclass(frozen=True, slots=True)
class TokenCheck:
    """Knows whether a token is right without knowing the token."""

    digest: bytes

    @classmethod
    def of(cls, token: Secret) -> TokenCheck:
        return cls(hashlib.sha256(token.reveal().encode()).digest())

    def accepts(self, authorization: str | None) -> bool:
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer":
            return False
        return hmac.compare_digest(hashlib.sha256(token.strip().encode()).digest(), self.digest)

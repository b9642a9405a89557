"""The secrets of a sandbox run, and whether one of them lies where it must not (S10)."""

from __future__ import annotations

import base64
from pathlib import Path
from urllib.parse import quote

from clorefleet.sandbox import process as sandbox

_HOMES = ("server", "keys", "gateway.token")
"""Where secrets belong, inside the profile's state."""
_NEEDLE_BYTES_MIN = 12
"""Anything shorter is found by chance."""


class Canaries:
    """Notes secrets where each belongs, while it is there, and searches everything else for them."""

    def __init__(self, home: Path, state: Path) -> None:
        self._home, self._state = home, state
        self._secrets: set[bytes] = set()

    def __len__(self) -> int:
        return len(self._secrets)

    def note(self) -> None:
        info = sandbox.find(self._state / "server")
        if info is not None:
            self._secrets.add(info.api_key.encode())
        for file in [self._state / "gateway.token", *self._state.glob("keys/*/*")]:
            try:
                content = file.read_bytes().strip()
            except OSError:
                continue
            if b"PRIVATE KEY" in content:
                # One line from the middle of the key: its head and tail are the same for all.
                lines = content.splitlines()
                self._secrets.add(lines[len(lines) // 2])
            elif file.name in ("gateway.token", "password"):
                self._secrets.add(content)

    def found(self) -> set[str]:
        """The files that hold a secret and must not."""
        needles = {form for secret in self._secrets for form in forms(secret)}
        found = set()
        for file in self._home.rglob("*"):
            place = file.relative_to(self._state) if file.is_relative_to(self._state) else file
            if not file.is_file() or place.parts[0] in _HOMES:
                continue
            content = file.read_bytes()
            if any(needle in content for needle in needles):
                found.add(str(place))
        return found

    def key_files(self) -> list[Path]:
        """What is left of the orders' key folders."""
        return [file for file in self._state.glob("keys/*/*") if file.is_file()]


def forms(secret: bytes) -> set[bytes]:
    """Raw, URL-encoded, and in base64 at each of the three alignments."""
    found = {secret, quote(secret, safe="").encode()}
    for shift in range(3):
        coded = base64.b64encode(b"\0" * shift + secret)
        # The letters at both ends also depend on the neighbours.
        found.add(coded[4 if shift else 0 : -4])
    return {form for form in found if len(form) >= _NEEDLE_BYTES_MIN}

"""A secret that does not show itself: masked in `repr`, `str`, f-strings and JSON."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

MASK = "********"
SECRET_CHARS_MIN = 6
"""Shorter ones would take whole words out of a text."""


@dataclass(frozen=True, slots=True, repr=False)
class Secret:
    """Holds a key, password or token. `reveal` is called on the one line that needs the value."""

    _value: str = field(repr=False)

    def reveal(self) -> str:
        return self._value

    def __repr__(self) -> str:
        return f"Secret({MASK})"

    def __str__(self) -> str:
        return MASK

    def __reduce__(self) -> str:
        raise TypeError("a secret is never pickled")


def redacted(text: str, secrets: Iterable[Secret]) -> str:
    """`text` without any of `secrets`, should one have got into it."""
    for secret in secrets:
        value = secret.reveal()
        if len(value) >= SECRET_CHARS_MIN:
            text = text.replace(value, MASK)
    return text


NO_SECRET = Secret("")
"""Where there is none."""


@dataclass(frozen=True, slots=True)
class HubAccess:
    """A hub's token, and the repositories that its owner allowed it for. A rented machine sees it."""

    token: Secret = NO_SECRET
    repos: frozenset[str] = frozenset()

    def token_for(self, repo: str) -> Secret:
        """`NO_SECRET` where the repository was not named: nothing is sent unasked."""
        return self.token if repo in self.repos else NO_SECRET


NO_HUB_ACCESS = HubAccess()

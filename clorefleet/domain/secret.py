"""A secret that does not show itself: masked in `repr`, `str`, f-strings and JSON."""

from __future__ import annotations

from dataclasses import dataclass, field

MASK = "********"


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


NO_SECRET = Secret("")
"""Where there is none."""

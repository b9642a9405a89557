"""What a mistyped word may have meant."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`Did you mean glm-5.1? `, or "" where nothing is near; ready to stand before a remedy."""
    words = list(known)
    by_lower = {each.lower(): each for each in words}
    near = [by_lower[each] for each in get_close_matches(word.lower(), by_lower, n=2)]
    near = near or [each for each in words if word and each.lower().startswith(word.lower())][:2]
    return f"Did you mean {' or '.join(near)}? " if near else ""

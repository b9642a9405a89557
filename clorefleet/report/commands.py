"""Commands inside sentences, made to mean the profile that they are shown for.

Whoever writes a remedy or advice need not know the profile: what prints it does. A command that was written
between backticks works when it is pasted.
"""

from __future__ import annotations

import re

_COMMAND = re.compile(r"`clorefleet ([a-z][^`\n]*)`")
_SAME_EVERYWHERE = frozenset({"models", "recipes", "diagnose", "sandbox"})
"""Commands that look at no profile's state."""

_SETTLED = frozenset({"--sandbox", "--profile", "--help"})
"""Options with which there is nothing left to say."""


def for_profile(text: str, flag: str) -> str:
    """`flag` is `Profile.flag`. A command that names a profile already keeps it."""
    if not flag or "`clorefleet " not in text:
        return text
    return _COMMAND.sub(lambda found: f"`clorefleet {_with(found[1], flag)}`", text)


def _with(words: str, flag: str) -> str:
    named = words.split()
    if named[0] in _SAME_EVERYWHERE or _SETTLED.intersection(named):
        return words
    own, ends, foreign = words.partition(" -- ")
    return f"{own}{flag}{ends}{foreign}"

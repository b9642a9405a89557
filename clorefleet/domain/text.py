"""Make text from outside harmless before it reaches a terminal, a log or a file.

Names, banners, logs and specifications come from strangers' machines. One function removes what a
terminal would obey (C0 and C1 controls, escapes, bidirectional overrides, zero-width and format
characters) and bounds the length. Nothing else in clorefleet prints foreign text.
"""

from __future__ import annotations

import unicodedata

LINE_MAX_CHARS = 400
_FORBIDDEN_CATEGORIES = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def clean_line(text: object, *, max_chars: int = LINE_MAX_CHARS) -> str:
    """One harmless line: controls become `�` (tabs and newlines a blank), the rest is cut with `…`."""
    raw = str(text)
    is_cut = len(raw) > max_chars
    if not is_cut and raw.isascii() and raw.isprintable():
        return raw.strip()  # as nearly every line is
    out = []
    for char in raw[:max_chars]:
        if char in "\t\n\r":
            out.append(" ")
        elif unicodedata.category(char) in _FORBIDDEN_CATEGORIES:
            out.append("�")
        else:
            out.append(char)
    return "".join(out).strip() + ("…" if is_cut else "")


def clean_lines(text: str, *, max_lines: int = 200, max_chars: int = LINE_MAX_CHARS) -> list[str]:
    """The last `max_lines` lines of a log, each made harmless."""
    return [clean_line(line, max_chars=max_chars) for line in text.splitlines()[-max_lines:]]

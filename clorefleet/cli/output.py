"""Printing: tables for people on stdout, diagnostics on stderr, JSON for machines.

Every cell goes through `clean_line` and rich's markup is off: names and logs come from strangers.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from decimal import Decimal
from enum import Enum
from typing import Any

from clorefleet.cli.context import options
from clorefleet.domain.text import clean_line
from clorefleet.report.words import age as age
from clorefleet.report.words import gib as gib
from clorefleet.report.words import usd as usd

NARROW = 80
_MARKS = {"right": ">", "left": "<"}


def print_json(document: object) -> None:
    """One JSON document on stdout; Decimals as text, instants in ISO 8601."""
    sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False, default=_plain) + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, (set, frozenset, tuple)):
        return list(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


def say(text: str = "", *, end: str = "\n") -> None:
    """A line on stdout, as it is: our own words with foreign parts already cleaned."""
    sys.stdout.write(text + end)
    sys.stdout.flush()


def note(text: str) -> None:
    """A line beside the result, on stderr."""
    sys.stderr.write(text + "\n")


def table(headings: Sequence[str], rows: Iterable[Sequence[object]], *, right: Sequence[int] = ()) -> None:
    """Aligned columns, two blanks apart; `right` names the columns of numbers.

    Plain text: it copies, greps and pipes, and costs no import.
    """
    cells = [[clean_line(cell, max_chars=60) for cell in row] for row in rows]
    widths = [
        max([_width(heading), *(_width(row[i]) for row in cells)]) for i, heading in enumerate(headings)
    ]
    say(_row([_strong(_pad(h, widths[i], i in right)) for i, h in enumerate(headings)]))
    for row in cells:
        say(_row([_pad(cell, widths[i], i in right) for i, cell in enumerate(row)]))


def _row(cells: list[str]) -> str:
    return "  ".join(cells).rstrip()


def _pad(text: str, width: int, is_right: bool) -> str:
    gap = " " * (width - _width(text))
    return gap + text if is_right else text + gap


def _width(text: str) -> int:
    """Columns on a terminal: East Asian wide characters take two."""
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width

    return sum(0 if combining(c) else 2 if east_asian_width(c) in "WF" else 1 for c in text)


def is_terminal() -> bool:
    return sys.stdout.isatty()


def _strong(text: str) -> str:
    return f"\x1b[1m{text}\x1b[0m" if has_color() else text


def has_color() -> bool:
    """Colour only on a terminal that wants it (https://no-color.org)."""
    import os

    return not options.no_color and is_terminal() and "NO_COLOR" not in os.environ


def confirm(question: str, *, yes: bool, what: str) -> bool:
    """Ask once; `yes` answers for scripts.

    Raises:
        NeedsConfirmation: no terminal to ask at, and no `yes`.
    """
    if yes:
        return True
    if not sys.stdin.isatty():
        from clorefleet.domain.errors import NeedsConfirmation

        raise NeedsConfirmation(what)
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")

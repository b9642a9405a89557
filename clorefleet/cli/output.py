"""Printing: tables for people on stdout, diagnostics on stderr, JSON for machines.

Every cell goes through `clean_line` and rich's markup is off: names and logs come from strangers.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from decimal import Decimal
from enum import Enum
from typing import Any, TextIO

import typer

from clorefleet.cli import progress
from clorefleet.cli.context import is_utf8, options
from clorefleet.domain.text import clean_line
from clorefleet.report.commands import for_profile
from clorefleet.report.words import age as age
from clorefleet.report.words import gib as gib
from clorefleet.report.words import usd as usd

NARROW = 80
CELL_MAX_CHARS = 60
LAST_MAX_CHARS = 300
LEAST_CHARS, LAST_LEAST_CHARS = 10, 24
"""What a column of words is never narrowed below."""


def print_json(document: object) -> None:
    """One JSON document on stdout; Decimals as text, instants in ISO 8601."""
    text = json.dumps(document, indent=2, ensure_ascii=not is_utf8(sys.stdout), default=_plain)
    sys.stdout.write(_for_this_profile(text) + "\n")


def print_json_line(document: object) -> None:
    """One document a line: what follows something goes on until it is interrupted."""
    text = json.dumps(document, ensure_ascii=not is_utf8(sys.stdout), default=_plain)
    sys.stdout.write(_for_this_profile(text) + "\n")
    sys.stdout.flush()


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


def _for_this_profile(text: str) -> str:
    """A command that is told works when it is pasted."""
    return for_profile(text, options.flag)


def say(text: str = "", *, end: str = "\n", hanging: int = 0) -> None:
    """Prose on stdout, our own words with foreign parts already cleaned.

    On a terminal it is broken at words; the lines below the first begin `hanging` columns further in.
    """
    progress.clear_line()
    sys.stdout.write(_broken(_for_this_profile(text), sys.stdout, hanging=" " * hanging) + end)
    sys.stdout.flush()


def say_verbatim(text: str, *, end: str = "\n") -> None:
    """Text on stdout that must stay as it is: a log, a command to copy, a drawing."""
    progress.clear_line()
    sys.stdout.write(text + end)
    sys.stdout.flush()


def note(text: str, *, hanging: int = 0) -> None:
    """A line beside the result, on stderr; broken as `say` breaks one."""
    progress.clear_line()
    sys.stderr.write(_broken(_for_this_profile(text), sys.stderr, hanging=" " * hanging) + "\n")


def columns() -> int:
    """Of the terminal; COLUMNS overrules it, and 80 stands for a pipe."""
    import shutil

    return shutil.get_terminal_size((NARROW, 24)).columns


_COMMAND = re.compile(r"`[^`\n]+`")


def _broken(text: str, stream: TextIO, hanging: str = "") -> str:
    """Lines broken at words where a person reads them; a pipe gets each line whole, for grep.

    A command between backticks is never broken: it is there to be copied.
    """
    if not stream.isatty() or _width(text) <= (width := columns()):
        return text
    from textwrap import wrap

    whole = _COMMAND.sub(lambda found: found[0].replace(" ", "\0"), text)
    lines = []
    for line in whole.split("\n"):
        indent = line[: len(line) - len(line.lstrip())] + hanging
        lines += wrap(
            line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False,
            drop_whitespace=True,
        ) or [""]  # fmt: skip
    return "\n".join(lines).replace("\0", " ")


def table(
    headings: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    right: Sequence[int] = (),
    indent: int = 0,
    wide: bool = False,
) -> None:
    """Aligned columns, two blanks apart; `right` names the columns of numbers.

    As wide as the terminal at most, and 80 columns where it is none: the widest words are cut with `…`,
    and a last column of words goes on below itself. Numbers are never cut, and nothing is where `wide`.
    On a narrower terminal, where something would be cut, each row is told field by field.
    Plain text: it copies, greps and pipes, and costs no import.
    """
    last = len(headings) - 1
    cells = [
        [
            _for_this_profile(clean_line(cell, max_chars=LAST_MAX_CHARS if i == last else CELL_MAX_CHARS))
            for i, cell in row
        ]
        for row in map(enumerate, rows)
    ]
    widths = [
        max([_width(heading), *(_width(row[i]) for row in cells)]) for i, heading in enumerate(headings)
    ]
    margin = " " * indent
    limit = columns() - indent
    if not wide:
        whole = widths[:last]
        _narrow(widths, headings, right, limit)
        # A row that the terminal breaks cannot be read, nor one of which little is left. A pipe gets rows.
        if columns() < NARROW and (sum(widths) + 2 * last > limit or widths[:last] != whole):
            for line in _fields(headings, cells, limit):
                say_verbatim((margin + line).rstrip())
            return
    bold = [strong(_pad(h, widths[i], i in right, is_last=i == last)) for i, h in enumerate(headings)]
    say_verbatim(margin + _row(bold))
    for row in cells:
        below = [""]
        if last not in right:
            below = _lines(row[last], widths[last])
        shown = [*(_cut(cell, widths[i]) for i, cell in enumerate(row[:-1])), below[0] or row[last]]
        say_verbatim(margin + _row([_pad(cell, widths[i], i in right) for i, cell in enumerate(shown)]))
        before = sum(widths[:-1]) + 2 * last
        for line in below[1:]:
            say_verbatim(margin + " " * before + line)


def _fields(headings: Sequence[str], cells: list[list[str]], limit: int) -> Iterator[str]:
    """Each row as one line for each field that holds something, a blank line between two rows."""
    before = max(map(_width, headings)) + 2
    for number, row in enumerate(cells):
        if number:
            yield ""
        for heading, cell in zip(headings, row, strict=True):
            if cell not in ("", "-"):
                first, *below = _lines(cell, limit - before)
                yield strong(_pad(heading, before, False)) + first
                yield from (" " * before + line for line in below)


def _narrow(widths: list[int], headings: Sequence[str], right: Sequence[int], limit: int) -> None:
    """Take from a last column of words, which loses nothing by it, then from the widest others.

    Until the row fits, or nothing more can be taken.
    """
    least = {i: max(_width(h), LEAST_CHARS) for i, h in enumerate(headings) if i not in right}
    last = len(headings) - 1
    while sum(widths) + 2 * last > limit:
        able = [i for i, floor in least.items() if widths[i] > floor]
        if not able:
            return
        goes_on_below = last in able and widths[last] > LAST_LEAST_CHARS
        widths[last if goes_on_below else max(able, key=lambda i: widths[i])] -= 1


def _cut(text: str, width: int) -> str:
    if _width(text) <= width:
        return text
    while _width(text) > width - 1:
        text = text[:-1]
    return text + "…"


def _lines(text: str, width: int) -> list[str]:
    from textwrap import wrap

    return wrap(text, max(width, 1)) if _width(text) > width else [text]


def _row(cells: list[str]) -> str:
    return "  ".join(cells).rstrip()


def _pad(text: str, width: int, is_right: bool, *, is_last: bool = False) -> str:
    gap = " " * (width - _width(text))
    if is_right:
        return gap + text
    return text if is_last else text + gap


def _width(text: str) -> int:
    """Columns on a terminal: East Asian wide characters take two."""
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width

    return sum(0 if combining(c) else 2 if east_asian_width(c) in "WF" else 1 for c in text)


def is_terminal() -> bool:
    return sys.stdout.isatty()


def strong(text: str) -> str:
    return f"\x1b[1m{text}\x1b[0m" if has_color(sys.stdout) else text


def painted(text: str, code: int, stream: TextIO) -> str:
    """Text in one of the terminal's own colours: 31 red, 32 green, 33 yellow."""
    return f"\x1b[{code}m{text}\x1b[0m" if has_color(stream) else text


def has_color(stream: TextIO) -> bool:
    """Only a terminal that wants it: no --no-color, no NO_COLOR (https://no-color.org), not a dumb one."""
    import os

    return (
        not options.no_color
        and stream.isatty()
        and not os.environ.get("NO_COLOR")
        and os.environ.get("TERM") != "dumb"
    )


def tell_error(what: str, *, money: str = "", remedy: str = "") -> None:
    """An error as people read it, on stderr."""
    progress.clear_line()
    lines = [painted("Error:", 31, sys.stderr) + " " + what]
    if money:
        lines.append(f"Money: {_for_this_profile(money)}")
    if remedy:
        lines.append(f"Next:  {_for_this_profile(remedy)}")
    sys.stderr.write("\n".join(_broken(line, sys.stderr, hanging="       ") for line in lines) + "\n")


def confirm(question: str, *, yes: bool, what: str, otherwise: str) -> None:
    """Ask once, and go on only with a yes; `yes` answers for scripts.

    Args:
        otherwise: what a no leaves as it is, said before the command ends with INTERRUPTED.

    Raises:
        NeedsConfirmation: no terminal to ask at, and no `yes`.
    """
    if yes:
        return
    from clorefleet.domain.errors import ExitCode, NeedsConfirmation

    if not sys.stdin.isatty():
        raise NeedsConfirmation(what)
    progress.clear_line()
    sys.stderr.write(_broken(f"{question} [y/N] ", sys.stderr))
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        note(otherwise)
        raise typer.Exit(ExitCode.INTERRUPTED)

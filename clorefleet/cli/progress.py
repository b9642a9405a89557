"""What shows that something is under way: one moving line on a terminal, and nothing where none reads it.

The line is on stderr, so that stdout stays the result. It appears only after a moment: what is quick says
nothing. `output` wipes it before it prints anything else.
"""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from clorefleet.cli.context import options

AFTER_S = 0.6
EVERY_S = 0.1
BAR_CHARS = 20
_SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
_lock = threading.RLock()
_is_shown = False


def is_watched() -> bool:
    """Somebody sees stderr move, and did not ask for JSON."""
    return sys.stderr.isatty() and not options.as_json


def bar(fraction: float) -> str:
    """`━━━━━───────────────  25%`"""
    share = min(1.0, max(0.0, fraction))
    full = int(share * BAR_CHARS)
    return f"{'━' * full}{'─' * (BAR_CHARS - full)} {share:4.0%}"


def show_line(text: str) -> None:
    """Draw the line anew; cut at the terminal's width."""
    global _is_shown
    with _lock:
        frame = _SPINNER[int(time.monotonic() / EVERY_S) % len(_SPINNER)]
        width = shutil.get_terminal_size().columns - 1
        sys.stderr.write("\r\x1b[K" + f"{frame} {text}"[:width])
        sys.stderr.flush()
        _is_shown = True


def clear_line() -> None:
    global _is_shown
    with _lock:
        if _is_shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
            _is_shown = False


class Progress:
    """How far something is; `fraction` None shows that it goes on, and for how long already."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.fraction: float | None = None
        self._since = time.monotonic()

    def line(self) -> str:
        if self.fraction is not None:
            return f"{self.what} {bar(self.fraction)}"
        seconds = int(time.monotonic() - self._since)
        return f"{self.what}{f' ({seconds} s)' if seconds > 2 else ''}"


@contextmanager
def working(what: str) -> Iterator[Progress]:
    """Show `what` until the block ends, if it takes longer than a moment and somebody watches."""
    progress = Progress(what)
    if not is_watched():
        yield progress
        return
    ended = threading.Event()

    def draw() -> None:
        if ended.wait(AFTER_S):
            return
        while True:
            with _lock:
                if ended.is_set():
                    return
                show_line(progress.line())
            if ended.wait(EVERY_S):
                return

    drawer = threading.Thread(target=draw, name="progress", daemon=True)
    drawer.start()
    try:
        yield progress
    finally:
        ended.set()
        clear_line()
        drawer.join()

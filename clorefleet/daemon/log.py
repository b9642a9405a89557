"""The daemon's log: one event per line, as text or as JSON, bounded in size, and harmless to whoever reads
it.

Whatever a message carries, a line stays a line: controls, escapes and bidirectional overrides are taken out
of messages and tracebacks alike, since names and words of hosts and the market end up in them.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path

from clorefleet.domain.text import clean_line, clean_lines

LOG_BYTES_MAX = 5_000_000
LOG_FILES_MAX = 3
MESSAGE_CHARS_MAX = 2_000
TRACEBACK_LINES_MAX = 40
_FIELD = re.compile(r"(?:^|\s)([a-z][a-z0-9_]{0,40})=(\S+)")
_EVENT = re.compile(r"[a-z][a-z0-9_]{0,60}")


class TextFormatter(logging.Formatter):
    """`2026-11-25T08:00:00Z INFO clorefleet.fleet order_rented order=9 ...`"""

    def format(self, record: logging.LogRecord) -> str:
        line = f"{_at(record)} {record.levelname} {record.name} {_message(record)}"
        # Lines of a traceback are indented, so that none of them can pass for an event.
        return "\n".join([line, *(f"    {each}" for each in _traceback(record))])


class JsonFormatter(logging.Formatter):
    """One JSON object per line: at, level, logger, event, the message's `key=value` fields, message."""

    def format(self, record: logging.LogRecord) -> str:
        message = _message(record)
        word = message.split(" ", 1)[0]
        document: dict[str, object] = {
            "at": _at(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": word if _EVENT.fullmatch(word) else "",
            "message": message,
            "fields": dict(_FIELD.findall(message)),
        }
        traceback = _traceback(record)
        if traceback:
            document["traceback"] = traceback
        return json.dumps(document, ensure_ascii=True)


def _at(record: logging.LogRecord) -> str:
    return (
        datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    )


def _message(record: logging.LogRecord) -> str:
    return clean_line(record.getMessage(), max_chars=MESSAGE_CHARS_MAX)


def _traceback(record: logging.LogRecord) -> list[str]:
    if not record.exc_info:
        return []
    text = logging.Formatter().formatException(record.exc_info)
    return clean_lines(text, max_lines=TRACEBACK_LINES_MAX)


def log_to(file: Path | None, *, as_json: bool) -> None:
    """Send everything to `file`, readable by its owner alone, or to standard error."""
    handler: logging.Handler
    if file is None:
        handler = logging.StreamHandler(sys.stderr)
    else:
        handler = RotatingFileHandler(
            file, maxBytes=LOG_BYTES_MAX, backupCount=LOG_FILES_MAX, encoding="utf-8", errors="replace"
        )
    handler.setFormatter(JsonFormatter() if as_json else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("clorefleet").setLevel(logging.INFO)

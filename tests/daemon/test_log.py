"""A line of the log stays a line, whatever strangers write into it."""

from __future__ import annotations

import json
import logging
import stat
import sys
from pathlib import Path

import pytest

from clorefleet.daemon.log import JsonFormatter, TextFormatter, log_to

HOSTILE = "host\n2026-11-25T00:00:00Z INFO clorefleet fake_event x=1\x1b]52;c;AAAA\x07\u202e"


def record(message: str, *args: object, exc_info: object = None) -> logging.LogRecord:
    return logging.LogRecord("clorefleet.fleet", logging.INFO, "f", 1, message, args, exc_info)


@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter()], ids=["text", "json"])
def test_no_control_character_and_no_second_line_gets_in(formatter: logging.Formatter):
    line = formatter.format(record("seen name=%s", HOSTILE))
    assert "\n" not in line and "\x1b" not in line and "\u202e" not in line and "\x07" not in line


def test_a_json_line_has_the_event_and_its_fields():
    line = json.loads(JsonFormatter().format(record("order_rented order=%s price=%s", 9, "0.3")))
    assert line["event"] == "order_rented" and line["fields"] == {"order": "9", "price": "0.3"}
    assert line["level"] == "info" and line["at"].endswith("Z")


def failure() -> object:
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        return sys.exc_info()


def test_lines_of_a_traceback_cannot_pass_for_events():
    lines = TextFormatter().format(record("tick_failed", exc_info=failure())).split("\n")
    assert len(lines) > 2 and all(line.startswith("    ") for line in lines[1:])
    assert "\x1b" not in "".join(lines)
    assert json.loads(JsonFormatter().format(record("tick_failed", exc_info=failure())))["traceback"]


def test_a_long_message_is_cut():
    assert len(TextFormatter().format(record("x" * 1_000_000))) < 3_000


def test_the_file_is_its_owners_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import os

    root = logging.getLogger()
    before = root.handlers[:]
    mask = os.umask(0o077)
    try:
        log_to(tmp_path / "daemon.log", as_json=True)
        logging.getLogger("clorefleet.test").info("told x=1")
        assert json.loads((tmp_path / "daemon.log").read_text())["event"] == "told"
        assert stat.S_IMODE((tmp_path / "daemon.log").stat().st_mode) == 0o600
    finally:
        os.umask(mask)
        root.handlers[:] = before

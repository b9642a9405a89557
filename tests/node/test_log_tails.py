"""What a server's work wrote last stays readable here, bounded and harmless."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from clorefleet.domain.identity import LeaseId
from clorefleet.node.log_tails import FILES_MAX, FOLDER, LINES_MAX, LogTails, read_log_tail

ONE = LeaseId("a1b2")


def test_the_last_lines_are_read_as_they_were_noted(tmp_path: Path):
    tails = LogTails(tmp_path)
    tails.note(ONE, ("loading", "ready"))
    assert read_log_tail(tmp_path, ONE) == ("loading", "ready")
    tails.note(ONE, ("ready", "serving"))
    assert read_log_tail(tmp_path, ONE) == ("ready", "serving")


def test_they_stay_when_the_lease_has_ended(tmp_path: Path):
    tails = LogTails(tmp_path)
    tails.note(ONE, ("out of memory",))
    tails.forget(ONE)
    assert read_log_tail(tmp_path, ONE) == ("out of memory",)


def test_what_has_not_changed_is_not_written_again(tmp_path: Path):
    tails = LogTails(tmp_path)
    tails.note(ONE, ("same",))
    (tmp_path / FOLDER / f"{ONE}.log").unlink()
    tails.note(ONE, ("same",))
    tails.note(ONE, ())
    assert read_log_tail(tmp_path, ONE) == ()


def test_only_the_user_can_read_them(tmp_path: Path):
    LogTails(tmp_path).note(ONE, ("line",))
    assert stat.S_IMODE((tmp_path / FOLDER).stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / FOLDER / f"{ONE}.log").stat().st_mode) == 0o600


def test_files_are_bounded_in_lines_and_in_number(tmp_path: Path):
    tails = LogTails(tmp_path)
    for i in range(FILES_MAX + 5):
        tails.note(LeaseId(f"l{i}"), tuple(str(line) for line in range(LINES_MAX + 50)))
        os.utime(tmp_path / FOLDER / f"l{i}.log", (i, i))
    assert len(list((tmp_path / FOLDER).iterdir())) == FILES_MAX
    assert read_log_tail(tmp_path, "l0") == ()
    assert len(read_log_tail(tmp_path, f"l{FILES_MAX + 4}")) == LINES_MAX


def test_a_file_that_was_tampered_with_is_harmless(tmp_path: Path):
    LogTails(tmp_path).note(ONE, ("line",))
    (tmp_path / FOLDER / f"{ONE}.log").write_bytes(b"\x1b[2J\xff" + b"x" * 1_000_000)
    [line] = read_log_tail(tmp_path, ONE)
    assert "\x1b" not in line and len(line) < 1000


@pytest.mark.parametrize("name", ["../gateway", "", "a/b", "a.b", "\0", "é"])
def test_no_id_leads_out_of_the_folder(tmp_path: Path, name: str):
    (tmp_path / "gateway.log").write_text("secret")
    (tmp_path / FOLDER).mkdir()
    assert read_log_tail(tmp_path, name) == ()


def test_a_place_that_cannot_be_written_loses_the_lines_and_nothing_else(tmp_path: Path):
    (tmp_path / FOLDER).write_text("a file where the folder should be")
    LogTails(tmp_path).note(ONE, ("line",))
    assert read_log_tail(tmp_path, ONE) == ()

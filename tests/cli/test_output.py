"""What people see: tables of 80 columns, prose broken at words on a terminal and whole in a pipe, colour by
the rules, and a moving line only where somebody watches."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from clorefleet.cli import output
from clorefleet.cli.nearest import did_you_mean


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


Draw = Callable[..., list[str]]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Draw:
    """A table's lines, as a pipe gets them."""
    monkeypatch.setenv("COLUMNS", "80")

    def draw(*arguments: Any, **options: Any) -> list[str]:
        output.table(*arguments, **options)
        return capsys.readouterr().out.splitlines()

    return draw


def test_a_table_that_fits_is_left_alone(drawn):
    lines = drawn(("SERVER", "GPUS"), [(7, "1x A10"), (12345, "8x H200")], right=(0,))
    assert lines == ["SERVER  GPUS", "     7  1x A10", " 12345  8x H200"]


def test_a_last_column_of_words_goes_on_below_itself(drawn):
    lines = drawn(("NAME", "WHY"), [("a" * 30, "because " * 12)])
    assert len(lines) > 2 and all(len(line) <= 80 for line in lines)
    assert " ".join(" ".join(line[32:] for line in lines[1:]).split()) == "because " * 11 + "because"


def test_numbers_are_never_cut_and_words_only_where_they_must_be(drawn):
    rows = [("x" * 60, "y" * 60, "$1,234,567.89")]
    lines = drawn(("FIRST", "SECOND", "USD"), rows, right=(2,))
    assert len(lines[1]) == 80 and lines[1].endswith("$1,234,567.89") and lines[1].count("…") == 2


def test_a_wide_table_is_as_wide_as_it_is(drawn):
    lines = drawn(("A", "B"), [("x" * 60, "y" * 60)], wide=True)
    assert lines[1] == "x" * 60 + "  " + "y" * 60


STATUS = (
    ("DEPLOYMENT", "STATE", "REPLICA", "SERVER", "TOK/S", "USD/DAY", "SPENT"),
    [
        (
            "smollm2-135m",
            "serving",
            "0 q4_1/llama.cpp, 1x A10",
            25488,
            109.9,
            "$0.38 spot",
            "$0.0012",
        ),
        ("glm-5.1", "renting", "-", "-", "-", "-", "$0.0000"),
    ],
)


@pytest.mark.parametrize("columns", [60, 40])
def test_on_a_terminal_too_narrow_for_its_rows_a_table_is_told_field_by_field(drawn, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = drawn(*STATUS, right=(3, 4, 5, 6))
    assert max(map(len, lines)) <= columns
    assert lines[:2] == ["DEPLOYMENT  smollm2-135m", "STATE       serving"]
    assert lines[lines.index("") + 1 :] == [
        "DEPLOYMENT  glm-5.1", "STATE       renting", "SPENT       $0.0000"
    ]  # fmt: skip
    assert "REPLICA     0 q4_1/llama.cpp, 1x A10" in lines


def test_no_terminal_is_too_narrow_for_a_table(drawn, monkeypatch):
    monkeypatch.setenv("COLUMNS", "5")
    told = "".join(line.strip() for line in drawn(*STATUS, right=(3, 4, 5, 6)))
    assert "$0.0012" in told.replace("SPENT", "")


def test_a_narrow_terminal_keeps_a_table_that_fits_it(drawn, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    lines = drawn(("NAME", "WHY"), [("tiny", "because " * 12)])
    assert lines[0] == "NAME  WHY" and max(map(len, lines)) <= 40


def test_wide_characters_take_two_columns(drawn):
    lines = drawn(("HOST", "N"), [("東京", 1), ("ab", 2)], right=(1,))
    assert lines[1:] == ["東京  1", "ab    2"]


def test_a_terminal_gets_lines_broken_at_words_and_a_pipe_gets_them_whole(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    text = "  the first words, then `clorefleet deploy smollm2-135m --sandbox` and more words after it"
    terminal, pipe = Terminal(), io.StringIO()
    for stream in (terminal, pipe):
        monkeypatch.setattr(sys, "stdout", stream)
        output.say(text)
    assert pipe.getvalue() == text + "\n"
    lines = terminal.getvalue().splitlines()
    assert len(lines) > 2 and all(line.startswith("  ") for line in lines)
    assert any("`clorefleet deploy smollm2-135m --sandbox`" in line for line in lines), lines


@pytest.mark.parametrize(
    ("env", "is_colored"),
    [
        ({}, True),
        ({"NO_COLOR": "1"}, False),
        ({"NO_COLOR": ""}, True),  # no-color.org: "when present and not an empty string"
        ({"TERM": "dumb"}, False),
    ],
)
def test_colour_follows_the_rules_of_the_field(monkeypatch, env, is_colored):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert output.has_color(Terminal()) is is_colored
    assert not output.has_color(io.StringIO())


def test_the_option_takes_colour_away(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(output.options, "no_color", True)
    assert not output.has_color(Terminal())


@pytest.mark.parametrize(("amount", "text"), [("-0.04", "-$0.04"), ("1234.5", "$1,234.50")])
def test_money_has_its_sign_before_the_dollar(amount, text):
    assert output.usd(Decimal(amount)) == text


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("glm51", "Did you mean glm-5.1 or glm-5? "),
        ("GLM-5.1", "Did you mean glm-5.1 or glm-5? "),
        ("smo", "Did you mean smollm2-135m? "),
        ("nothing-like-it", ""),
        ("", ""),
    ],
)
def test_a_slip_is_told_what_it_may_have_meant(word, hint):
    assert did_you_mean(word, ("glm-5.1", "glm-5", "smollm2-135m")) == hint


WAITS = """
import time
from clorefleet.cli import progress
from clorefleet.cli.output import note
progress.AFTER_S = 0
with progress.working("Reading the market") as shown:
    deadline = time.monotonic() + 30
    while not progress._is_shown and {is_watched} and time.monotonic() < deadline:
        time.sleep(0.01)
    note("a line")
"""


def on_a_terminal(code: str) -> str:
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "wb") as end:
        child = subprocess.Popen([sys.executable, "-c", code], stderr=end, stdin=subprocess.DEVNULL)
    found = b""
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # Linux says so when the other end is closed
            break
        if not piece:
            break
        found += piece
    os.close(ours)
    assert child.wait() == 0
    return found.decode()


def test_a_terminal_sees_that_something_goes_on_and_the_line_is_gone_afterwards():
    seen = on_a_terminal(WAITS.format(is_watched=True))
    assert "Reading the market" in seen
    last_wipe, line = seen.rindex("\r\x1b[K"), seen.index("a line")
    assert "Reading" not in seen[last_wipe:] and seen[:line].endswith("\r\x1b[K")


def test_a_pipe_sees_no_moving_line():
    done = subprocess.run(
        [sys.executable, "-c", WAITS.format(is_watched=False)], capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("", "a line\n")


READER_LEFT = """
import os, sys
from clorefleet.cli.main import main
ours, theirs = os.pipe()
os.close(ours)
os.dup2(theirs, 1)
sys.argv = ["clorefleet", *{words!r}]
if {is_socket!r}:
    def fails():
        raise BrokenPipeError(32, "of a socket")
    import clorefleet.config.recipes
    clorefleet.config.recipes.load_recipes = fails
    os.dup2(2, 1)
raise SystemExit(main())
"""


@pytest.mark.parametrize(
    "words", [("models",), ("models", "--json"), ("--help",), ("cost", "--help"), ("prices", "-h")], ids=str
)
def test_a_reader_that_leaves_ends_a_command_quietly_and_well(words, tmp_path):
    done = reader_left(tmp_path, *words)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_reader_that_leaves_a_command_that_rents_or_ends_has_interrupted_it(tmp_path):
    done = reader_left(tmp_path, "sweep", "--help")
    assert (done.returncode, done.stderr) == (130, "")


def test_a_pipe_that_breaks_elsewhere_is_a_fault_that_is_told(tmp_path):
    done = reader_left(tmp_path, "models", is_socket=True)
    assert done.returncode == 1 and "A fault in clorefleet" in done.stderr


def reader_left(home: Path, *words: str, is_socket: bool = False) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", READER_LEFT.format(words=words, is_socket=is_socket)],
        capture_output=True, text=True, env=os.environ | {"CLOREFLEET_HOME": str(home)},
    )  # fmt: skip


def asked(answer: str) -> tuple[int, str]:
    """Exit code and screen of a real terminal whose user answers a question."""
    code = (
        "import typer\n"
        "from clorefleet.cli import output\n"
        "app = typer.Typer()\n"
        "@app.command()\n"
        "def ask():\n"
        "    output.confirm('Rent it?', yes=False, what='Renting', otherwise='Nothing was rented.')\n"
        "    print('It was rented.')\n"
        "raise SystemExit(app(standalone_mode=False))\n"
    )
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "r+b", buffering=0) as end:
        child = subprocess.Popen([sys.executable, "-c", code], stdin=end, stdout=end, stderr=end)
    os.write(ours, f"{answer}\n".encode())
    child.wait()
    screen = os.read(ours, 65536).decode()
    os.close(ours)
    return child.returncode, screen


@pytest.mark.parametrize("answer", ["y", "YES"])
def test_a_question_goes_on_with_a_yes(answer):
    code, screen = asked(answer)
    assert code == 0 and "It was rented." in screen and "[y/N]" in screen


@pytest.mark.parametrize("answer", ["n", "", "perhaps"])
def test_anything_else_is_a_no_which_says_what_stays_and_has_its_exit_code(answer):
    code, screen = asked(answer)
    assert code == 130 and "Nothing was rented." in screen and "It was rented." not in screen


def test_what_has_a_stamp_goes_on_beside_it(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    output.say("12:30  " + "word " * 12, hanging=7)
    first, *rest = terminal.getvalue().rstrip().splitlines()
    assert (
        first.startswith("12:30  word") and rest and all(line.startswith(" " * 7 + "word") for line in rest)
    )

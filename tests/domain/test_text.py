"""Text from strangers is inert: G1, G4, S14."""

from __future__ import annotations

import pickle
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clorefleet.domain.secret import Secret
from clorefleet.domain.text import clean_line, clean_lines


@pytest.mark.parametrize(
    "hostile",
    ["\x1b]52;c;AAAA\x07", "\x1b[2J", "a\rb", "‮evil", "\x9b31m", "zero​width", "nul\x00", "\x7f", "\u2028"],
)
def test_nothing_that_a_terminal_would_obey_is_left(hostile: str):
    for char in clean_line(f"GPU {hostile} 4090"):
        assert unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Zl", "Zp")


@given(st.text(max_size=2000))
def test_any_text_becomes_one_bounded_line(text: str):
    line = clean_line(text, max_chars=50)
    assert len(line) <= 51 and "\n" not in line and "\x1b" not in line


def test_long_logs_are_cut_from_the_front():
    assert clean_lines("\n".join(map(str, range(1000))), max_lines=2) == ["998", "999"]


def test_a_secret_never_shows_itself():
    secret = Secret("hunter2-canary")
    shown = f"{secret} {secret!r} {secret!s} {[secret]} { ({'key': secret}) }"
    assert "hunter2" not in shown
    assert secret.reveal() == "hunter2-canary"
    with pytest.raises(TypeError):
        pickle.dumps(secret)

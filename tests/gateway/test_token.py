"""The gateway's token: private, strong, and never shown."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from clorefleet.domain.secret import Secret
from clorefleet.gateway.token import FILE_NAME, TOKEN_MIN_CHARS, TokenCheck, load_or_create_token


def test_the_token_is_made_once_strong_and_private(tmp_path: Path):
    token = load_or_create_token(tmp_path)
    assert load_or_create_token(tmp_path).reveal() == token.reveal()
    assert (tmp_path / FILE_NAME).stat().st_mode & 0o777 == 0o600
    assert len(token.reveal()) > TOKEN_MIN_CHARS
    assert token.reveal() not in f"{token!r} {token}"


def _elsewhere(file: Path) -> None:
    target = file.with_name("target")
    target.write_text("x" * 40)
    target.chmod(0o600)
    file.symlink_to(target)


def _written(text: str, mode: int = 0o600) -> Callable[[Path], None]:
    def write(file: Path) -> None:
        file.write_text(text)
        file.chmod(mode)

    return write


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(_written("y" * 40, 0o640), id="readable by the group"),
        pytest.param(_written("y" * 40, 0o604), id="readable by all"),
        pytest.param(_written(""), id="empty"),
        pytest.param(_written("abc"), id="too short"),
        pytest.param(_written("y" * 20_000), id="huge"),
        pytest.param(_written("y" * 30 + "\x1b]52;" + "y" * 30), id="control characters"),
        pytest.param(_elsewhere, id="symbolic link"),
        pytest.param(lambda file: os.mkfifo(file, 0o600), id="pipe"),
    ],
)
def test_a_token_that_cannot_be_trusted_is_replaced(tmp_path: Path, spoil: Callable[[Path], None]):
    file = tmp_path / FILE_NAME
    spoil(file)
    token = load_or_create_token(tmp_path).reveal()
    assert token.startswith("cf-")
    assert not file.is_symlink() and file.stat().st_mode & 0o777 == 0o600 and file.read_text() == token


@pytest.mark.parametrize(
    "authorization, is_accepted",
    [
        ("Bearer right", True),
        ("bearer right", True),
        ("Bearer  right ", True),
        ("Bearer wrong", False),
        ("Bearer righ", False),
        ("Bearer rightt", False),
        ("Bearer ", False),
        ("Bearer", False),
        ("right", False),
        ("Basic right", False),
        ("Bearer r\xefght", False),
        ("", False),
        (None, False),
    ],
)
def test_only_the_exact_token_is_accepted(authorization: str | None, is_accepted: bool):
    assert TokenCheck.of(Secret("right")).accepts(authorization) is is_accepted


def test_the_check_does_not_hold_the_token():
    assert "right" not in repr(TokenCheck.of(Secret("right")))

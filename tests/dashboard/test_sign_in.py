"""Links work once and not for long; sessions end."""

from __future__ import annotations

import stat
import threading
from datetime import timedelta
from pathlib import Path

import pytest

from clorefleet.dashboard.sign_in import FOLDER, LINK_LIFE, SESSION_LIFE, SESSIONS_MAX, Links, Sessions
from tests.dashboard.conftest import Hand


@pytest.fixture
def clock() -> Hand:
    return Hand()


def test_a_link_works_once(tmp_path: Path, clock: Hand):
    links = Links(tmp_path, clock.now)
    code = links.issue()
    assert links.redeem(code)
    assert not links.redeem(code)


def test_a_link_that_another_process_made_works_here(tmp_path: Path, clock: Hand):
    code = Links(tmp_path, clock.now).issue()
    assert Links(tmp_path, clock.now).redeem(code)


def test_an_old_link_is_refused_and_used_up(tmp_path: Path, clock: Hand):
    links = Links(tmp_path, clock.now)
    code = links.issue()
    clock.move(LINK_LIFE)
    assert not links.redeem(code)
    clock.move(-LINK_LIFE)
    assert not links.redeem(code)


@pytest.mark.parametrize("code", ["", "x", "../dashboard.json", "a" * 10_000, "\x00", "é"])
def test_what_is_no_code_is_refused(tmp_path: Path, clock: Hand, code: str):
    links = Links(tmp_path, clock.now)
    links.issue()
    assert not links.redeem(code)


def test_of_many_who_show_the_same_code_at_once_one_gets_in(tmp_path: Path, clock: Hand):
    links = Links(tmp_path, clock.now)
    code, barrier, got = links.issue(), threading.Barrier(8), []

    def show() -> None:
        barrier.wait()
        got.append(links.redeem(code))

    threads = [threading.Thread(target=show) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == [False] * 7 + [True]


def test_the_folder_holds_digests_that_only_the_user_can_read(tmp_path: Path, clock: Hand):
    code = Links(tmp_path, clock.now).issue()
    folder = tmp_path / FOLDER
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for file in folder.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert code not in file.name and code not in file.read_text()


def test_a_new_link_clears_away_the_old_ones(tmp_path: Path, clock: Hand):
    links = Links(tmp_path, clock.now)
    for _ in range(5):
        links.issue()
    clock.move(LINK_LIFE + timedelta(seconds=1))
    links.issue()
    assert len(list((tmp_path / FOLDER).iterdir())) == 1


def test_a_session_is_known_by_its_cookie_until_it_ends(clock: Hand):
    sessions = Sessions(clock.now)
    cookie = sessions.open()
    assert sessions.find(cookie) is not None
    assert sessions.find(cookie[:-1]) is None and sessions.find("") is None
    clock.move(SESSION_LIFE)
    assert sessions.find(cookie) is None


def test_a_closed_session_is_gone(clock: Hand):
    sessions = Sessions(clock.now)
    cookie = sessions.open()
    sessions.close(cookie)
    assert sessions.find(cookie) is None


def test_the_oldest_session_gives_way_to_a_new_one(clock: Hand):
    sessions = Sessions(clock.now)
    cookies = [sessions.open() for _ in range(SESSIONS_MAX + 1)]
    assert sessions.find(cookies[0]) is None
    assert all(sessions.find(each) is not None for each in cookies[1:])


def test_each_session_has_a_form_token_of_its_own(clock: Hand):
    sessions = Sessions(clock.now)
    one, other = (sessions.find(sessions.open()) for _ in range(2))
    assert one.accepts(one.csrf_token) and not one.accepts(other.csrf_token) and not one.accepts("")

"""How soon the next request may go, and who goes first."""

from __future__ import annotations

import fcntl
import os
import stat
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clorefleet.clock import SystemClock
from clorefleet.domain.errors import RateLimited, Refused
from clorefleet.domain.identity import OrderId
from clorefleet.market.limiter import (
    CREATE_INTERVAL_S,
    GENERAL_INTERVAL_S,
    PAUSE_FIRST_S,
    PAUSE_MAX_S,
    SLOT_PATIENCE_S,
    FileSlot,
    Priority,
    RequestLimiter,
    Stamps,
    Ticket,
    first_in_line,
)
from tests.market.scripted import FakeClock


def _go(limiter: RequestLimiter, clock: FakeClock, *priorities: Priority) -> list[float]:
    start_s, times = clock.elapsed_s, []
    for priority in priorities:
        limiter.wait_turn(priority)
        times.append(round(clock.elapsed_s - start_s, 3))
    return times


def test_requests_keep_their_distance() -> None:
    clock = FakeClock()
    times = _go(RequestLimiter(clock), clock, Priority.READ, Priority.CANCEL, Priority.ORDERS)
    assert times == [0, GENERAL_INTERVAL_S, 2 * GENERAL_INTERVAL_S]


def test_rents_keep_a_longer_distance_on_top_and_hold_nobody_else_up() -> None:
    clock = FakeClock()
    times = _go(RequestLimiter(clock), clock, Priority.RENT, Priority.READ, Priority.RENT, Priority.READ)
    assert times == [0, 1.1, CREATE_INTERVAL_S, pytest.approx(CREATE_INTERVAL_S + 1.1)]


@pytest.mark.parametrize(
    ("waiting", "stamps", "chosen"),
    [
        ([(0, Priority.READ), (1, Priority.CANCEL)], Stamps(), 1),
        ([(0, Priority.READ), (1, Priority.RENT), (2, Priority.ORDERS)], Stamps(), 2),
        ([(4, Priority.CANCEL), (3, Priority.CANCEL)], Stamps(), 3),
        ([(0, Priority.RENT), (1, Priority.READ)], Stamps(next_create_s=11), 1),
        ([(0, Priority.RENT)], Stamps(next_create_s=11), None),
        ([(0, Priority.CANCEL)], Stamps(next_any_s=11), None),
        ([], Stamps(), None),
    ],
)
def test_the_first_in_line(waiting: list[tuple[int, Priority]], stamps: Stamps, chosen: int | None) -> None:
    found = first_in_line([Ticket(*each) for each in waiting], stamps, now_s=10)
    assert (None if found is None else found.number) == chosen


@given(
    st.lists(st.sampled_from(Priority), max_size=8),
    st.floats(0, 20),
    st.floats(0, 20),
    st.floats(0, 20),
)
def test_nobody_goes_early_and_nobody_ready_is_passed_over_by_a_lower_priority(
    priorities: list[Priority], next_any_s: float, next_create_s: float, now_s: float
) -> None:
    waiting = [Ticket(number, priority) for number, priority in enumerate(priorities)]
    stamps = Stamps(next_any_s, next_create_s)
    chosen = first_in_line(waiting, stamps, now_s)
    ready = [ticket for ticket in waiting if stamps.opens_at(ticket) <= now_s]
    assert (chosen is None) == (not ready)
    if chosen is not None:
        assert all((chosen.priority, chosen.number) <= (each.priority, each.number) for each in ready)


def test_a_waiting_cancel_overtakes_those_who_came_before_it() -> None:
    limiter = RequestLimiter(SystemClock(), general_s=0.15)
    limiter.wait_turn(Priority.READ)
    order: list[str] = []
    lock = threading.Lock()

    def wait(name: str, priority: Priority) -> None:
        limiter.wait_turn(priority)
        with lock:
            order.append(name)

    threads = []
    for number, (name, priority) in enumerate(
        [("read", Priority.READ), ("orders", Priority.ORDERS), ("cancel", Priority.CANCEL)], start=1
    ):
        threads.append(threading.Thread(target=wait, args=(name, priority)))
        threads[-1].start()
        while len(limiter._waiting) < number:
            pass
    for thread in threads:
        thread.join(timeout=5)
    assert order == ["cancel", "orders", "read"]


def test_a_refusal_pauses_everybody_and_longer_each_time_in_a_row() -> None:
    clock = FakeClock()
    limiter = RequestLimiter(clock)
    pauses = []
    for _ in range(8):
        limiter.note_refused(None)
        pauses += _go(limiter, clock, Priority.CANCEL)
    assert pauses[:3] == [PAUSE_FIRST_S, 2 * PAUSE_FIRST_S, 4 * PAUSE_FIRST_S]
    assert pauses[-1] == PAUSE_MAX_S
    limiter.note_served()
    limiter.note_refused(None)
    assert _go(limiter, clock, Priority.CANCEL) == [PAUSE_FIRST_S]


def test_the_markets_wish_is_honoured_within_reason() -> None:
    clock = FakeClock()
    limiter = RequestLimiter(clock)
    limiter.note_refused(9.0)
    assert _go(limiter, clock, Priority.READ) == [9.0]
    limiter.note_refused(100_000.0)
    assert _go(limiter, clock, Priority.READ) == [PAUSE_MAX_S]


def test_a_market_whose_clock_runs_faster_lets_a_bid_fall_again_sooner() -> None:
    clock = FakeClock()
    limiter, order = RequestLimiter(clock, lowering_s=10), OrderId(7)
    limiter.note_lowered(order)
    clock.sleep(9)
    with pytest.raises(Refused):
        limiter.check_lowering(order)
    clock.sleep(1)
    limiter.check_lowering(order)


def test_a_request_without_a_turn_is_given_up_and_leaves_the_line() -> None:
    clock = FakeClock()
    limiter = RequestLimiter(clock, wait_max_s=5)
    limiter.note_refused(30)
    with pytest.raises(RateLimited) as caught:
        limiter.wait_turn(Priority.READ)
    assert caught.value.money == "Nothing was sent."
    assert limiter._waiting == {}


def test_lowering_one_spot_price_again_within_600_s_is_refused_before_it_is_sent() -> None:
    clock = FakeClock()
    limiter = RequestLimiter(clock)
    limiter.note_lowered(OrderId(1))
    limiter.check_lowering(OrderId(2))
    with pytest.raises(Refused, match="600 s"):
        limiter.check_lowering(OrderId(1))
    clock.elapsed_s += 600
    limiter.check_lowering(OrderId(1))


# -- two processes: two limiters, one file


def test_two_processes_of_a_profile_share_one_limit(tmp_path: Path) -> None:
    clock, path = FakeClock(), tmp_path / "market.slot"
    ours, theirs = (RequestLimiter(clock, slot=FileSlot(path)) for _ in range(2))
    assert _go(ours, clock, Priority.RENT) == [0]
    assert _go(theirs, clock, Priority.READ) == [GENERAL_INTERVAL_S]
    assert _go(theirs, clock, Priority.RENT) == [pytest.approx(CREATE_INTERVAL_S - GENERAL_INTERVAL_S)]
    theirs.note_refused(20)
    assert _go(ours, clock, Priority.CANCEL) == [pytest.approx(20)]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "content", ["", "garbage", "[]", '{"next_any_s": "x"}', '{"next_any_s": 1e300, "next_create_s": 0}', "{}"]
)
def test_a_broken_or_outdated_file_counts_as_empty(tmp_path: Path, content: str) -> None:
    clock, path = FakeClock(), tmp_path / "market.slot"
    path.write_text(content)
    limiter = RequestLimiter(clock, slot=FileSlot(path))
    assert _go(limiter, clock, Priority.READ, Priority.READ) == [0, GENERAL_INTERVAL_S]


def test_without_a_usable_file_the_limit_still_holds_in_this_process(tmp_path: Path) -> None:
    clock = FakeClock()
    limiter = RequestLimiter(clock, slot=FileSlot(tmp_path / "missing" / "market.slot"))
    assert _go(limiter, clock, Priority.READ, Priority.READ) == [0, GENERAL_INTERVAL_S]


def test_a_suspended_process_that_holds_the_file_does_not_hold_a_cancel_up(tmp_path: Path) -> None:
    clock, path = FakeClock(), tmp_path / "market.slot"
    holder = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(holder, fcntl.LOCK_EX)
        limiter = RequestLimiter(clock, slot=FileSlot(path))
        assert _go(limiter, clock, Priority.CANCEL) == [pytest.approx(SLOT_PATIENCE_S, abs=0.05)]
        assert _go(limiter, clock, Priority.CANCEL) == [GENERAL_INTERVAL_S]
        limiter.note_refused(20)
    finally:
        os.close(holder)
    assert _go(limiter, clock, Priority.CANCEL) == [pytest.approx(20)]


def test_a_process_that_holds_the_file_for_a_moment_is_not_raced(tmp_path: Path) -> None:
    """Whoever went on without the file would send in the other's turn, and be refused by the market."""
    path = tmp_path / "market.slot"
    theirs = RequestLimiter(clock := FakeClock(), slot=FileSlot(path))
    theirs.wait_turn(Priority.READ)
    holder = os.open(path, os.O_RDWR)

    class Until(FakeClock):
        def sleep(self, seconds: float) -> None:
            super().sleep(seconds)
            if self.monotonic_s() - clock.monotonic_s() > SLOT_PATIENCE_S / 2:
                fcntl.flock(holder, fcntl.LOCK_UN)

    try:
        fcntl.flock(holder, fcntl.LOCK_EX)
        assert _go(RequestLimiter(until := Until(), slot=FileSlot(path)), until, Priority.READ) == [
            GENERAL_INTERVAL_S
        ]
    finally:
        os.close(holder)


def test_a_planted_link_is_not_followed(tmp_path: Path) -> None:
    target, path = tmp_path / "precious", tmp_path / "market.slot"
    target.write_text("precious")
    path.symlink_to(target)
    clock = FakeClock()
    _go(RequestLimiter(clock, slot=FileSlot(path)), clock, Priority.READ)
    assert target.read_text() == "precious"

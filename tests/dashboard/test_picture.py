"""Where bars and points stand."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal

import pytest

from clorefleet.dashboard.picture import BAR_LEAST, FULL, bar, columns, front
from clorefleet.domain.planning import PlanOption
from tests.fleet.builders import NOW

HOUR = timedelta(hours=1)
SINCE, UNTIL = NOW - 10 * HOUR, NOW


@pytest.mark.parametrize(
    ("begin", "end", "place"),
    [
        (-10, 0, (0, FULL)),
        (-5, 0, (500, 500)),
        (-20, -5, (0, 500)),
        (-1, 3, (900, 100)),
        (-30, -20, None),
        (1, 2, None),
    ],
)
def test_a_bar_stands_where_its_time_is_within_the_window(begin: int, end: int, place):
    found = bar(NOW + begin * HOUR, NOW + end * HOUR, since=SINCE, until=UNTIL, kind="k", label="l")
    assert (None if found is None else (found.x, found.width)) == place


def test_a_moment_is_still_seen_and_inside_the_picture():
    found = bar(NOW, NOW, since=SINCE, until=UNTIL, kind="k", label="l")
    assert found is not None and found.width == BAR_LEAST and found.x + found.width == FULL


def test_columns_stand_on_the_ground_and_the_highest_is_below_the_top():
    found, top = columns([(0, "a"), (5, "b"), (10, "c")])
    assert top > 10
    assert all(each.y + each.height == pytest.approx(FULL) for each in found)
    assert found[0].height == 0 and found[1].height == pytest.approx(found[2].height / 2, rel=1e-3)


@pytest.mark.parametrize("amounts", [[], [(0, "a"), (0, "b")]])
def test_nothing_is_no_picture(amounts):
    assert columns(amounts) == ((), 0.0)


def option(usd: str, speed: float, *, is_on_front: bool) -> PlanOption:
    return PlanOption(f"{usd}", 1, "g", "s", False, Decimal(usd), speed, False, is_on_front, 1)


def test_the_front_is_a_line_of_steps_from_the_cheapest():
    found = front(
        [
            option("4", 20, is_on_front=True),
            option("2", 10, is_on_front=True),
            option("3", 5, is_on_front=False),
        ]
    )
    assert [float(each.option.all_in_usd_per_day) for each in found.points] == [3, 2, 4]
    assert found.line.startswith("M") and found.line.count("H") == found.line.count("V") == 1
    assert all(0 <= each.x <= FULL and 0 <= each.y <= FULL for each in found.points)


def test_a_front_of_one_or_none_has_no_line():
    assert front([]).line == "" and front([option("2", 1, is_on_front=True)]).line == ""
    assert front([option("0", 0, is_on_front=True)]).points

"""Which replica takes a request, and what is said when none does."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from clorefleet.gateway.routing import (
    AFFINITY_SLACK,
    REST_S,
    Backend,
    NoSuchModel,
    RoutingTable,
    Starting,
    choose,
)


@dataclass
class ManualClock:
    at_s: float = 0.0

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.at_s, UTC)

    def monotonic_s(self) -> float:
        return self.at_s

    def sleep(self, seconds: float) -> None:
        self.at_s += seconds


def backend(lease_id: str, model: str = "m", **fields: object) -> Backend:
    return Backend(lease_id, model, uds_path=Path(f"/{lease_id}"), **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "backends, resting, expected",
    [
        pytest.param([], (), None, id="none"),
        pytest.param([backend("a", "other")], (), None, id="only another model"),
        pytest.param([backend("a", in_flight=2), backend("b", in_flight=1)], (), "b", id="least loaded"),
        pytest.param([backend("b"), backend("a")], (), "a", id="ties go to the first id"),
        pytest.param([backend("a", is_draining=True), backend("b", in_flight=9)], (), "b", id="draining"),
        pytest.param([backend("a", healthy=False), backend("b", in_flight=9)], (), "b", id="unhealthy"),
        pytest.param([backend("a", healthy=False)], (), None, id="only unhealthy"),
        pytest.param([backend("a"), backend("b", in_flight=9)], ("a",), "b", id="resting is passed over"),
        pytest.param([backend("a"), backend("b", in_flight=1)], ("a", "b"), "a", id="all rest"),
    ],
)
def test_the_least_loaded_ready_replica_is_taken(
    backends: list[Backend], resting: tuple[str, ...], expected: str | None
):
    chosen = choose(backends, "m", resting=frozenset(resting))
    assert (chosen.lease_id if chosen else None) == expected


def chosen_for(beginning: str, *backends: Backend) -> str:
    chosen = choose(backends, "m", resting=frozenset(), beginning=beginning)
    assert chosen is not None
    return chosen.lease_id


def test_prompts_that_begin_alike_go_to_one_replica_and_different_ones_spread():
    fleet = [backend(name) for name in "abcd"]
    homes = {text: chosen_for(text, *fleet) for text in map(str, range(400))}
    assert homes == {text: chosen_for(text, *reversed(fleet)) for text in homes}
    shares = [list(homes.values()).count(name) for name in "abcd"]
    assert min(shares) > 60, shares


def test_a_replica_that_leaves_moves_only_its_own_share():
    fleet = [backend(name) for name in "abcd"]
    before = {text: chosen_for(text, *fleet) for text in map(str, range(200))}
    after = {text: chosen_for(text, *fleet[:-1]) for text in before}
    assert all(after[text] == home for text, home in before.items() if home != "d")


def test_a_warm_cache_is_not_worth_a_long_queue():
    home = chosen_for("hello", backend("a"), backend("b"))
    other = "b" if home == "a" else "a"
    short, long = (backend(home, in_flight=count) for count in (AFFINITY_SLACK - 1, AFFINITY_SLACK))
    assert chosen_for("hello", short, backend(other)) == home
    assert chosen_for("hello", long, backend(other)) == other
    resting = choose([backend("a"), backend("b")], "m", resting=frozenset({home}), beginning="hello")
    assert resting is not None and resting.lease_id == other


def test_what_was_taken_counts_until_it_is_given_back():
    table = RoutingTable()
    table.set_backends((backend("a"), backend("b")))
    taken = [table.take("m") for _ in range(4)]
    assert [each.lease_id for each in taken if each] == ["a", "b", "a", "b"]
    table.give_back("b")
    assert [each.in_flight for each in table.backends()] == [2, 1]
    again = table.take("m", excluding=frozenset({"b"}))
    assert again and again.lease_id == "a"
    assert table.take("m", excluding=frozenset({"a", "b"})) is None


def test_a_removed_replica_keeps_its_count_until_its_requests_end():
    """Draining asks for it."""
    table = RoutingTable()
    table.set_backends((backend("a"),))
    table.take("m")
    table.set_backends(())
    assert table.in_flight("a") == 1 and table.take("m") is None
    table.give_back("a")
    assert table.in_flight("a") == 0


def test_giving_back_twice_is_a_mistake_that_shows():
    table = RoutingTable()
    table.set_backends((backend("a"),))
    table.take("m")
    table.give_back("a")
    with pytest.raises(KeyError):
        table.give_back("a")


def test_an_unreachable_replica_rests_for_a_while_and_is_then_tried_again():
    clock = ManualClock()
    table = RoutingTable(clock)
    table.set_backends((backend("a"), backend("b")))

    def taken() -> str:
        chosen = table.take("m")
        assert chosen is not None
        table.give_back(chosen.lease_id)
        return chosen.lease_id

    table.rest("a")
    assert taken() == "b"
    clock.sleep(REST_S)
    assert taken() == "a"


@pytest.mark.parametrize(
    "backends, wanted, expected",
    [
        pytest.param((), {}, Starting("no replica serves yet"), id="nothing is known"),
        pytest.param((), {"m": Starting("it wakes up", 90)}, Starting("it wakes up", 90), id="wanted"),
        pytest.param(
            (backend("a", "x"),), {"y": Starting("")}, NoSuchModel(("x", "y")), id="others are known"
        ),
        pytest.param((backend("a", healthy=False),), {}, Starting("its replica is starting"), id="starting"),
        pytest.param(
            (backend("a", is_draining=True),), {}, Starting("its replica is being given back"), id="draining"
        ),
    ],
)
def test_not_yet_and_never_are_different_answers(
    backends: tuple[Backend, ...], wanted: dict[str, Starting], expected: Starting | NoSuchModel
):
    table = RoutingTable()
    table.set_backends(backends)
    table.set_wanted(wanted)
    assert table.why_not_ready("m") == expected


@pytest.mark.parametrize("place", [{}, {"uds_path": Path("/a"), "base_url": "http://127.0.0.1:1"}])
def test_a_backend_has_exactly_one_address(place: dict[str, object]):
    with pytest.raises(ValueError, match="socket or a URL"):
        Backend("a", "m", **place)  # type: ignore[arg-type]


def test_replacing_from_another_thread_loses_no_count():
    table = RoutingTable()
    table.set_backends((backend("a"),))
    is_over = threading.Event()

    def replace() -> None:
        while not is_over.is_set():
            table.set_backends((backend("a"), backend("b")))

    replacing = threading.Thread(target=replace)
    replacing.start()

    def use() -> None:
        for _ in range(300):
            chosen = table.take("m")
            assert chosen is not None
            table.give_back(chosen.lease_id)

    users = [threading.Thread(target=use) for _ in range(4)]
    for user in users:
        user.start()
    for user in users:
        user.join()
    is_over.set()
    replacing.join()
    assert table.in_flight("a") == 0 and table.in_flight("b") == 0

"""One session per lease: shared while it lives, made again with growing pauses when it does not."""

from __future__ import annotations

import threading

import pytest

from clorefleet.domain.errors import NodeUnreachable
from clorefleet.domain.identity import LeaseId
from clorefleet.node.pool import PAUSE_MAX_S, SessionPool

LEASE = LeaseId("l1")


class Session:
    """As much of a `NodeSession` as a pool looks at."""

    def __init__(self) -> None:
        self.is_alive = True

    def close(self) -> None:
        self.is_alive = False


class World:
    def __init__(self) -> None:
        self.now_s = 100.0
        self.opened = 0
        self.is_reachable = True
        self.pool = SessionPool(lambda: self.now_s)

    def open(self) -> Session:
        self.opened += 1
        if not self.is_reachable:
            raise NodeUnreachable(f"trouble {self.opened}")
        return Session()

    def session(self) -> Session:
        return self.pool.session(LEASE, self.open)  # type: ignore[arg-type, return-value]


def test_a_living_session_is_shared_and_a_dead_one_made_again():
    world = World()
    first = world.session()
    assert world.session() is first
    first.is_alive = False
    assert world.session() is not first and world.opened == 2


def test_failures_are_followed_by_pauses_that_grow_to_a_bound():
    world = World()
    world.is_reachable = False
    pauses = []
    for _ in range(8):
        with pytest.raises(NodeUnreachable):
            world.session()
        began_s, count = world.now_s, world.opened
        while world.opened == count:
            world.now_s += 0.5
            with pytest.raises(NodeUnreachable, match="trouble"):
                world.session()
        pauses.append(world.now_s - began_s)
        world.now_s += PAUSE_MAX_S
    assert pauses == sorted(pauses) and pauses[0] <= 2 and pauses[-1] == PAUSE_MAX_S


def test_inside_a_pause_nothing_is_dialled_and_the_last_trouble_is_told():
    world = World()
    world.is_reachable = False
    for _ in range(3):
        with pytest.raises(NodeUnreachable, match="trouble 1"):
            world.session()
    assert world.opened == 1
    world.is_reachable = True
    world.now_s += 5
    assert world.session().is_alive


def test_many_threads_open_one_session():
    world = World()
    found: list[Session] = []
    threads = [threading.Thread(target=lambda: found.append(world.session())) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert world.opened == 1 and len(set(map(id, found))) == 1


def test_what_is_dropped_or_forgotten_is_closed():
    world = World()
    first = world.session()
    world.pool.drop(LEASE)
    assert not first.is_alive
    second = world.session()
    world.pool.forget(LEASE)
    world.pool.forget(LEASE)
    assert not second.is_alive
    third = world.session()
    world.pool.close()
    assert not third.is_alive

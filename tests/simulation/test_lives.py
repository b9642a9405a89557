"""Whole lives of a fleet: the same seed is the same life, everything holds, and no invariant sleeps."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import pytest

from clorefleet.domain.money import Rate
from clorefleet.fleet.audit import Violation
from clorefleet.fleet.edges import Market
from clorefleet.simulation.__main__ import catch
from clorefleet.simulation.by_hand import stop_all
from clorefleet.simulation.faults import ELSEWHERE, KINDS, Incident
from clorefleet.simulation.life import World, live
from clorefleet.simulation.planted import BUGS
from clorefleet.simulation.scenario import draw
from clorefleet.simulation.shrink import as_regression, shrink
from tests.simulation.regressions import CASES, ONCE_BROKEN, Case

FAMILIES = {"A": 22, "B": 9, "C": 8, "D": 5, "E": 7, "F": 17, "G": 8}
"""Faults of the failure model, by family."""


@pytest.mark.parametrize("seed", range(1, 5))
def test_everything_holds_in_a_life(seed: int):
    assert live(draw(seed, is_on_sqlite=False)).violation is None


@pytest.mark.parametrize("seed", ONCE_BROKEN)
def test_a_seed_that_once_broke_holds(seed: int):
    assert live(draw(seed, is_on_sqlite=False)).violation is None


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"seed-{case.seed}")
def test_a_life_that_once_broke_an_invariant_holds(case: Case):
    assert live(case.scenario()).violation is None


def test_the_real_store_and_its_twin_live_the_same_life():
    lives = [live(draw(3, is_on_sqlite=is_on_sqlite)) for is_on_sqlite in (False, True)]
    assert lives[0].violation is None
    assert lives[0].trace_hash == lives[1].trace_hash


def test_a_seed_is_the_same_life_in_any_process():
    code = (
        "from clorefleet.simulation.life import live\n"
        "from clorefleet.simulation.scenario import draw\n"
        "print(live(draw(2, is_on_sqlite=False)).trace_hash)"
    )
    hashes = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for hash_seed in ("1", "2")
    }
    assert hashes == {live(draw(2, is_on_sqlite=False)).trace_hash}


def test_every_fault_of_the_failure_model_is_a_switch_or_says_where_it_is_met():
    known = set(KINDS) | set(ELSEWHERE)
    for family, count in FAMILIES.items():
        for number in range(1, count + 1):
            assert f"{family}{number}" in known


def test_a_failing_life_is_made_small_and_printed_as_a_case():
    bug = next(bug for bug in BUGS if bug.name == "foreign orders are cancelled")
    drawn = draw(1, is_on_sqlite=False, also=bug.provoked_by)
    small, outcome = shrink(drawn, bug)
    assert outcome.violation is not None and outcome.violation.invariant == "S9"
    assert len(small.incidents) <= 2 < len(drawn.incidents)
    assert "Case(" in as_regression(small, outcome) and "B8" in as_regression(small, outcome)


def stopped_by_hand(edge: Callable[[Market], Market]) -> list[Violation]:
    """Three orders, of which nobody's records know, on a market that accepts cancels and does nothing."""
    world = World(replace(draw(1, is_on_sqlite=False), wishes=(), incidents=()), None)
    for fault in ("A14", "A14", "A16", "A1", "A22"):
        world.switches.throw(Incident(0, fault))
    for host in world.market.hosts()[:3]:
        price = Rate.per_day(host.per_day, host.currency)
        world.market.make_order(
            host, price=price, is_spot=False, image="somebody/elses:1", asked_by="user", nonce=""
        )
    try:
        return list(stop_all(world.market, world.make_clock(0), world.trace, edge=edge))
    finally:
        world.close()


def test_stop_all_without_a_store_ends_every_order_although_the_market_says_so_and_lies():
    assert stopped_by_hand(lambda edge: edge) == []


def test_a_stop_that_believes_the_market_is_caught_by_what_still_bills():
    bug = next(bug for bug in BUGS if bug.caught_by == ("L6",))
    [violation] = stopped_by_hand(bug.hand)
    assert violation.invariant == "L6"


def test_at_least_twenty_bugs_are_planted_over_all_invariants_that_can_break_here():
    assert len(BUGS) >= 20 and len({bug.name for bug in BUGS}) == len(BUGS)
    guarded = {invariant for bug in BUGS for invariant in bug.caught_by}
    assert guarded >= {"S1", "S2", "S3", "S4", "S5", "S6", "S7", "S8", "S9", "S10", "S14", "S15"}
    assert guarded >= {"L1", "L2", "L3", "L6"}


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(BUGS)), ids=lambda number: BUGS[number].name)
def test_a_planted_bug_is_caught(number: int):
    _, _, violation, expected = catch(number)
    assert violation is not None and violation.invariant in expected, violation

"""`python -m clorefleet.simulation`: many lives, on all cores; what fired, what broke, and how fast."""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from clorefleet.fleet.audit import Violation
from clorefleet.simulation.faults import BOUNDARIES, ELSEWHERE, KINDS
from clorefleet.simulation.life import live
from clorefleet.simulation.planted import BUGS
from clorefleet.simulation.scenario import draw
from clorefleet.simulation.shrink import as_regression, shrink

CHUNK = 20
SHRUNK_MAX = 3
"""Failing seeds that are made small; the others are only named."""
SEEDS_PER_BUG = 40
FULL_COVERAGE_FROM = 200
"""Seeds from which every fault must have fired; fewer cannot be asked for all of them."""
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Tally:
    """What one life leaves behind: small, since it travels between processes."""

    seed: int
    trace_hash: str
    violation: Violation | None
    ticks: int
    eventful_ticks: int
    faults: int
    fired: Counter[str]
    simulated_s: float
    is_on_sqlite: bool


def tally(seed: int) -> Tally:
    outcome = live(draw(seed))
    return Tally(
        seed,
        outcome.trace_hash,
        outcome.violation,
        outcome.ticks,
        outcome.eventful_ticks,
        outcome.faults,
        outcome.fired,
        outcome.simulated_s,
        outcome.is_on_sqlite,
    )


def catch(number: int) -> tuple[str, int, Violation | None, tuple[str, ...]]:
    """The first seed that shows a planted bug, and the invariant that speaks."""
    bug = BUGS[number]
    for seed in range(1, SEEDS_PER_BUG + 1):
        outcome = live(draw(seed, is_on_sqlite=False, also=bug.provoked_by), bug)
        if outcome.violation is not None:
            return bug.name, seed, outcome.violation, bug.caught_by
    return bug.name, SEEDS_PER_BUG, None, bug.caught_by


def main(arguments: list[str] | None = None) -> int:
    options = _parse(arguments)
    if options.seed is not None:
        return _one(options.seed)
    failed = False
    if options.planted:
        failed |= _planted(options.jobs)
    if options.seeds:
        failed |= _many(range(options.first, options.first + options.seeds), options.jobs)
    return 1 if failed else 0


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m clorefleet.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=0, help="how many lives")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seed", type=int, help="live one seed, show its trace, and shrink it if it fails")
    parser.add_argument("--planted", action="store_true", help="live with each planted bug")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    options = parser.parse_args(arguments)
    if not (options.seeds or options.planted or options.seed is not None):
        options.seeds = 1000
    return options


def _over(jobs: int, function: Callable[[T], R], questions: list[T], chunk: int) -> Iterator[R]:
    if jobs <= 1:
        yield from map(function, questions)
        return
    with ProcessPoolExecutor(jobs) as pool:
        yield from pool.map(function, questions, chunksize=chunk)


def _one(seed: int) -> int:
    outcome = live(draw(seed))
    _say("\n".join(outcome.last_lines))
    _say(f"seed {seed} trace {outcome.trace_hash} {outcome.ticks} ticks {outcome.faults} faults")
    if outcome.violation is None:
        _say("everything held")
        return 0
    _say(f"BROKEN {outcome.violation}")
    _show_shrunk(seed)
    return 1


def _many(seeds: range, jobs: int) -> bool:
    began_s = time.perf_counter()
    tallies: list[Tally] = []
    for found in _over(jobs, tally, list(seeds), CHUNK):
        tallies.append(found)
        if len(tallies) % 1000 == 0:
            print(f"  {len(tallies)} lives, {sum(t.violation is not None for t in tallies)} broken",
                  file=sys.stderr, flush=True)  # fmt: skip
    took_s = time.perf_counter() - began_s
    broken = [each for each in tallies if each.violation is not None]
    fired = sum((each.fired for each in tallies), Counter[str]())
    days = sum(each.simulated_s for each in tallies) / 86_400
    _say(
        f"{len(tallies)} simulated lives in {took_s:.1f} s on {jobs} process(es): "
        f"{len(tallies) / took_s:.1f} seeds/s, {days / took_s:.1f} simulated days/s; "
        f"{sum(each.is_on_sqlite for each in tallies)} on SQLite."
    )
    _say(
        f"Median life: {statistics.median(each.simulated_s for each in tallies) / 86_400:.1f} days, "
        f"{statistics.median(each.ticks for each in tallies):.0f} ticks, "
        f"{statistics.median(each.eventful_ticks for each in tallies):.0f} of them eventful, "
        f"{statistics.median(each.faults for each in tallies):.0f} faults."
    )
    missing = _show_coverage(fired) if len(tallies) >= FULL_COVERAGE_FROM else []
    for fault in missing:
        _say(f"NEVER FIRED {fault}")
    for each in broken:
        _say(f"BROKEN seed {each.seed}: {each.violation}")
    for each in broken[:SHRUNK_MAX]:
        _show_shrunk(each.seed)
    _say("Everything held." if not broken else f"{len(broken)} lives broke an invariant.")
    return bool(broken or missing)


def _show_shrunk(seed: int) -> None:
    small, outcome = shrink(draw(seed))
    _say(f"\nSeed {seed} made small; a case for tests/simulation/regressions.py:\n")
    _say(as_regression(small, outcome))


def _show_coverage(fired: Counter[str]) -> list[str]:
    """Print how often each fault struck; the ids of those that never did."""
    _say(f"\n{'fault':<6} {'fired':>9}  what")
    for fault, kind in KINDS.items():
        _say(f"{fault:<6} {fired[fault]:>9}  {kind.title}")
    _say(f"\n{'killed':>15}  at")
    for boundary in BOUNDARIES:
        _say(f"{fired[f'C1 {boundary}']:>15}  {boundary}")
    _say("")
    for fault, where in ELSEWHERE.items():
        _say(f"{fault:<6} {'-':>9}  {where}")
    _say("")
    never = [fault for fault in KINDS if not fired[fault]]
    return never + [f"C1 {each}" for each in BOUNDARIES if not fired[f"C1 {each}"] and each not in UNUSED]


UNUSED = frozenset(each for each in BOUNDARIES if each.startswith("spot_price "))
"""Boundaries of an effect that no decision makes yet."""


def _planted(jobs: int) -> bool:
    failed = 0
    began_s = time.perf_counter()
    _say(f"{'planted bug':<58} {'seed':>4}  caught by")
    for name, seed, violation, expected in _over(jobs, catch, list(range(len(BUGS))), 1):
        is_caught = violation is not None and violation.invariant in expected
        failed += not is_caught
        text = "NOT CAUGHT" if violation is None else str(violation)[:110]
        _say(f"{name:<58} {seed:>4}  {'' if is_caught else 'WRONGLY: '}{text}")
    took_s = time.perf_counter() - began_s
    _say(f"{len(BUGS) - failed} of {len(BUGS)} planted bugs caught, in {took_s:.0f} s.\n")
    return failed > 0


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())

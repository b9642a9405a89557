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
from pathlib import Path
from typing import TypeVar

from clorefleet.domain.errors import BadInput
from clorefleet.fleet.audit import Violation
from clorefleet.simulation.faults import BOUNDARIES, ELSEWHERE, KINDS
from clorefleet.simulation.life import live
from clorefleet.simulation.planted import BUGS
from clorefleet.simulation.runs import RunFile, Tally, source_hash, tallies
from clorefleet.simulation.scenario import draw
from clorefleet.simulation.shrink import as_regression, shrink

CHUNK = 20
PROGRESS_EVERY = 500
SHRUNK_MAX = 3
"""Failing seeds that are made small; the others are only named."""
SEEDS_PER_BUG = 40
FULL_COVERAGE_FROM = 200
"""Seeds from which every fault must have fired; fewer cannot be asked for all of them."""
T = TypeVar("T")
R = TypeVar("R")


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
        seeds = range(options.first, options.first + options.seeds)
        try:
            failed |= _many(seeds, options.jobs, options.into)
        except BadInput as error:
            print(f"{error.what} {error.remedy}", file=sys.stderr)
            return error.exit_code
        except KeyboardInterrupt:
            print("Stopped. With --into, the same command goes on where it was.", file=sys.stderr)
            return 130
    return 1 if failed else 0


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m clorefleet.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=0, help="how many lives")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument(
        "--into",
        type=Path,
        metavar="FILE",
        help="keep each finished chunk of lives in FILE, and go on from what it holds",
    )
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


def _many(seeds: range, jobs: int, into: Path | None) -> bool:
    kept = None if into is None else RunFile(into, source_hash())
    lives = [] if kept is None else [each for each in kept.lives if each.seed in seeds]
    known = {each.seed for each in lives}
    left = [seed for seed in seeds if seed not in known]
    began_s = time.perf_counter()
    for chunk in _over(jobs, tallies, [left[at : at + CHUNK] for at in range(0, len(left), CHUNK)], 1):
        if kept is not None:
            kept.add(chunk)
        before = len(lives) // PROGRESS_EVERY
        lives += chunk
        if len(lives) // PROGRESS_EVERY > before:
            _show_progress(lives, len(seeds), len(lives) - len(known), time.perf_counter() - began_s)
    took_s = time.perf_counter() - began_s
    if known:
        _say(f"{len(known)} lives were lived before; {len(left)} in {took_s:.1f} s now.")
    return _show_lives(sorted(lives, key=lambda each: each.seed), len(left), took_s, jobs)


def _show_progress(lives: list[Tally], wanted: int, now: int, took_s: float) -> None:
    broken = [each.seed for each in lives if each.violation is not None]
    left_s = took_s / now * (wanted - len(lives))
    named = f" (seeds {', '.join(map(str, sorted(broken)[:8]))})" if broken else ""
    print(
        f"  {len(lives)} of {wanted} lives, {len(broken)} broken{named}; {left_s / 60:.0f} min to go",
        file=sys.stderr,
        flush=True,
    )


def _show_lives(lives: list[Tally], now: int, took_s: float, jobs: int) -> bool:
    broken = [each for each in lives if each.violation is not None]
    fired = sum((each.fired for each in lives), Counter[str]())
    days = sum(each.simulated_s for each in lives) / 86_400
    _say(
        f"{len(lives)} simulated lives of {days:.0f} days, "
        f"{sum(each.is_on_sqlite for each in lives)} on SQLite."
    )
    if now == len(lives):
        _say(
            f"Lived in {took_s:.1f} s on {jobs} process(es): {now / took_s:.1f} seeds/s, "
            f"{days / took_s:.1f} simulated days/s."
        )
    _say(
        f"Median life: {statistics.median(each.simulated_s for each in lives) / 86_400:.1f} days, "
        f"{statistics.median(each.ticks for each in lives):.0f} ticks, "
        f"{statistics.median(each.eventful_ticks for each in lives):.0f} of them eventful, "
        f"{statistics.median(each.faults for each in lives):.0f} faults."
    )
    missing = _show_coverage(fired) if len(lives) >= FULL_COVERAGE_FROM else []
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
    return never + [f"C1 {each}" for each in BOUNDARIES if not fired[f"C1 {each}"]]


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

"""Make a failing life small: leave out incidents, wishes and hosts while the same invariant still breaks.

Chance depends on the question and not on the order of asking (`dice`), so that what is left out seldom
changes the rest. The result is printed as a test that can be pasted into `tests/simulation/regressions.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from clorefleet.simulation.life import Outcome, live
from clorefleet.simulation.planted import Bug
from clorefleet.simulation.scenario import Scenario

TRIES_MAX = 300
T = TypeVar("T")


def shrink(scenario: Scenario, bug: Bug | None = None) -> tuple[Scenario, Outcome]:
    """The smallest life found that breaks the same invariant, and what it came to.

    Raises:
        ValueError: the life breaks nothing.
    """
    outcome = live(scenario, bug)
    if outcome.violation is None:
        raise ValueError(f"seed {scenario.seed} breaks nothing")
    invariant = outcome.violation.invariant
    tries = 0

    def breaks(smaller: Scenario) -> bool:
        nonlocal tries, outcome
        if tries >= TRIES_MAX:
            return False
        tries += 1
        found = live(smaller, bug)
        if found.violation is None or found.violation.invariant != invariant:
            return False
        outcome = found
        return True

    small = scenario
    for _ in range(2):
        small = _fewer(small, small.incidents, lambda s, left: replace(s, incidents=left), breaks)
        small = _fewer(small, small.wishes, lambda s, left: replace(s, wishes=left), breaks)
        small = _fewer(small, small.hosts, lambda s, left: replace(s, hosts=left), breaks)
    return small, outcome


def _fewer(
    scenario: Scenario,
    parts: tuple[T, ...],
    put: Callable[[Scenario, tuple[T, ...]], Scenario],
    breaks: Callable[[Scenario], bool],
) -> Scenario:
    """Leave out ever smaller runs of `parts`."""
    size = max(1, len(parts) // 2)
    while True:
        start = 0
        while start < len(parts):
            left = (*parts[:start], *parts[start + size :])
            if breaks(put(scenario, left)):
                parts, scenario = left, put(scenario, left)
            else:
                start += size
        if size == 1:
            return scenario
        size = max(1, size // 2)


def as_regression(scenario: Scenario, outcome: Outcome) -> str:
    """A ready case: the seed, and which of its incidents, wishes and hosts are needed."""
    violation = outcome.violation
    lines = [
        f"    # {violation}",
        "    Case(",
        f"        seed={scenario.seed},",
        f"        incidents={_times([each.at_s for each in scenario.incidents])},",
        f"        wishes={_times([each.at_s for each in scenario.wishes])},",
        f"        hosts={tuple(host.server_id for host in scenario.hosts)},",
        "    ),",
    ]
    for incident in scenario.incidents:
        lines.append(f"    #   {incident}")
    return "\n".join(lines)


def _times(times_s: list[float]) -> str:
    return "(" + "".join(f"{at_s!r}, " for at_s in times_s).rstrip() + ")"

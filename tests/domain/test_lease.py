"""The two lifecycle tables: listed steps work, every other raises, and each state has a way out."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

import pytest

from clorefleet.domain.lease import (
    LEASE_TRANSITIONS,
    PHASE_TRANSITIONS,
    BadTransition,
    LeaseState,
    Phase,
)
from tests.fleet.builders import NOW, lease


@pytest.mark.parametrize("table, kind", [(LEASE_TRANSITIONS, LeaseState), (PHASE_TRANSITIONS, Phase)])
def test_each_state_is_in_its_table_and_reachable(table: Mapping, kind: type[Enum]):
    assert set(table) == set(kind)
    reached, first = set(), [next(iter(kind))]
    while first:
        state = first.pop()
        if state not in reached:
            reached.add(state)
            first.extend(table[state])
    assert reached == set(kind)


@pytest.mark.parametrize("phase", [phase for phase in Phase if phase is not Phase.ENDED])
def test_every_phase_can_end(phase: Phase):
    assert Phase.DRAINING in PHASE_TRANSITIONS[phase] or phase is Phase.DRAINING
    assert Phase.ENDED in PHASE_TRANSITIONS[Phase.DRAINING]


def test_unlisted_phases_raise():
    for start, following in PHASE_TRANSITIONS.items():
        for end in set(Phase) - following:
            with pytest.raises(BadTransition):
                lease(phase=start).entered(end, NOW)


def test_unlisted_states_raise():
    for start, following in LEASE_TRANSITIONS.items():
        for end in set(LeaseState) - following:
            with pytest.raises(BadTransition):
                lease(start).moved(end)


def test_whatever_may_bill_counts_as_open():
    assert [state for state in LeaseState if lease(state).may_bill] == [
        LeaseState.INTENT,
        LeaseState.ORDERED,
        LeaseState.ENDING,
    ]

"""Which servers plans leave out, by their record and the user's word."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal

import pytest

from clorefleet.domain.host import HostFault, HostVerdict, Verdict, left_out
from clorefleet.domain.identity import ServerId
from tests.fleet.builders import NOW

SERVER = ServerId(7)


def fault(days_ago: float) -> HostFault:
    return HostFault(SERVER, NOW - timedelta(days=days_ago), "why", Decimal(1))


def verdict(kind: Verdict, days_ago: float) -> HostVerdict:
    return HostVerdict(SERVER, kind, NOW - timedelta(days=days_ago))


@pytest.mark.parametrize(
    "faults, verdicts, is_left_out",
    [
        ([], [], False),
        ([fault(1)], [], True),
        ([fault(8)], [], False),
        ([fault(8), fault(1)], [], True),
        ([fault(2)], [verdict(Verdict.UNBLOCKED, 1)], False),
        ([fault(2), fault(0.5)], [verdict(Verdict.UNBLOCKED, 1)], True),
        ([], [verdict(Verdict.BLOCKED, 400)], True),
        ([], [verdict(Verdict.BLOCKED, 400), verdict(Verdict.UNBLOCKED, 300)], False),
        ([], [verdict(Verdict.UNBLOCKED, 3), verdict(Verdict.BLOCKED, 2)], True),
    ],
)
def test_a_server_is_left_out_while_blocked_or_lately_at_fault_and_not_forgiven(
    faults: list[HostFault], verdicts: list[HostVerdict], is_left_out: bool
):
    assert left_out(faults, verdicts, since=NOW - timedelta(days=7)) == ({SERVER} if is_left_out else set())

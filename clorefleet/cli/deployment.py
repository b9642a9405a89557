"""Finding the deployment that a command names, and saying which there are where it is none."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from clorefleet.cli.context import options

if TYPE_CHECKING:
    from collections.abc import Iterable

    from clorefleet.domain.deployment import Deployment
    from clorefleet.domain.errors import BadInput
    from clorefleet.domain.guard import FleetGuard
    from clorefleet.domain.identity import DeploymentId
    from clorefleet.store.queries import Transaction


def find_deployment(tx: Transaction, name: str, *, money: str = "") -> Deployment:
    """
    Raises:
        BadInput: there is none of that name; tells the nearest.
    """
    from clorefleet.domain.identity import DeploymentId

    found = tx.deployment(DeploymentId(name))
    if found is None:
        raise no_deployment(name, (each.deployment_id for each in tx.deployments()), money=money)
    return found


def check_unchanged(tx: Transaction, name: DeploymentId, before: Deployment | None) -> None:
    """In the transaction that writes what was asked about: nobody confirms what they did not see.

    Raises:
        BadInput: it is not what it was when it was asked about, or was made, stopped or taken away meanwhile.
    """
    from clorefleet.domain.errors import BadInput

    if _but_its_note(tx.deployment(name)) != _but_its_note(before):
        raise BadInput(
            f"“{name}” has changed since this was asked.",
            remedy="Look at it again (`clorefleet status`), then decide.",
            money="Nothing was changed.",
        )


def _but_its_note(deployment: Deployment | None) -> Deployment | None:
    """The daemon writes another note with each look at the market: nobody was asked about that."""
    return None if deployment is None else replace(deployment, note="")


def check_renting(guard: FleetGuard, *, money: str = "Nothing was rented.") -> None:
    """
    Raises:
        BudgetExceeded: the circuit breaker stopped renting; whoever rents would wait without end.
    """
    from clorefleet.domain.errors import BudgetExceeded

    if guard.is_stopped:
        raise BudgetExceeded(
            f"Renting is stopped: {guard.stopped_because}.",
            remedy="`clorefleet logs` shows what happened; `clorefleet budget --resume` rents again.",
            money=money,
        )


def no_deployment(name: str, known: Iterable[str], *, money: str = "") -> BadInput:
    from clorefleet.cli.nearest import did_you_mean
    from clorefleet.domain.errors import BadInput

    names = list(known)
    flag = options.profile().flag
    there = (
        f"`clorefleet status{flag} --all` lists them."
        if names
        else f"There is none in this profile; `clorefleet deploy MODEL --budget 16/day{flag}` makes one."
    )
    return BadInput(
        f"There is no deployment “{name[:60]}”.",
        remedy=f"{did_you_mean(name, names)}{there}",
        money=money,
    )

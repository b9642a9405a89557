"""The wishes that a user changes by one word or one number: stop this, keep so many. Pure.

A wish is written into the store without a fencing token; the daemon's next tick reads it and acts, behind the
same budget guard as any rent. Writing one rents and cancels nothing by itself.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from clorefleet.domain.deployment import Deployment, Desired
from clorefleet.domain.errors import BadInput

REPLICAS_MAX = 16


def stopped(deployment: Deployment) -> Deployment:
    """Everything of it is given back."""
    return replace(deployment, desired=Desired.STOPPED, note="", has_given_up=False)


def scaled(deployment: Deployment, replicas: int, *, now: datetime) -> Deployment:
    """`replicas` are kept when neither schedule nor load says otherwise; the most that load may ask for is
    never below that.

    Raises:
        BadInput: it is stopped, or the number is none that may be kept.
    """
    if deployment.desired is Desired.STOPPED:
        raise BadInput(
            f"“{deployment.deployment_id}” is stopped.",
            remedy="`clorefleet deploy` starts it again, after showing what it would cost.",
            money="Nothing was changed.",
        )
    if not 1 <= replicas <= REPLICAS_MAX:
        raise BadInput(
            f"{replicas} replicas cannot be kept.",
            remedy=f"Choose 1 to {REPLICAS_MAX}; to keep none, stop it.",
            money="Nothing was changed.",
        )
    most = deployment.replicas_max
    after = replace(deployment, replicas=replicas, replicas_max=None if most is None else max(most, replicas))
    if after == deployment or not deployment.has_given_up:
        return after
    return replace(after, note="", has_given_up=False, attempts_since=now)

"""Identifiers, each of its own type: a swapped id rents the wrong machine."""

from __future__ import annotations

from typing import NewType

ServerId = NewType("ServerId", int)
"""The market's number of a server; an offer is a server that can be rented."""
OwnerId = NewType("OwnerId", int)
"""The market's number of the account that hosts a server."""
OrderId = NewType("OrderId", int)
"""The market's number of a rental."""
DeploymentId = NewType("DeploymentId", str)
"""The name a deployment goes by, unique in a profile."""
LeaseId = NewType("LeaseId", str)
"""Ours; made before the order exists, and the name of the lease's key folder."""
IntentId = NewType("IntentId", str)
JobId = NewType("JobId", str)
"""Deterministic from lease, phase and attempt, so that starting a job twice starts it once."""

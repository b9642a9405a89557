"""What a tick can decide. Each action is data and carries its reason in the user's words."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from clorefleet.domain.failure import Cause, Correction
from clorefleet.domain.identity import DeploymentId, LeaseId, OrderId
from clorefleet.domain.intent import Intent, IntentState
from clorefleet.domain.lease import Phase
from clorefleet.domain.money import Rate
from clorefleet.domain.node import Discrepancy, NodeFacts
from clorefleet.domain.order import Order
from clorefleet.domain.plan import Plan
from clorefleet.domain.wanted import Wanted


@dataclass(frozen=True, slots=True)
class Rent:
    """Costs money: rent the plan's server for a slot of a deployment."""

    deployment_id: DeploymentId
    slot: int
    plan: Plan
    reason: str
    replaces: LeaseId | None = None
    """A serving lease of the same slot that is given back once this one serves."""


@dataclass(frozen=True, slots=True)
class Adopt:
    """The order of a rent was found in the market's list: the lease is now ordered."""

    lease_id: LeaseId
    order: Order
    reason: str


@dataclass(frozen=True, slots=True)
class DropRent:
    """The order list was read back long enough after the doubt: there is no order, nothing to pay."""

    lease_id: LeaseId
    reason: str


@dataclass(frozen=True, slots=True)
class GiveBack:
    """Start to end a lease. `blocks_host` leaves the server out of later plans."""

    lease_id: LeaseId
    reason: str
    blocks_host: bool = False
    cause: Cause | None = None
    """Later plans leave out what would fail the same way."""
    facts: NodeFacts | None = None
    discrepancies: tuple[Discrepancy, ...] = ()
    """Of a server whose probe ended its lease, for its record."""


@dataclass(frozen=True, slots=True)
class Cancel:
    """Stops money: ask the market to end the order. Repeated until the list shows it gone."""

    lease_id: LeaseId
    order_id: OrderId
    reason: str


@dataclass(frozen=True, slots=True)
class SetSpotPrice:
    """Changes what an order costs: another bid for a spot order, per day in its currency."""

    lease_id: LeaseId
    order_id: OrderId
    desired: Rate
    reason: str


@dataclass(frozen=True, slots=True)
class ApproveBid:
    """The list has shown a lowered bid for long enough: from now on no more than this is approved."""

    lease_id: LeaseId
    approved: Rate


@dataclass(frozen=True, slots=True)
class NoteOutbid:
    """A spot order lost its machine (`since`), or has it back (None): then the replica starts anew there."""

    lease_id: LeaseId
    since: datetime | None
    reason: str


@dataclass(frozen=True, slots=True)
class Conclude:
    """A reading showed how an intent in doubt came out; nothing is asked of anybody."""

    intent: Intent
    state: IntentState
    reason: str


@dataclass(frozen=True, slots=True)
class StopRenting:
    """The circuit breaker: nothing more is rented until the user says go on. Ending goes on."""

    reason: str


@dataclass(frozen=True, slots=True)
class NoteAbsence:
    """The order was not in this reading of the list. One absence proves nothing."""

    lease_id: LeaseId
    absent_polls: int


@dataclass(frozen=True, slots=True)
class End:
    """The market's list showed the order gone: the lease has ended, the ledger is closed."""

    lease_id: LeaseId
    order_id: OrderId
    settled: Decimal | None
    """The completed order's own figure, where the list had it."""
    reason: str
    cause: Cause | None = None


@dataclass(frozen=True, slots=True)
class Reopen:
    """An order that we took for ended, or never made, is alive in the list: it is ours to end."""

    lease_id: LeaseId
    order: Order
    reason: str


@dataclass(frozen=True, slots=True)
class Disown:
    """The order that we took for a rent in doubt is left alone, and reported: it is somebody else's, or
    nothing here can tell."""

    lease_id: LeaseId
    order: Order
    reason: str
    may_be_ours: bool = False


@dataclass(frozen=True, slots=True)
class Settle:
    """The market's final figure for an order that ended earlier."""

    lease_id: LeaseId
    order_id: OrderId
    settled: Decimal


@dataclass(frozen=True, slots=True)
class Advance:
    """A replica goes to its next phase, with what was learned."""

    lease_id: LeaseId
    phase: Phase
    reason: str
    host_key: str = ""
    facts: NodeFacts | None = None
    discrepancies: tuple[Discrepancy, ...] = ()
    measured_tokens_per_s: float | None = None
    measured_together_tokens_per_s: float | None = None
    measured_streams: int = 1
    engine_is_simulated: bool = False
    degraded: str = ""
    """Why it serves and is called degraded."""


@dataclass(frozen=True, slots=True)
class StartWork:
    """Start the phase's detached job on the node; idempotent by its id."""

    lease_id: LeaseId
    phase: Phase
    attempt: int
    reason: str
    correction: Correction | None = None
    """Made to the launch for this attempt and all later ones of the lease."""


@dataclass(frozen=True, slots=True)
class NoteProgress:
    """What the phase is doing, for whoever watches."""

    lease_id: LeaseId
    text: str
    fraction: float | None = None


@dataclass(frozen=True, slots=True)
class NoteHealth:
    """A serving replica stopped answering, or answers again (`unhealthy_since` None)."""

    lease_id: LeaseId
    unhealthy_since: datetime | None
    text: str


@dataclass(frozen=True, slots=True)
class NoteUse:
    """What the last look showed of a serving replica's use."""

    lease_id: LeaseId
    used_at: datetime
    engine_tokens: int | None


@dataclass(frozen=True, slots=True)
class Explain:
    """Tell the user why a deployment does not go on. Written once, until the words change."""

    deployment_id: DeploymentId
    text: str
    is_final: bool = False
    """Nothing more is tried until the user says so."""


@dataclass(frozen=True, slots=True)
class NoteWanted:
    """Another number of replicas is wanted, or for another reason: written down for the user."""

    deployment_id: DeploymentId
    wanted: Wanted


@dataclass(frozen=True, slots=True)
class ReportForeign:
    """An order on the account that no lease explains: reported, never touched."""

    order: Order


Action = (
    Rent
    | Adopt
    | DropRent
    | GiveBack
    | Cancel
    | SetSpotPrice
    | ApproveBid
    | NoteOutbid
    | Conclude
    | StopRenting
    | NoteAbsence
    | End
    | Reopen
    | Disown
    | Settle
    | Advance
    | StartWork
    | NoteProgress
    | NoteHealth
    | NoteUse
    | Explain
    | NoteWanted
    | ReportForeign
)

LEAVING = (GiveBack, Cancel, End, Disown)
"""After any of these a lease serves no more."""

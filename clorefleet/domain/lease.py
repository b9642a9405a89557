"""Our belief about one rented server, and the life of the replica on it.

A lease is made before the order exists, in the same transaction as the intent to rent. Two tables
below say which steps exist; anything else raises. The market's order list is the truth: `state`
follows it, and only a reading of that list may end a lease.

`LeaseState` is about money:

    intent -> ordered -> ending -> ended        an order that was made, found, cancelled and read as gone
    intent -> refused                           the market said no, or nothing appeared: nothing to pay
    ended | refused -> ending                   the order showed up alive after all: it is ended again

`Phase` is about work on the node. A replica that fails in any phase goes to `draining`, which is
where the order gets cancelled; it never goes back. A spot server that was outbid and has its machine back
starts anew at `waiting`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from zlib import crc32

from clorefleet.domain.failure import Cause, Correction
from clorefleet.domain.identity import DeploymentId, IntentId, JobId, LeaseId, OrderId, ServerId
from clorefleet.domain.money import Rate
from clorefleet.domain.order import SshAddress
from clorefleet.domain.plan import Plan


class LeaseState(StrEnum):
    INTENT = "intent"
    """Written down; the market may or may not know of it."""
    ORDERED = "ordered"
    """In the market's list: it bills."""
    ENDING = "ending"
    """A cancel was asked for; it bills until the list shows it gone."""
    ENDED = "ended"
    REFUSED = "refused"
    """Never an order."""


class Phase(StrEnum):
    RENTING = "renting"
    WAITING = "waiting for SSH"
    PROBING = "probing"
    INSTALLING = "installing"
    SYNCING = "syncing weights"
    LAUNCHING = "launching"
    VERIFYING = "verifying"
    SERVING = "serving"
    DRAINING = "draining"
    ENDED = "ended"


PHASE_ORDER = tuple(Phase)

_OPEN = (LeaseState.INTENT, LeaseState.ORDERED, LeaseState.ENDING)

LEASE_TRANSITIONS: dict[LeaseState, frozenset[LeaseState]] = {
    LeaseState.INTENT: frozenset({LeaseState.ORDERED, LeaseState.REFUSED}),
    # An order may end by itself (expiry, pre-emption, empty wallet) without any cancel of ours.
    LeaseState.ORDERED: frozenset({LeaseState.ENDING, LeaseState.ENDED}),
    LeaseState.ENDING: frozenset({LeaseState.ENDED}),
    # A list may hide an order for some readings, and a cancel may be accepted and not done: an order
    # that shows up alive after its lease was closed is ours to end again.
    LeaseState.ENDED: frozenset({LeaseState.ENDING}),
    LeaseState.REFUSED: frozenset({LeaseState.ENDING}),
}

_AWAY = frozenset({Phase.DRAINING, Phase.ENDED})
# A spot server that was outbid waits for its machine, and then starts anew there.
_AWAY_OR_AGAIN = _AWAY | {Phase.WAITING}
PHASE_TRANSITIONS: dict[Phase, frozenset[Phase]] = {
    Phase.RENTING: frozenset({Phase.WAITING}) | _AWAY,
    Phase.WAITING: frozenset({Phase.PROBING}) | _AWAY_OR_AGAIN,
    Phase.PROBING: frozenset({Phase.INSTALLING}) | _AWAY_OR_AGAIN,
    Phase.INSTALLING: frozenset({Phase.SYNCING}) | _AWAY_OR_AGAIN,
    Phase.SYNCING: frozenset({Phase.LAUNCHING}) | _AWAY_OR_AGAIN,
    # An engine that finds its weights damaged has them fetched again.
    Phase.LAUNCHING: frozenset({Phase.VERIFYING, Phase.SYNCING}) | _AWAY_OR_AGAIN,
    # An engine may die while it is verified or serves: it is launched once more before the server is
    # given back.
    Phase.VERIFYING: frozenset({Phase.SERVING, Phase.LAUNCHING}) | _AWAY_OR_AGAIN,
    Phase.SERVING: frozenset({Phase.LAUNCHING}) | _AWAY_OR_AGAIN,
    Phase.DRAINING: frozenset({Phase.ENDED}),
    Phase.ENDED: frozenset({Phase.DRAINING}),
}


NO_ORDER = "NoOrder"
"""`Lease.refusal` of a rent that the market never refused, and of which no order appeared in time."""
NO_ORDER_AFTER_YES = "NoOrderAfterYes"
"""The same of a rent that the market had said yes to: something bills, or its word is worth nothing."""
_ENGINE_PORTS_FROM, _ENGINE_PORTS = 20_000, 10_000


class BadTransition(RuntimeError):
    """A step that no table lists: a broken invariant, never retried."""


@dataclass(frozen=True, slots=True)
class Lease:
    lease_id: LeaseId
    deployment_id: DeploymentId
    slot: int
    """Which replica of the deployment, from 0."""
    plan: Plan
    """As approved: offer, setup and price at the time of the intent."""
    intent_id: IntentId
    state: LeaseState
    phase: Phase
    created_at: datetime
    phase_since: datetime
    asked_at_market: datetime | None = None
    """When it was asked for, by the market's own clock: as read with the order list before the intent. None
    where the market did not say, and of leases of older versions."""
    key_place: str = ""
    """Where its login key was made, as `Nodes.key_place` names it; "" of leases of older versions."""
    order_id: OrderId | None = None
    ordered_at: datetime | None = None
    """The market's creation time of the order, else when we first saw it."""
    is_proven: bool = True
    """False while only server and image say that the order is ours: the rent was in doubt, and our key has
    not opened the server yet. What is not proven is not cancelled."""
    price: Rate | None = None
    """As billed, per day: read from the order itself."""
    address: SshAddress | None = None
    host_key: str = ""
    """The pinned public key, `ssh-ed25519 AAAA...`; "" before first contact."""
    image: str = ""
    reason: str = ""
    """Why it is draining or ended, for the user."""
    blocks_host: bool = False
    """The host is to blame: later plans leave it out."""
    cause: Cause | None = None
    """Why the replica failed, where that is known; later plans leave out what would fail the same way."""
    cuda_found: tuple[int, int] | None = None
    """What the server's driver supports, as the probe found it."""
    corrections: tuple[Correction, ...] = ()
    """Made to the planned setup since earlier launches failed, each once."""
    refusal: str = ""
    """Class name of the market's refusal, where the rent was refused."""
    launches: int = 0
    """Attempts at the present phase's job."""
    start_failures: int = 0
    """Times in a row that the job could not even be started."""
    absent_polls: int = 0
    """Consecutive readings of the order list without the order."""
    cancel_asked_at: datetime | None = None
    cancel_attempts: int = 0
    ended_at: datetime | None = None
    measured_tokens_per_s: float | None = None
    measured_together_tokens_per_s: float | None = None
    """Of `measured_streams` requests at once, all together; with the plan's prediction, a calibration."""
    measured_streams: int = 1
    degraded: str = ""
    """Serves, and slower than it should: by how much; "" where it is as fast as planned or nobody knows."""
    engine_is_simulated: bool = False
    """The engine's own model card says that it only simulates its hardware."""
    unhealthy_since: datetime | None = None
    """A serving replica has not answered since then."""
    used_at: datetime | None = None
    """When a request or a token was last seen while it served."""
    engine_tokens: int | None = None
    """The engine's own count at the last look that could read it."""
    replaces: LeaseId | None = None
    """The dearer lease of the same slot that this one was rented to follow."""
    bid: Rate | None = None
    """What was last asked for as this spot order's price; None: only the first bid was made."""
    bid_at: datetime | None = None
    lowered_at: datetime | None = None
    """When a reduction of the bid was last sent: the next one has to wait."""
    bid_step_max: Decimal | None = None
    """The largest reduction at once that the market told, per day in the billed currency."""
    outbid_since: datetime | None = None
    """A spot order that is listed and does not have its machine: nothing runs there, and nothing is paid."""
    restarts: int = 0
    """How often it had its machine back: the container started anew, with its disk where the host kept it."""
    progress: str = ""
    """One line about the phase's work, already cleaned."""
    progress_fraction: float | None = None

    @property
    def is_open(self) -> bool:
        return self.state in _OPEN

    @property
    def was_dropped(self) -> bool:
        """Its rent was given up, since no order appeared in time: one may yet."""
        return self.refusal in (NO_ORDER, NO_ORDER_AFTER_YES)

    @property
    def may_bill(self) -> bool:
        """True whenever an order may exist: also while a rent is in doubt."""
        return self.is_open

    @property
    def server_id(self) -> ServerId:
        return self.plan.offer.server_id

    @property
    def engine_port(self) -> int:
        """Where the engine listens on the node's loopback; differs between leases, since the sandbox's nodes
        share this machine's."""
        moved = _ENGINE_PORTS if Correction.OTHER_PORT in self.corrections else 0
        return _ENGINE_PORTS_FROM + moved + crc32(self.lease_id.encode()) % _ENGINE_PORTS

    def job_id(self, phase: Phase, attempt: int) -> JobId:
        """The same for the same work: a job started before a crash is found, not started again."""
        is_again = Correction.FETCH_AGAIN in self.corrections and phase in (Phase.SYNCING, Phase.LAUNCHING)
        restart = f"-r{self.restarts}" if self.restarts else ""
        return JobId(f"{self.lease_id}-{phase.name.lower()}-{'again-' if is_again else ''}{attempt}{restart}")

    def entered(self, phase: Phase, now: datetime, *, reason: str = "") -> Lease:
        """This lease in `phase` from `now` on."""
        if phase not in PHASE_TRANSITIONS[self.phase]:
            raise BadTransition(f"a replica cannot go from {self.phase} to {phase}")
        return replace(
            self,
            phase=phase,
            phase_since=now,
            reason=reason or self.reason,
            progress="",
            progress_fraction=None,
        )

    def moved(self, state: LeaseState) -> Lease:
        if state not in LEASE_TRANSITIONS[self.state]:
            raise BadTransition(f"a lease cannot go from {self.state} to {state}")
        return replace(self, state=state)

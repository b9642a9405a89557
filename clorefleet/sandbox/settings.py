"""Everything about the simulated market that can be set, in one frozen value.

Where published sources about the real service disagree, the choice is a field here, and its default
is the reading that a client must at least survive.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum
from pathlib import Path


class HttpStatusMode(StrEnum):
    BY_CODE = "by-code"
    """The documented table: code 1 = 500, 2 = 400, 3 = 401, 4 = 404, 5 = 429, 6 = 200."""
    ALWAYS_200 = "always-200"


class TcpPortsForm(StrEnum):
    LIST = "list"
    """`["22:1380"]`, as in answers that clients have seen."""
    OBJECT = "object"
    """`{"22": 1380}`, as the official SDK types it."""


class OutbidFate(StrEnum):
    ENDED = "ended"
    """The order is over, as the documentation says."""
    WAITING = "waiting"
    """The order stays, unpaid, and has the machine back when the other renter leaves."""


@dataclass(frozen=True, slots=True)
class SandboxSettings:
    """One sandbox. Times named `_real_s` are true seconds; all others are simulated."""

    state_dir: Path
    seed: int = 1
    time_factor: float = 1.0
    market_port: int = 0
    """0 = the port of the last start if it is free, else any free one."""
    hub_port: int = 0
    base_unix_s: float | None = None
    """Simulated time at the very first start; None = the machine's time."""

    market_only: bool = False
    """No hub, and nodes that refuse connections: enough to try a client of the market alone."""

    line_scale: float = 1.0
    """How much faster than its true line a node downloads from the hub."""

    # the catalogue
    server_count: int = 3200
    churn: float = 1.0
    """How busy other renters are: 0 = nobody comes or goes, 2 = twice as often."""
    coin_drift_per_day: float = 0.0
    """Typical relative move of a coin's rate in a simulated day."""

    # money
    wallet_usd: Decimal = Decimal("2000")
    wallet_clore: Decimal = Decimal("50000")
    wallet_bitcoin: Decimal = Decimal("0.02")
    on_demand_fee_percent: Decimal = Decimal("5")
    spot_fee_percent: Decimal = Decimal("1.25")
    creation_fee_usd: Decimal = Decimal("0.1")
    creation_fee_clore: Decimal = Decimal("10")
    creation_fee_bitcoin: Decimal = Decimal("0.0000012")
    proof_of_holding: Decimal = Decimal("0")
    """CLORE held; lowers the fee by `round(min(poh / 2000000, 1) * 50)` percent of itself."""
    minimum_balance_hours: Decimal = Decimal("1")
    """A wallet must hold the creation fee and this many hours of rent, or the order is refused."""
    charge_interval_s: int = 60
    """What a balance falls by at once: a minute of rent, or 1 = a second. Sources publish neither."""
    orders_limit: int = 50

    # transport and limits
    http_status: HttpStatusMode = HttpStatusMode.BY_CODE
    enforce_rate_limits: bool = True
    call_interval_real_s: float = 1.0
    """Limits are kept in real time whatever the time factor: they bound a client's true request rate."""
    create_interval_real_s: float = 5.0
    refused_calls_count: bool = False
    """Whether a call refused with code 5 itself restarts the interval."""
    send_retry_after: bool = True
    refuse_library_user_agents: bool = False
    """Answer 403 `error code: 1010` to the default User-Agent of HTTP libraries, as the edge may do."""

    # orders
    ct_skew_s: int = 0
    """How far the market's clock, as `ct` shows it, is ahead of the one it charges by."""
    order_id_rate: float = 0.15
    """Share of `create_order` answers that carry an id, in one of the three known forms."""
    tcp_ports: TcpPortsForm = TcpPortsForm.LIST
    outbid: OutbidFate = OutbidFate.ENDED
    on_demand_takes_spot: bool = True
    """An on-demand order may take a server from a spot tenant, and others may take one from us."""
    required_price_refusal_rate: float = 0.15
    """Share of calls with an equal `required_price` that are refused with code 1 all the same."""
    list_lag_real_s: float = 2.5
    """A new order shows in `my_orders` after 0 to this many real seconds."""
    cancel_linger_polls: int = 2
    """A cancelled order stays in the plain list for 0 to this many polls."""
    boot_scale: float = 1 / 30
    """Real seconds of boot per second of the server's own boot time (60 to 150 s)."""
    lower_interval_s: float = 600.0
    """Simulated seconds between two reductions of one spot price."""
    lower_step_max: Decimal = Decimal("0.1")
    """Greatest reduction at once, as a fraction of the current price."""

    faults: dict[str, dict[str, object]] = field(default_factory=dict)
    """Faults that are on from the start, by name; see `clorefleet.sandbox.faults`."""

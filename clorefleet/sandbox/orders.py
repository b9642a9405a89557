"""One rental of the simulated market: what was asked for, what is charged, and where its node is.

A `SandboxOrder` is mutable state owned by `market.Market`; it is stored as JSON after each change.
Instants named `_s` are simulated unix seconds; those named `_real_s` are the machine's unix seconds,
since booting takes true time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from decimal import Decimal
from enum import StrEnum
from typing import Any

from clorefleet.sandbox.billing import Bill, Segment, bill_for


class OrderKind(StrEnum):
    ON_DEMAND = "on-demand"
    SPOT = "spot"


class EndReason(StrEnum):
    """Why an order ended. The market's answers never say; only the control interface does."""

    CANCELLED = "cancelled"
    RENTAL_LIMIT = "rental limit reached"
    OUT_OF_FUNDS = "wallet could not pay on"
    OUTBID = "outbid"
    TAKEN_OVER = "taken by an on-demand renter"
    HOST_GONE = "ended by the host"


@dataclass(frozen=True, slots=True)
class OrderRequest:
    """A valid body of `create_order`."""

    server_id: int
    kind: OrderKind
    currency: str
    image: str
    bid_per_day: Decimal | None = None
    required_price: Decimal | None = None
    ports: Mapping[str, str] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    ssh_password: str | None = field(default=None, repr=False)
    ssh_key: str | None = None
    jupyter_token: str | None = field(default=None, repr=False)
    command: str | None = None
    has_ssh_entrypoint: bool = False


@dataclass(slots=True)
class SandboxOrder:
    id: int
    server_id: int
    owner_id: int
    request: OrderRequest
    currency: str
    ct: int
    """Creation, simulated unix seconds: the origin of all charging."""
    mrl_s: int
    segments: list[Segment]
    fee_percent: Decimal
    creation_fee: Decimal
    original_price_usd: Decimal
    visible_real_s: float
    """From when `my_orders` shows it."""
    address_real_s: float
    """From when it has an address."""
    boot_real_s: float
    """From when its node is started."""
    charge_interval_s: int = 60
    bid_per_day: Decimal | None = None
    """The spot price now; None for on-demand."""
    is_active: bool = True
    """False while a spot order waits for its machine."""
    ended_s: int | None = None
    end_reason: EndReason | None = None
    charged_s_final: int | None = None
    linger_polls: int = 0
    """Further polls of the plain list that still show it after a cancel."""
    hidden_polls: int = 0
    """Further polls that do not show it although it lives (fault A9)."""
    contested_s: float = 0.0
    """Up to when it is known what other renters did to it (spot)."""
    lowered_s: float | None = None
    """When its spot price was last lowered."""
    truth_server_id: int | None = None
    """Another server's hardware is behind it (fault A13)."""
    ssh_port: int | None = None
    is_deployed: bool = False
    on_gigaspot: bool = False

    @property
    def kind(self) -> OrderKind:
        return self.request.kind

    @property
    def is_spot(self) -> bool:
        return self.request.kind is OrderKind.SPOT

    def is_live(self) -> bool:
        return self.ended_s is None

    @property
    def price_per_day(self) -> Decimal:
        """The agreed price: for a waiting spot order the bid, though it is not charged."""
        return self.bid_per_day if self.bid_per_day is not None else self.segments[0].price_per_day

    @property
    def limit_s(self) -> int:
        """The instant at which the longest rental is reached."""
        return self.ct + self.mrl_s

    def charged_s_at(self, now_s: float) -> int:
        """The seconds of all intervals that are complete."""
        if self.charged_s_final is not None:
            return self.charged_s_final
        return max(0, (int(now_s) - self.ct) // self.charge_interval_s) * self.charge_interval_s

    def bill_at(self, now_s: float) -> Bill:
        return bill_for(
            self.charged_s_at(now_s),
            self.segments,
            fee_percent=self.fee_percent,
            creation_fee=self.creation_fee,
        )

    def charge_from_now(self, price_per_day: Decimal, now_s: float) -> None:
        """Change the price: the running interval is charged at what is in force when it completes."""
        from_s = self.charged_s_at(now_s)
        kept = [segment for segment in self.segments if segment.from_s < from_s]
        self.segments = [*kept, Segment(from_s, price_per_day)]

    def end(self, at_s: int, reason: EndReason, *, is_last_interval_unpaid: bool = False) -> None:
        if not self.is_live():
            raise ValueError(f"order {self.id} has already ended")
        charged_s = self.charged_s_at(at_s) - (self.charge_interval_s if is_last_interval_unpaid else 0)
        self.ended_s, self.end_reason, self.charged_s_final = at_s, reason, max(0, charged_s)
        self.is_active = False

    def to_json(self) -> dict[str, Any]:
        """For the sandbox's own file only: it holds the order's password."""
        plain: dict[str, Any] = _plain(asdict(self))
        return plain

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> SandboxOrder:
        values = {f.name: stored[f.name] for f in fields(cls)}
        request = dict(values["request"])
        for name in ("bid_per_day", "required_price"):
            request[name] = None if request[name] is None else Decimal(request[name])
        request["kind"] = OrderKind(request["kind"])
        values["request"] = OrderRequest(**request)
        values["segments"] = [
            Segment(part["from_s"], Decimal(part["price_per_day"])) for part in values["segments"]
        ]
        for name in ("fee_percent", "creation_fee", "original_price_usd"):
            values[name] = Decimal(values[name])
        values["bid_per_day"] = None if values["bid_per_day"] is None else Decimal(values["bid_per_day"])
        values["end_reason"] = None if values["end_reason"] is None else EndReason(values["end_reason"])
        return cls(**values)


def _plain(value: Any) -> Any:  # values of a dataclass tree: JSON types, Decimal and str enums
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value

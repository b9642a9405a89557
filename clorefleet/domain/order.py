"""What the market bills."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from clorefleet.domain.identity import OrderId, OwnerId, ServerId
from clorefleet.domain.money import Currency, Money, Rate
from clorefleet.domain.secret import NO_SECRET, Secret


@dataclass(frozen=True, slots=True)
class SshAddress:
    """Where the node's SSH answers: relay names tried in turn, one port."""

    hosts: tuple[str, ...]
    port: int


@dataclass(frozen=True, slots=True)
class Order:
    """One rental in the market's own list: the truth about spending."""

    order_id: OrderId
    server_id: ServerId
    owner_id: OwnerId | None
    price: Rate
    """Per day in the billed currency, without fees."""
    spend: Money
    """Charged so far by the market's own count."""
    creation_fee: Money | None
    created_at: datetime | None
    max_rental_s: int | None
    image: str
    is_spot: bool
    is_expired: bool
    """Ended. Only seen when completed orders are asked for."""
    is_online: bool | None
    ssh: SshAddress | None
    """None until the market has published an address."""
    container_state: int | None
    """2 = deployed, 0 or 1 = still deploying, None = the market did not say."""
    gpu_summary: str = ""

    @property
    def currency(self) -> Currency:
        return self.price.currency


@dataclass(frozen=True, slots=True)
class OrderList:
    """One reading of `my_orders`."""

    orders: tuple[Order, ...]
    read_at: datetime
    includes_completed: bool = False
    unreadable: int = 0
    """Records that could not be read: while there are any, a missing order proves nothing."""

    def live(self) -> tuple[Order, ...]:
        return tuple(order for order in self.orders if not order.is_expired)

    def by_id(self, order_id: OrderId) -> Order | None:
        """The order of that number; the live one, should a market have given a number twice."""
        found = [order for order in self.orders if order.order_id == order_id]
        return next((order for order in found if not order.is_expired), found[0] if found else None)

    def on_server(self, order_id: OrderId, server_id: ServerId) -> Order | None:
        """The order of that number on that server: what an old number means now is another order."""
        found = [each for each in self.orders if (each.order_id, each.server_id) == (order_id, server_id)]
        return next((order for order in found if not order.is_expired), found[0] if found else None)


@dataclass(frozen=True, slots=True)
class Wallet:
    """One balance; `balance` is None for wallets that the account no longer uses."""

    currency: Currency
    balance: Money | None


@dataclass(frozen=True, slots=True)
class RentRequest:
    """All that `create_order` needs, with the price that was approved."""

    server_id: ServerId
    is_spot: bool
    approved_price: Rate
    """Per day, in the currency to be billed: the listed price, or the bid."""
    image: str
    ports: tuple[tuple[int, str], ...] = ((22, "tcp"),)
    env: tuple[tuple[str, str], ...] = ()
    ssh_public_key: str = ""
    ssh_password: Secret = NO_SECRET
    command: Secret = NO_SECRET
    """The start-up script. It may hold the server's host key, and is therefore never shown."""
    needs_ssh_entrypoint: bool = False

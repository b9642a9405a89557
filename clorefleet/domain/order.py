"""What the market bills."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from functools import cached_property

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
class StrangeOrder:
    """An order on the account that no lease explains, as the store remembers it."""

    order_id: OrderId
    server_id: ServerId
    usd_per_day: Decimal | None
    """Without fee, at the coin's rate of then; None where that was not known."""
    first_seen_at: datetime


NO_SERVER = ServerId(0)
"""Of an order whose record does not say on which server it is."""


def is_same_image(told: str, asked: str) -> bool:
    """Whether both name one container image: Docker Hub's own name, `library/` and `:latest` may be left out.

    The market echoes what it was sent [assumed]; another spelling of it must not hide an order that bills.
    """
    return told == asked or _spelled_out(told) == _spelled_out(asked)


def _spelled_out(image: str) -> str:
    for prefix in ("https://", "index.docker.io/", "docker.io/", "library/"):
        image = image.removeprefix(prefix)
    name = image.rpartition("/")[2]
    return image if ":" in name or "@" in name else f"{image}:latest"


@dataclass(frozen=True)
class OrderList:
    """One reading of `my_orders`."""

    orders: tuple[Order, ...]
    read_at: datetime
    includes_completed: bool = False
    unreadable: int = 0
    """Records that could not be read, or do not say on which server they are: while there are any, a missing
    order proves nothing."""
    told_at: datetime | None = None
    """When the market answered, by its own clock; None where it did not say."""

    def live(self) -> tuple[Order, ...]:
        """Each once: a market may list one twice (A10)."""
        return self._live

    @cached_property
    def _live(self) -> tuple[Order, ...]:
        found = {(each.order_id, each.server_id): each for each in self.orders if not each.is_expired}
        return tuple(found.values())

    def live_on(self, server_id: ServerId) -> Sequence[Order]:
        """Of `live()`, those on one server: one, as nearly always."""
        return self._live_on.get(server_id, ())

    @cached_property
    def _live_on(self) -> dict[ServerId, list[Order]]:
        return _by_server(self.live())

    def all_on(self, server_id: ServerId) -> Sequence[Order]:
        """Of `orders`, those on one server; ended ones too."""
        return self._all_on.get(server_id, ())

    @cached_property
    def _all_on(self) -> dict[ServerId, list[Order]]:
        return _by_server(self.orders)

    def by_id(self, order_id: OrderId) -> Order | None:
        """The order of that number; the live one, should a market have given a number twice."""
        return _live_or_first(self._by_number.get(order_id, ()))

    def on_server(self, order_id: OrderId, server_id: ServerId) -> Order | None:
        """The order of that number on that server: what an old number means now is another order."""
        found = self._by_number.get(order_id, ())
        if len(found) == 1:  # as nearly always
            return found[0] if found[0].server_id in (server_id, NO_SERVER) else None
        return _live_or_first([each for each in found if each.server_id == server_id])

    @cached_property
    def _by_number(self) -> dict[OrderId, list[Order]]:
        """Asked for each lease in each tick: going through the list each time is what a large fleet feels."""
        found: dict[OrderId, list[Order]] = {}
        for order in self.orders:
            found.setdefault(order.order_id, []).append(order)
        return found


def _by_server(orders: Sequence[Order]) -> dict[ServerId, list[Order]]:
    found: dict[ServerId, list[Order]] = {}
    for order in orders:
        found.setdefault(order.server_id, []).append(order)
    return found


def _live_or_first(orders: Sequence[Order]) -> Order | None:
    return next((order for order in orders if not order.is_expired), orders[0] if orders else None)


@dataclass(frozen=True, slots=True)
class Wallet:
    """One balance; `balance` is None for wallets that the account no longer uses."""

    currency: Currency
    balance: Money | None


def always_timely() -> bool:
    return True


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
    is_timely: Callable[[], bool] = field(default=always_timely, compare=False, repr=False)
    """Asked when the request's turn has come, right before it leaves. Where it says no, nothing is sent: a
    process that was paused may meanwhile have been given up."""

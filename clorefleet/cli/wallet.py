"""`clorefleet wallet`: balances, and how long they last."""

from __future__ import annotations

from decimal import Decimal

import typer

from clorefleet.cli.context import options
from clorefleet.cli.output import note, print_json, table, usd
from clorefleet.cli.progress import working

app = typer.Typer(rich_markup_mode=None, add_completion=False)
LOW_HOURS = 12
"""As the daemon's own limit (`FleetLimits.low_wallet`), which would import the store here."""


@app.command()
def wallet() -> None:
    """Show the balances and how long they last.

    The runway counts all orders of the account that bill in that currency, ours or not, with the renter's fee
    as documented.

    Example:

      clorefleet wallet --sandbox
    """
    from clorefleet.config.profile import connect
    from clorefleet.domain.money import Currency
    from clorefleet.domain.offer import DOCUMENTED_FEES
    from clorefleet.wiring import make_market

    with working("Asking the market"):
        market = make_market(connect(options.profile()))
        wallets = market.fetch_wallets()
        orders = market.fetch_orders()
    prices: dict[Currency, Decimal] = {}
    burn: dict[Currency, Decimal] = {}
    for order in orders.live():
        price, currency = order.price.amount, order.currency
        fee = DOCUMENTED_FEES.percent(currency, is_spot=order.is_spot)
        prices[currency] = prices.get(currency, Decimal(0)) + price
        burn[currency] = burn.get(currency, Decimal(0)) + price * (1 + fee / 100)
    rows, documents = [], []
    for each in wallets:
        balance = None if each.balance is None else each.balance.amount
        daily = prices.get(each.currency, Decimal(0))
        runway = None if balance is None or daily == 0 else balance / burn[each.currency]
        documents.append(
            {
                "currency": each.currency,
                "balance": balance,
                "orders_per_day": daily,
                "runway_days": None if runway is None else round(runway, 2),
            }
        )
        rows.append(
            (
                each.currency,
                "-" if balance is None else _amount(balance, each.currency),
                _amount(daily, each.currency) if daily else "-",
                "-" if runway is None else f"{runway:.1f} days",
            )
        )
    if options.as_json:
        print_json({"wallets": documents, "live_orders": len(orders.live())})
        return
    table(("CURRENCY", "BALANCE", "ORDERS/DAY", "LASTS"), rows, right=(1, 2, 3))
    note(f"{len(orders.live())} live order(s). Orders per day are without the renter's fee; LASTS counts it.")
    for each, document in zip(wallets, documents, strict=True):
        lasts = document["runway_days"]
        if isinstance(lasts, Decimal) and lasts * 24 < LOW_HOURS:
            note(
                f"The {each.currency} wallet lasts {lasts * 24:.1f} hours: at zero the market ends the "
                "orders and their data is lost. Add funds, or stop something."
            )


def _amount(amount: Decimal, currency: str) -> str:
    return usd(amount) if currency == "USD" else f"{amount:,.8f}".rstrip("0").rstrip(".")

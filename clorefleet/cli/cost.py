"""`clorefleet cost`: what was spent, lease by lease."""

from __future__ import annotations

from decimal import Decimal

import typer

from clorefleet.cli.context import options
from clorefleet.cli.output import age, note, print_json, table, usd

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def cost(
    name: str = typer.Argument("", help="A deployment; default: all."),
) -> None:
    """Show what was spent, lease by lease.

    A lease that has ended shows the market's own final bill (settled). One that runs shows the larger of
    our count and the market's counter. A change of price or of a coin's rate begins another line. USD at the
    rate recorded with the line. Below: how far the bills are from our own count, and the wallet from the
    ledger.

    Example:

      clorefleet cost --sandbox
    """
    from clorefleet.config.profile import clock_of, store_url
    from clorefleet.domain.identity import DeploymentId
    from clorefleet.store.database import open_store

    profile = options.profile()
    now = clock_of(profile).now()
    with open_store(store_url(profile)).read() as tx:
        segments = tx.segments(DeploymentId(name) if name else None)
        readings = tx.wallet_readings()
        leases = {lease.lease_id: lease for lease in tx.leases(DeploymentId(name) if name else None)}
    total = sum((segment.cost_usd(now) for segment in segments), Decimal(0))
    rows, documents = [], []
    for segment in segments:
        lease = leases[segment.lease_id]
        bill = segment.cost(now)
        state = "settled" if segment.settled_at else "ended" if segment.ended_at else "running"
        lasted = (segment.ended_at or now) - segment.started_at
        rows.append(
            (
                segment.order_id,
                segment.deployment_id,
                lease.plan.offer.gpu_summary[:20],
                f"{segment.price}",
                age(lasted),
                state,
                usd(segment.cost_usd(now), 4),
            )
        )
        documents.append(
            {
                "order_id": segment.order_id,
                "lease_id": segment.lease_id,
                "deployment_id": segment.deployment_id,
                "server_id": lease.server_id,
                "price_per_day": segment.price.amount,
                "currency": segment.currency,
                "fee_percent": segment.fee_percent,
                "started_at": segment.started_at,
                "ended_at": segment.ended_at,
                "state": state,
                "cost": bill.amount,
                "estimate": segment.estimate(now).amount,
                "drift": segment.drift,
                "market_spend": segment.market_spend,
                "usd_per_unit": segment.usd_per_unit,
                "rate_source": segment.rate_source,
                "cost_usd": segment.cost_usd(now),
                "reason_ended": lease.reason,
            }
        )
    if options.as_json:
        print_json(
            {
                "segments": documents,
                "total_usd": total,
                "at": now,
                "wallets": [
                    {
                        "currency": each.currency,
                        "read_at": each.read_at,
                        "balance": each.balance.amount,
                        "since": each.day_read_at,
                        "drift": each.drift,
                        "runway_days": each.runway_days,
                    }
                    for each in readings
                ],
            }
        )
        return
    table(("ORDER", "DEPLOYMENT", "GPUS", "PRICE", "LASTED", "BILL", "USD"), rows, right=(0, 4, 6))
    note(f"{usd(total, 4)} in all.")
    drift = sum((s.drift * s.usd_per_unit for s in segments if s.drift is not None), Decimal(0))
    if any(segment.drift is not None for segment in segments):
        note(f"Settled bills are {_signed(drift)} beside our own count of minutes.")
    for each in readings:
        if each.drift:
            note(
                f"The {each.currency} wallet and the ledger differ by {each.drift.normalize():f} since "
                f"{each.day_read_at:%H:%M} UTC: orders made by hand, a deposit, or the market's rounding."
            )


def _signed(amount: Decimal) -> str:
    return f"{'-' if amount < 0 else '+'}{usd(abs(amount), 4)}"

"""`clorefleet offers`: what the market has."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

import typer

from clorefleet.cli.context import options
from clorefleet.cli.output import gib, note, print_json, table, usd
from clorefleet.cli.progress import working

if TYPE_CHECKING:
    from clorefleet.domain.offer import MarketView, Offer

app = typer.Typer(rich_markup_mode=None, add_completion=False)
SORTS = ("price", "price-per-gpu", "ram", "vram", "reliability", "download")


@app.command()
def offers(
    gpu: str = typer.Option("", "--gpu", help="GPU name contains this, for instance 4090 or H200."),
    min_gpus: int = typer.Option(1, "--min-gpus", min=1, help="At least this many GPUs."),
    max_gpus: int = typer.Option(0, "--max-gpus", min=0, help="At most this many GPUs."),
    min_vram: float = typer.Option(0, "--min-vram", min=0, help="GiB of one GPU, as offered."),
    min_ram: float = typer.Option(0, "--min-ram", min=0, help="GiB of RAM."),
    max_price: str = typer.Option("", "--max-price", help="For instance 5/day or 0.2/hour."),
    min_cuda: str = typer.Option("", "--min-cuda", help="For instance 12.8."),
    min_reliability: float = typer.Option(
        0, "--min-reliability", min=0, max=1, help="Share of the time that the host was up."
    ),
    country: str = typer.Option("", "--country", help="ISO codes, separated by commas: DE,SE."),
    spot: bool = typer.Option(False, "--spot", help="Show and sort by the least spot bid."),
    rented: bool = typer.Option(False, "--rented", help="Also servers that others have now."),
    flagged: bool = typer.Option(False, "--flagged", help="Also offers that cannot be trusted."),
    sort: str = typer.Option("price", "--sort", help=" | ".join(SORTS)),
    limit: int = typer.Option(20, "--limit", "-n", min=1, max=10_000, help="How many to show."),
) -> None:
    """List servers on the market.

    Prices are per day for the whole server in USD, without the renter's fee.

    Examples:

      clorefleet offers --gpu 4090 --min-gpus 2 --max-price 10/day

      clorefleet offers --min-ram 400 --sort ram --sandbox
    """
    from clorefleet.cli.nearest import did_you_mean
    from clorefleet.cli.requirement import countries
    from clorefleet.config.profile import connect
    from clorefleet.domain.errors import BadInput
    from clorefleet.domain.money import parse_budget
    from clorefleet.wiring import make_market

    if sort not in SORTS:
        raise BadInput(
            f"I cannot sort by “{sort[:40]}”.",
            remedy=f"{did_you_mean(sort, SORTS)}Use one of {', '.join(SORTS)}.",
        )
    ceiling = parse_budget(max_price).per_day.amount if max_price else None
    cuda = _cuda(min_cuda)
    wanted_countries = countries(country)
    with working("Reading the market"):
        view = make_market(connect(options.profile(), needs_key=False)).fetch_view()

    def wanted(offer: Offer) -> bool:
        price = _price(view, offer, spot=spot)
        vram = max((g.claimed_vram_gib or Decimal(0) for g in offer.gpus), default=Decimal(0))
        return (
            gpu.lower() in offer.gpu_summary.lower()
            and offer.gpu_count >= min_gpus
            and (max_gpus == 0 or offer.gpu_count <= max_gpus)
            and vram >= Decimal(str(min_vram))
            and (offer.ram_bytes or 0) >= min_ram * (1 << 30)
            and (ceiling is None or (price is not None and price <= ceiling))
            and (cuda is None or (offer.cuda_version is not None and offer.cuda_version >= cuda))
            and (offer.reliability or Decimal(0)) >= Decimal(str(min_reliability))
            and (not wanted_countries or offer.country in wanted_countries)
            and (rented or not offer.is_rented)
            and (flagged or not offer.flags)
            and (not spot or price is not None)
        )

    found = sorted(
        (offer for offer in view.offers if wanted(offer)),
        key=lambda offer: (_sort_key(view, offer, sort, spot=spot), offer.server_id),
    )
    shown = found[:limit]
    if options.as_json:
        from clorefleet.store.codec import encode

        print_json(
            {
                "offers": [
                    encode(offer) | {"usd_per_day_effective": _price(view, offer, spot=spot)}
                    for offer in shown
                ],
                "matching": len(found),
                "seen": len(view.offers),
                "read_at": view.read_at,
            }
        )
        return
    if not shown:
        note(
            f"None of {len(view.offers):,} offers matches. Loosen a filter; --rented and --flagged add some."
        )
        return
    table(
        ("SERVER", "GPUS", "VRAM", "RAM", "CUDA", "MBIT/S", "REL", "CC", "USD/DAY"),
        [_row(view, offer, spot=spot) for offer in shown],
        right=(0, 2, 3, 4, 5, 6, 8),
    )
    note(f"{len(shown)} of {len(found)} matching, {len(view.offers)} on the market.")


def _row(view: MarketView, offer: Offer, *, spot: bool) -> tuple[object, ...]:
    price = _price(view, offer, spot=spot)
    vram = offer.gpus[0].claimed_vram_gib if offer.gpus else None
    mark = "!" if offer.flags else ""
    return (
        offer.server_id,
        offer.gpu_summary[:30] + mark,
        "?" if vram is None else f"{vram:.0f} GiB",
        gib(offer.ram_bytes),
        "?" if offer.cuda_version is None else ".".join(map(str, offer.cuda_version)),
        "?" if offer.down_mbit_s is None else f"{offer.down_mbit_s:.0f}",
        "?" if offer.reliability is None else f"{offer.reliability:.2f}",
        offer.country,
        "?" if price is None else usd(price),
    )


def _price(view: MarketView, offer: Offer, *, spot: bool) -> Decimal | None:
    """The cheapest way to pay, in USD per day."""
    prices = offer.spot if spot else offer.on_demand
    in_usd = [rate.amount for rate in (view.rates.to_usd(price) for price in prices) if rate is not None]
    return min(in_usd, default=None)


def _sort_key(view: MarketView, offer: Offer, sort: str, *, spot: bool) -> Decimal:
    price = _price(view, offer, spot=spot)
    unknown = Decimal("Infinity")
    match sort:
        case "price":
            return unknown if price is None else price
        case "price-per-gpu":
            return unknown if price is None or not offer.gpus else price / offer.gpu_count
        case "ram":
            return -Decimal(offer.ram_bytes or 0)
        case "vram":
            return -sum((g.claimed_vram_gib or Decimal(0) for g in offer.gpus), Decimal(0))
        case "reliability":
            return -(offer.reliability or Decimal(0))
        case _:
            return -(offer.down_mbit_s or Decimal(0))


def _cuda(text: str) -> tuple[int, int] | None:
    from clorefleet.domain.errors import BadInput

    if not text:
        return None
    major, _, minor = text.partition(".")
    if not major.isdigit() or (minor and not minor.isdigit()):
        raise BadInput(f"“{text[:20]}” is not a CUDA version.", remedy="Write for instance --min-cuda 12.8.")
    return int(major), int(minor or 0)

"""`clorefleet simulate`: what a fleet would have cost over weeks of a traffic trace. Rents nothing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from clorefleet.cli.context import options
from clorefleet.cli.output import note, print_json, say, say_verbatim, table, usd
from clorefleet.cli.progress import working

if TYPE_CHECKING:
    from decimal import Decimal

    from clorefleet.domain.deployment import Deployment
    from clorefleet.domain.plan import Plan, Requirement
    from clorefleet.simulation.traffic.compare import Comparison
    from clorefleet.simulation.traffic.market import PriceHistory
    from clorefleet.simulation.traffic.replay import Service

app = typer.Typer(rich_markup_mode=None, add_completion=False)
_PLOT_WIDTH, _PLOT_HEIGHT = 56, 12
_PEAK_REPLICAS = 4.0
REASONS_SHOWN = 4


@app.command()
def simulate(
    fleet_or_model: str = typer.Argument(
        "fleet.toml", help="A fleet file, or a name from `clorefleet models`."
    ),
    trace: str = typer.Option(
        "synthetic", "--trace", help="A CSV of requests, or `synthetic`: a small made-up one."
    ),
    weeks: int = typer.Option(2, "--weeks", min=1, max=26, help="Weeks that are measured."),
    week: str = typer.Option("office", "--week", help="Shape of the week: office | evening | flat."),
    scale: float = typer.Option(
        0,
        "--scale",
        min=0,
        max=10_000,
        help="Times the trace's rate at the peak; 0: the peak needs about 4 replicas.",
    ),
    seed: int = typer.Option(1, "--seed", min=0, help="The same seed gives the same figures."),
    prices: str = typer.Option(
        "seeded",
        "--prices",
        help="seeded | steady | seen (see `prices`) | a CSV with a column usd_per_day, one row an hour.",
    ),
    budget: str = typer.Option("", "--budget", "-b", help="A ceiling for one replica's plan: 16/day."),
    prefer: str = typer.Option(
        "value", "--prefer", help="Of a model's plans: value | cost | speed | quality."
    ),
    replicas_max: int = typer.Option(16, "--max", min=1, max=64, help="Replicas at most, for a model."),
    slo_wait: float = typer.Option(10, "--slo-wait", min=0, help="Seconds a request may wait for a place."),
    slo_share: float = typer.Option(
        0.99, "--slo-share", min=0.5, max=0.9999, help="Share of requests that must not wait longer."
    ),
    with_optimum: bool = typer.Option(
        False, "--optimum", help="Compare with perfect foresight too (an integer program; takes a minute)."
    ),
    explain: bool = typer.Option(False, "--explain", help="Show the first decisions with their reasons."),
    plot: bool = typer.Option(True, "--plot/--no-plot", help="Draw the last week."),
) -> None:
    """Simulate what a fleet would have cost over weeks of traffic, under several policies.

    Runs the daemon's own decisions against a load that is composed from a trace. Nothing is rented, and
    every figure is simulated: speeds are predicted, the week's shape is assumed, both are printed.

    Examples:

      clorefleet simulate

      clorefleet simulate qwen3-30b-a3b --sandbox

      clorefleet simulate fleet.toml --trace azure-llm-2023-conv.csv --weeks 4 --sandbox
    """
    from clorefleet.simulation.traffic.trace import read_trace

    traffic = read_trace(trace)  # before anything is fetched: a bad file is told at once
    _check_prices(prices)
    results: list[tuple[str, Plan, Comparison, Deployment | None]] = []
    with working("Reading the market and planning"):
        subjects = _subjects(fleet_or_model, budget, prefer)
    for name, plan, deployment in subjects:
        service = _service(plan, deployment, replicas_max, slo_wait, slo_share)
        history = _prices(prices, plan, weeks, seed)
        with working(f"Simulating {weeks} week(s) of {name} under each policy"):
            found = _compare(traffic, service, history, weeks, week, scale, seed, deployment, with_optimum)
        results.append((name, plan, found, deployment))
    if options.as_json:
        print_json({"simulated": True, "deployments": [_document(*each[:3]) for each in results]})
        return
    for name, plan, comparison, deployment in results:
        _show(name, plan, comparison, deployment, explain=explain, plot=plot)


def _subjects(fleet_or_model: str, budget: str, prefer: str) -> list[tuple[str, Plan, Deployment | None]]:
    """Name, plan and wish of each deployment that is to be simulated.

    Raises:
        NothingFits: no server runs one of them.
    """
    from datetime import UTC, datetime

    from clorefleet.cli.plan import check_model, nothing_fits
    from clorefleet.cli.requirement import Wishes
    from clorefleet.config.profile import connect
    from clorefleet.wiring import make_market, make_planner

    wishes: list[tuple[str, Requirement, Deployment | None]]
    if fleet_or_model.endswith(".toml") or Path(fleet_or_model).is_file():
        from clorefleet.config.fleet_file import load_fleet_file
        from clorefleet.domain.deployment import Deployment, Desired, Origin
        from clorefleet.domain.errors import BadInput

        file = load_fleet_file(Path(fleet_or_model))
        disabled = [each.deployment_id for each in file.deployments if not each.is_enabled]
        if disabled:
            note(f"Not simulated, since the file disables it: {', '.join(disabled)}.")
        if len(disabled) == len(file.deployments):
            raise BadInput(
                f"{fleet_or_model} has no deployment to simulate.",
                remedy="Enable one there, or name a model: `clorefleet simulate MODEL`.",
            )
        wishes = [
            (
                each.deployment_id,
                each.requirement,
                Deployment(
                    deployment_id=each.deployment_id,
                    requirement=each.requirement,
                    replicas=each.replicas,
                    replicas_max=each.replicas_max,
                    desired=Desired.RUNNING,
                    created_at=datetime.now(UTC),
                    schedule=each.schedule,
                    scale=each.scale,
                    idle=each.idle,
                    origin=Origin.FILE,
                ),
            )
            for each in file.deployments
            if each.is_enabled
        ]
    else:
        wish = Wishes(model=fleet_or_model, budget=budget, prefer=prefer).requirement()
        wishes = [(fleet_or_model, check_model(wish), None)]
    connection = connect(options.profile(), needs_key=False)
    view = make_market(connection).fetch_view()
    planner = make_planner(connection)
    found: list[tuple[str, Plan, Deployment | None]] = []
    for name, requirement, deployment in wishes:
        report = planner(requirement, view)
        if not report.plans:
            raise nothing_fits(report)
        found.append((name, report.plans[0], deployment))
    return found


def _service(
    plan: Plan, deployment: Deployment | None, replicas_max: int, slo_wait: float, slo_share: float
) -> Service:
    from clorefleet.planner.capacity import ReplicaCapacity
    from clorefleet.planner.cost import start_up_of
    from clorefleet.planner.mix import capacity_of
    from clorefleet.simulation.traffic.replay import Service

    wait = slo_wait
    if deployment is not None and deployment.scale is not None:
        told = deployment.scale.time_to_first_token_max
        wait = slo_wait if told is None else told.total_seconds()
    return Service(
        capacity=ReplicaCapacity(capacity_of(plan), plan.setup.concurrency),
        ready_after_s=start_up_of(plan.offer, plan.setup).total_s,
        once_usd=plan.price.creation_fee * plan.price.usd_per_unit,
        slo_wait_s=wait,
        slo_share=slo_share,
        replicas_max=replicas_max if deployment is None else max(1, deployment.bounds.replicas_max),
    )


def _check_prices(prices: str) -> None:
    if prices not in ("seeded", "steady", "seen"):
        _price_file(prices)


def _price_file(path: str) -> PriceHistory:
    from clorefleet.simulation.traffic.market import read_prices

    return read_prices(path)


def _prices(prices: str, plan: Plan, weeks: int, seed: int) -> PriceHistory:
    from clorefleet.simulation.traffic.compare import HISTORY_WEEKS
    from clorefleet.simulation.traffic.market import seeded, steady

    running = plan.price.running_usd_per_day
    if prices == "steady":
        return steady(running)
    if prices == "seeded":
        return seeded(running, hours=(weeks + HISTORY_WEEKS) * 168, seed=seed)
    return _seen(plan) if prices == "seen" else _price_file(prices)


def _seen(plan: Plan) -> PriceHistory:
    """
    Raises:
        BadInput: the history has nothing of the plan's GPU.
    """
    from clorefleet.config.profile import store_url
    from clorefleet.domain.errors import BadInput
    from clorefleet.planner.gpus import load_gpus
    from clorefleet.planner.prices import by_hour
    from clorefleet.simulation.traffic.market import seen
    from clorefleet.store.database import open_store

    first = plan.offer.gpus[0]
    model = load_gpus().find(first.name, first.claimed_vram_gib)
    with open_store(store_url(options.profile())).read() as tx:
        rows = [
            row
            for row in tx.prices()
            if model is not None and row.gpu == model.name and row.is_spot is plan.price.is_spot
        ]
    hours = by_hour(rows)
    if not hours:
        raise BadInput(
            f"The price history has nothing of {first.name[:40]}.",
            remedy="`clorefleet prices` begins one; the daemon goes on with it. Or use --prices seeded.",
        )
    return seen(hours, gpus=plan.offer.gpu_count, fee_percent=plan.price.fee_percent)


def _compare(
    traffic: object,
    service: Service,
    history: PriceHistory,
    weeks: int,
    week: str,
    scale: float,
    seed: int,
    deployment: Deployment | None,
    with_optimum: bool,
) -> Comparison:
    from datetime import UTC, datetime

    from clorefleet.simulation.traffic.compare import compare, scale_for
    from clorefleet.simulation.traffic.trace import Trace
    from clorefleet.simulation.traffic.week import a_monday

    assert isinstance(traffic, Trace)  # noqa: S101 - for the type checker; the module is imported late
    peak = min(_PEAK_REPLICAS, service.replicas_max * 0.75)
    return compare(
        traffic,
        service,
        history,
        weeks=weeks,
        scale=scale or scale_for(traffic, service, peak),
        profile=week,
        seed=seed,
        # A fixed Monday: the same command gives the same figures on every day.
        begins_at=a_monday(datetime(2026, 1, 7, tzinfo=UTC)),
        deployment=deployment,
        with_optimum=with_optimum,
    )


def _document(name: str, plan: Plan, comparison: Comparison) -> dict[str, object]:
    best = comparison.optimum
    service = comparison.service
    return {
        "deployment": name,
        "model": plan.setup.model,
        "server": plan.offer.gpu_summary,
        "load": comparison.how,
        "prices": comparison.prices,
        "replica": {
            "tokens_per_s": service.capacity.tokens_per_s,
            "places": service.capacity.places,
            "ready_after_s": service.ready_after_s,
            "is_predicted": not service.capacity.is_measured,
        },
        "slo": {"wait_s": service.slo_wait_s, "share": service.slo_share},
        "policies": [
            {
                "policy": each.policy,
                "usd": each.usd,
                "requests": each.requests,
                "attained": each.attained,
                "turned_away": each.turned_away,
                "starts": each.starts,
                "replicas_mean": sum(each.held) / max(1, len(each.held)),
                "replicas_max": max(each.held, default=0),
            }
            for each in comparison.outcomes
        ],
        "optimum": None
        if best is None
        else {"usd": best.usd, "bound_usd": best.bound_usd, "status": best.status},
    }


def _show(
    name: str,
    plan: Plan,
    comparison: Comparison,
    deployment: Deployment | None,
    *,
    explain: bool,
    plot: bool,
) -> None:
    from clorefleet.simulation.traffic.compare import HISTORY_WEEKS

    service = comparison.service
    say(f"Simulated: {name}, {plan.setup.checkpoint} on {plan.setup.engine}, {plan.offer.gpu_summary}.")
    say(
        f"One replica, predicted: {service.capacity.tokens_per_s:,.0f} tok/s, "
        f"{service.capacity.places} requests at once, {usd(plan.price.running_usd_per_day)}/day, serves "
        f"{service.ready_after_s / 60:.0f} min after its order."
    )
    say(f"Load: {comparison.how}; the first {HISTORY_WEEKS} are history, the rest is measured.")
    say(f"Prices: {comparison.prices}.")
    say(f"SLO: {service.slo_share:.2%} of requests wait {service.slo_wait_s:g} s at most for a place.")
    say()
    first = next(each for each in comparison.outcomes if each.policy == "always on")
    rows = []
    for each in comparison.outcomes:
        mean = sum(each.held) / max(1, len(each.held))
        rows.append(
            (
                each.policy,
                usd(each.usd),
                "" if each is first else _against(each.usd, first.usd),
                f"{each.attained:.2%}" + ("" if each.attained >= service.slo_share else " !"),
                each.starts,
                f"{mean:.2f}",
                max(each.held, default=0),
            )
        )
    table(
        ("POLICY", "USD*", "VS ALWAYS ON", "IN TIME", "STARTS", "REPLICAS", "MOST"),
        rows,
        right=(1, 2, 3, 4, 5, 6),
    )
    note("* simulated, over the measured weeks. `!`: below the SLO.")
    for line in _advice(comparison, deployment):
        note(line)
    best = comparison.optimum
    if best is not None:
        last = comparison.outcomes[-1]
        found = "?" if best.usd is None else usd(best.usd)
        say(
            f"Perfect foresight at the same SLO as “{last.policy}”: {found} ({best.status.lower()}, "
            f"no less than {usd(best.bound_usd)}); that policy cost {last.usd / best.bound_usd - 1:.1%} more."
        )
    if explain:
        _explain(comparison)
    if plot:
        say()
        say_verbatim(_drawn(comparison))
    say()


def _against(amount: Decimal, whole: Decimal) -> str:
    """By how much it is above or below; 0 % has no sign."""
    if not whole:
        return ""
    share = round(float(amount / whole - 1) * 100)
    return f"{share:+d}%" if share else "0%"


def _advice(comparison: Comparison, deployment: Deployment | None) -> list[str]:
    """What the figures do not say by themselves."""
    from clorefleet.domain.schedule import Bounds

    service, outcomes = comparison.service, comparison.outcomes
    lines = []
    if (
        deployment is not None
        and deployment.bounds == Bounds(1, 1)
        and not (deployment.idle or deployment.schedule)
    ):
        lines.append(
            "One replica is all that the file allows, so that no policy can differ. "
            "Let load choose: replicas = { min = 0, max = 4 } and an empty scale table."
        )
    if all(each.attained < service.slo_share for each in outcomes):
        best = max(outcomes, key=lambda each: each.attained)
        most = max(comparison.needed, default=0)
        lines.append(
            f"No policy keeps the SLO with at most {service.replicas_max} replica(s): at best "
            f"{best.attained:.1%} of requests are in time. The busiest minute needs {most}. "
            "Allow more replicas, ask for less with --scale, or take faster servers (budget, min_speed)."
        )
    return lines


def _explain(comparison: Comparison) -> None:
    for outcome in comparison.outcomes:
        shown = [each for each in outcome.reasons if each[2]][:REASONS_SHOWN]
        if shown:
            say()
            say(f"First changes of “{outcome.policy}”:")
            for at, wanted, reason in shown:
                say(f"  {at:%a %H:%M}  {wanted} wanted: {reason}")


def _drawn(comparison: Comparison) -> str:
    """The last week: replicas that the load needs, and those that serve by the last policy."""
    import plotille

    from clorefleet.simulation.traffic.week import MINUTES_A_WEEK

    outcome = comparison.outcomes[-1]
    needed = comparison.needed[-MINUTES_A_WEEK:]
    serving = outcome.serving[-MINUTES_A_WEEK:]
    step = max(1, len(needed) // (_PLOT_WIDTH * 2))
    days = [minute / 1440 for minute in range(0, len(needed), step)]
    figure = plotille.Figure()
    figure.width, figure.height = _PLOT_WIDTH, _PLOT_HEIGHT
    figure.origin = False
    figure.x_label, figure.y_label = "day", "replicas"
    figure.x_ticks_fkt = lambda value, _: f"{value:.1f}"
    figure.y_ticks_fkt = lambda value, _: f"{value:.1f}"
    most = max(*needed, *serving, 1)
    figure.set_x_limits(min_=0, max_=len(needed) / 1440)
    figure.set_y_limits(min_=0, max_=most + 0.5)
    figure.scatter(days, [max(needed[i : i + step]) for i in range(0, len(needed), step)])
    figure.plot(days, [max(serving[i : i + step]) for i in range(0, len(serving), step)])
    lines = [line.rstrip(" \u2800") for line in str(figure.show()).splitlines()]
    words = f"Last week, simulated: line = serving by “{outcome.policy}”, dots = needed by the load."
    return "\n".join([words, *lines])

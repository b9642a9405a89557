"""`clorefleet optimize`: would a cheaper server pay? Looks at the market; moves nothing itself."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import typer

from clorefleet.cli.context import options
from clorefleet.cli.output import note, print_json, say, table, usd
from clorefleet.cli.progress import working

if TYPE_CHECKING:
    from clorefleet.domain.deployment import Deployment
    from clorefleet.fleet.consolidate import Verdict
    from clorefleet.fleet.snapshot import Snapshot

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def optimize(
    deployment: str = typer.Argument("", help="Only this one; default: all."),
    explain: bool = typer.Option(False, "--explain", help="Show every move that was looked at, and why not."),
) -> None:
    """Show which replicas would pay to move to a cheaper server.

    Reads the market and the store, and changes nothing. The daemon makes such moves by itself for deployments
    of a fleet file with `[deployments.NAME.consolidate]`: the new server serves before the old one ends.

    Examples:

      clorefleet optimize --explain --sandbox

      clorefleet optimize glm-5.1
    """
    from clorefleet.cli.deployment import no_deployment
    from clorefleet.fleet.moves import move_verdicts

    with working("Reading the market and planning"):
        snapshot = _snapshot()
    chosen = [each for each in snapshot.deployments if deployment in ("", each.deployment_id)]
    if deployment and not chosen:
        raise no_deployment(deployment, (each.deployment_id for each in snapshot.deployments))
    found = [
        (each, move_verdicts(snapshot, each)) for each in chosen if snapshot.leases_of(each.deployment_id)
    ]
    if options.as_json:
        print_json([_document(each, verdict) for each, verdicts in found for verdict in verdicts])
        return
    if not any(verdicts for _, verdicts in found):
        say("Nothing serves, so nothing could move.")
        return
    for each, verdicts in found:
        _show(each, verdicts, explain=explain)


def _snapshot() -> Snapshot:
    """As a tick would see it, without looking at nodes and without deciding anything."""
    from clorefleet.config.profile import connect
    from clorefleet.domain.deployment import Desired
    from clorefleet.fleet.limits import DEFAULT_LIMITS
    from clorefleet.fleet.moves import bid_servers
    from clorefleet.fleet.observe import read_spot_markets
    from clorefleet.fleet.snapshot import Snapshot
    from clorefleet.fleet.spending import load_spending
    from clorefleet.store.database import open_store
    from clorefleet.wiring import make_market, make_planner

    connection = connect(options.profile())
    store = open_store(connection.store_url)
    now = connection.clock.now()
    with store.read() as tx:
        deployments = tuple(each for each in tx.deployments() if each.desired is Desired.RUNNING)
        leases = tx.open_leases()
        closed = tuple(
            each for each in tx.leases(since=now - DEFAULT_LIMITS.closed_memory) if not each.is_open
        )
        faulty = tx.faulty_servers(since=now - DEFAULT_LIMITS.host_fault_memory)
        cuda_found = tx.cuda_found(since=now - DEFAULT_LIMITS.host_fault_memory)
        wanted = tx.wanted()
        spending = load_spending(tx, now, open_leases=leases)
    store.dispose()
    running = [each for each in deployments if any(of.deployment_id == each.deployment_id for of in leases)]
    if not running:
        return Snapshot(now=now, deployments=deployments, leases=leases, attempts={}, intents=(), orders=None)
    market = make_market(connection)
    view = market.fetch_view()
    planner = make_planner(connection)
    plans = {
        each.deployment_id: planner(replace(each.requirement, cuda_found=cuda_found), view)
        for each in running
    }
    avoided = faulty | {lease.server_id for lease in leases}
    servers = dict.fromkeys(
        server for report in plans.values() for server in bid_servers(report.plans, avoided)
    )
    return Snapshot(
        now=now,
        deployments=deployments,
        leases=leases,
        attempts={},
        intents=(),
        orders=None,
        plans=plans,
        spot_markets=read_spot_markets(market, servers),
        closed_leases=closed,
        faulty_servers=faulty,
        wanted=wanted,
        spent_today_usd=spending.today_usd,
        # What was read just now, as the plans have it; the store's may be of days ago.
        spending=replace(
            spending.fleet,
            usd_per_unit={rate.currency: rate.usd_per_unit for rate in view.rates.rates},
        ),
    )


def _show(deployment: Deployment, verdicts: tuple[Verdict, ...], *, explain: bool) -> None:
    paying = [each for each in verdicts if each.pays]
    name = deployment.deployment_id
    if paying:
        best = paying[0]
        server = "?" if best.plan is None else best.plan.offer.server_id
        say(f"{name}: a move to server {server} pays: it {best.reason}.")
        if deployment.consolidate is None:
            note("  The daemon does not make it: the deployment has no consolidate policy.")
        else:
            note("  The daemon makes it at its next look for cheaper servers, within half an hour.")
    else:
        say(f"{name}: stays where it is; {len(verdicts)} move(s) looked at, none pays.")
    if explain:
        table(
            ("SERVER", "GPUS", "USD/DAY", "SAVES", "MOVE COSTS", "PAYS", "WHY"),
            [
                (
                    "-" if each.plan is None else each.plan.offer.server_id,
                    "-" if each.plan is None else each.plan.offer.gpu_summary[:20],
                    "-" if each.plan is None else usd(each.plan.price.running_usd_per_day),
                    usd(each.saving_usd_per_day),
                    usd(each.cost_usd),
                    "yes" if each.pays else "no",
                    each.reason,
                )
                for each in verdicts
            ],
            right=(0, 2, 3, 4),
            indent=2,
        )


def _document(deployment: Deployment, verdict: Verdict) -> dict[str, object]:
    return {
        "deployment": deployment.deployment_id,
        "lease": verdict.lease_id,
        "to_server": None if verdict.plan is None else verdict.plan.offer.server_id,
        "pays": verdict.pays,
        "reason": verdict.reason,
        "saving_usd_per_day": verdict.saving_usd_per_day,
        "cost_usd": verdict.cost_usd,
        "expected_life_s": int(verdict.expected_life.total_seconds()),
        "is_automatic": deployment.consolidate is not None,
    }

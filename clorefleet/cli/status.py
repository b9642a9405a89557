"""`clorefleet status`: what runs, in which phase, and what it costs."""

from __future__ import annotations

import time
from decimal import Decimal
from typing import TYPE_CHECKING

import typer

from clorefleet.cli.context import options
from clorefleet.cli.output import age, is_terminal, note, print_json, say, say_verbatim, table, usd

if TYPE_CHECKING:
    from clorefleet.config.profile import Profile
    from clorefleet.report.status import FleetStatus, ReplicaStatus
    from clorefleet.store.glance import Look

app = typer.Typer(rich_markup_mode=None, add_completion=False)
WATCH_EVERY_S = 1.0


@app.command()
def status(
    watch: bool = typer.Option(False, "--watch", "-w", help="Show it again each second."),
    all_: bool = typer.Option(False, "--all", "-a", help="Stopped deployments too."),
) -> None:
    """Show what runs, in which phase, and what it costs.

    Reads only this machine's records; `--watch` changes nothing either.

    Example:

      clorefleet status --sandbox
    """
    profile = options.profile()
    while True:
        found, notes = read_status(profile)
        if watch and is_terminal() and not options.as_json:
            say_verbatim("\x1b[H\x1b[2J", end="")
        _show(profile, found, notes, with_stopped=all_)
        if not watch:
            return
        time.sleep(WATCH_EVERY_S)


def read_status(profile: Profile) -> tuple[FleetStatus, list[str]]:
    """The profile's fleet by its own records, and what its user should know beside it."""
    from clorefleet.config.profile import clock_of, store_url
    from clorefleet.fleet.wanted import as_wished
    from clorefleet.report.status import fleet_status
    from clorefleet.store.glance import look

    def ask(tx: Look) -> tuple[FleetStatus, list[str]]:
        deployments, now = tx.deployments(), clock_of(profile).now()
        found = fleet_status(
            deployments,
            tx.open_leases(),
            tx.unsettled_segments(),
            now=now,
            wanted=as_wished(deployments, tx.wanted(), now),
            settled_usd=tx.settled_usd(),
        )
        return found, _guard_notes(tx)

    return look(store_url(profile), ask)


def _show(profile: Profile, found: FleetStatus, notes: list[str], *, with_stopped: bool) -> None:
    from clorefleet.daemon import process
    from clorefleet.domain.duration import in_words

    info = process.find(profile.state_dir)
    if options.as_json:
        from clorefleet.store.codec import encode

        daemon = None if info is None else {"pid": info.pid, "gateway_url": info.gateway_url}
        print_json(encode(found) | {"daemon": daemon, "profile": profile.name, "warnings": notes})
        return
    shown = [each for each in found.deployments if with_stopped or each.state != "stopped"]
    if not shown:
        stopped = len(found.deployments)
        rest = f" {stopped} stopped: `clorefleet status --all`." if stopped else ""
        say(f"Nothing is deployed in profile “{profile.name}”.{rest}")
    else:
        table(
            ("DEPLOYMENT", "STATE", "REPLICA", "SERVER", "SINCE", "TOK/S", "USD/DAY", "SPENT"),
            [
                row
                for each in shown
                for row in (
                    [
                        (
                            each.deployment_id,
                            each.state if replica.state == "serving" else replica.state,
                            f"{replica.slot} {replica.setup.replace(' on ', '/')}",
                            str(replica.server_id),
                            age(replica.in_phase),
                            _speed(replica),
                            f"{usd(replica.usd_per_day)}{' spot' if replica.is_spot else ''}",
                            usd(replica.spent_usd, 4),
                        )
                        for replica in each.replicas
                    ]
                    or [(each.deployment_id, each.state, "-", "-", "-", "-", "-", usd(each.spent_usd, 4))]
                )
            ],
            right=(3, 4, 5, 6, 7),
        )
        for each in shown:
            _show_notes(each.note, each.replicas, each.deployment_id)
            is_told = each.wanted_replicas != len(each.replicas) or each.state == "resting"
            if each.wanted_reason and is_told and each.state != "stopped":
                note(
                    f"  {each.deployment_id}: {each.wanted_replicas} replica(s) wanted: {each.wanted_reason}"
                )
        for each in shown:
            if each.unused_for is not None and each.stops_in is not None:
                note(
                    f"  {each.deployment_id}: unused for {in_words(each.unused_for)}, "
                    f"stops in {in_words(each.stops_in)} if nobody comes, unless a schedule keeps it"
                )
    if info is None:
        billing = any(each.replicas for each in found.deployments)
        if billing:
            note(
                f"No daemon runs: nothing watches what bills. Start it: clorefleet daemon start{profile.flag}"
            )
        else:
            note("No daemon runs; none is needed.")
    else:
        note(f"Daemon pid {info.pid}; gateway {info.gateway_url}/v1")
    for text in notes:
        note(text)
    if found.usd_per_day > Decimal(0):
        note(f"{usd(found.usd_per_day)}/day now, {usd(found.spent_usd, 4)} spent in all.")


def guard_notes(profile: Profile) -> list[str]:
    """What the user should know about ceilings, breaker and wallets; empty while all is well."""
    from clorefleet.config.profile import store_url
    from clorefleet.store.glance import look

    return look(store_url(profile), _guard_notes)


def _guard_notes(tx: Look) -> list[str]:
    from clorefleet.fleet.wallet import wallet_warning

    guard = tx.guard()
    notes = [warning for warning in map(wallet_warning, tx.wallet_readings()) if warning]
    if guard.is_stopped:
        notes.append(f"Renting is stopped: {guard.stopped_because}. `clorefleet budget --resume` goes on.")
    return [*notes, *strange_notes(tx)]


def strange_notes(tx: Look, name: str = "") -> list[str]:
    """Of each order that bills and that nothing here explains; only those that may be of deployment `name`,
    where it is given."""
    orders = tx.strange_orders()
    if not orders:
        return []
    from clorefleet.fleet.strange import lease_it_may_be_of, told_of

    leases = tx.leases(since=min(order.first_seen_at for order in orders))
    notes = []
    for order in orders:
        lease = lease_it_may_be_of(order, leases)
        if not name or (lease is not None and lease.deployment_id == name):
            notes.append(told_of(order, lease))
    return notes


def _show_notes(text: str, replicas: tuple[ReplicaStatus, ...], deployment_id: str) -> None:
    if text:
        note(f"  {deployment_id}: {text}")
    for replica in replicas:
        if replica.is_cancel_pending and replica.cancel_attempts > 1:
            hourly = replica.usd_per_day / 24
            note(
                f"  order {replica.order_id} still bills {usd(hourly, 4)}/hour after "
                f"{replica.cancel_attempts} cancels: {replica.reason}"
            )
        elif replica.progress:
            note(f"  {deployment_id}: {replica.progress}")
        if replica.degraded:
            note(f"  {deployment_id}: replica {replica.slot} is degraded: {replica.degraded}")
        if replica.weights:
            note(f"  {deployment_id}: estimated: {replica.weights}")


def _speed(replica: ReplicaStatus) -> str:
    if replica.measured_tokens_per_s is not None:
        mark = " sim" if replica.engine_is_simulated else ""
        return f"{replica.measured_tokens_per_s:.1f}{mark}"
    return f"~{replica.predicted_tokens_per_s:.1f}"

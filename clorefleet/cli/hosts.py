"""`clorefleet hosts`: what we remember of servers, and which of them plans leave out."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import typer

from clorefleet.cli.context import options
from clorefleet.cli.output import note, print_json, say, table, usd

if TYPE_CHECKING:
    from clorefleet.domain.identity import LeaseId
    from clorefleet.domain.node import Discrepancy, NodeFacts
    from clorefleet.report.host_history import HostHistory
    from clorefleet.store.database import Store

REASON_MAX_CHARS = 200

SERVER_MAX = 2**31 - 1
"""What a store of any kind can keep."""
app = typer.Typer(
    rich_markup_mode=None,
    add_completion=False,
    no_args_is_help=True,
    help="Show what is remembered of servers; block or unblock one.",
)


@app.command("list")
def list_() -> None:
    """List the servers that were rented, failed, or were blocked.

    Example:

      clorefleet hosts list --sandbox
    """
    from clorefleet.config.profile import clock_of

    profile = options.profile()
    now, memory = clock_of(profile).now(), _memory()
    records = _records(_store(), now - memory)
    if options.as_json:
        print_json([_document(record, now, memory) for record in records])
        return
    if not records:
        note("No server was rented, failed or blocked yet.")
        return
    table(
        ("SERVER", "GPUS", "RENTED", "FAULTS", "LOST", "PLANS"),
        [
            (
                record.server_id,
                record.gpu_summary[:20],
                f"{len(record.leases)}x",
                len(record.faults),
                usd(record.lost_usd),
                record.state(now, memory)[:33],
            )
            for record in records
        ],
        right=(0, 2, 3, 4),
    )
    note(f"`clorefleet hosts history SERVER{profile.flag}` shows all that is known of one.")


@app.command()
def history(server: int = typer.Argument(..., help="The server's number.")) -> None:
    """Show all that is remembered of one server: leases, measurements, faults, verdicts.

    Example:

      clorefleet hosts history 25756
    """
    from clorefleet.config.profile import clock_of
    from clorefleet.domain.errors import BadInput

    profile = options.profile()
    now, memory = clock_of(profile).now(), _memory()
    store = _store()
    record = next((each for each in _records(store, now - memory) if each.server_id == server), None)
    if record is None:
        raise BadInput(
            f"Nothing is remembered of server {server}.",
            remedy=f"`clorefleet hosts list{profile.flag}` lists those that are known.",
        )
    with store.read() as tx:
        measured = {lease.lease_id: tx.node_facts(lease.lease_id) for lease in record.leases}
        differing = {lease.lease_id: tx.discrepancies(lease.lease_id) for lease in record.leases}
    if options.as_json:
        from clorefleet.store.codec import encode

        document = _document(record, now, memory)
        for lease_document in document["leases"]:
            facts = measured[lease_document["lease_id"]]
            lease_document["facts"] = None if facts is None else encode(facts)
            lease_document["discrepancies"] = [encode(each) for each in differing[lease_document["lease_id"]]]
        print_json(document)
        return
    say(f"Server {server}: {record.gpu_summary}. Plans: {record.state(now, memory)}.")
    for at, text in sorted(_lines(record, measured, differing), key=lambda line: line[0]):
        say(f"  {at:%Y-%m-%d %H:%M}  {text}", hanging=18)


@app.command()
def block(
    server: int = typer.Argument(..., help="The server's number."),
    reason: str = typer.Option("", "--reason", help="Why, for your own memory."),
) -> None:
    """Leave a server out of all plans from now on. What runs on it goes on.

    Example:

      clorefleet hosts block 25756 --reason "slow disk"
    """
    _give_verdict(server, "blocked", reason)
    _tell_verdict(server, "blocked", f"Server {server} is left out of plans from now on.")


@app.command()
def unblock(
    server: int = typer.Argument(..., help="The server's number."),
    reason: str = typer.Option("", "--reason", help="Why, for your own memory."),
) -> None:
    """Let plans take a server again, and forgive the faults it has so far.

    Example:

      clorefleet hosts unblock 25756
    """
    _give_verdict(server, "unblocked", reason)
    _tell_verdict(server, "unblocked", f"Plans may take server {server} again.")


def _store() -> Store:
    from clorefleet.config.profile import store_url
    from clorefleet.store.database import open_store

    return open_store(store_url(options.profile()))


def _memory() -> timedelta:
    from clorefleet.fleet.limits import DEFAULT_LIMITS

    return DEFAULT_LIMITS.host_fault_memory


def _records(store: Store, since: datetime) -> tuple[HostHistory, ...]:
    """By server, those with trouble first."""
    from clorefleet.report.host_history import host_histories

    with store.read() as tx:
        return host_histories(tx.leases(), tx.host_faults(), tx.host_verdicts(), since=since)


def _document(record: HostHistory, now: datetime, memory: timedelta) -> dict[str, Any]:
    return {
        "server_id": record.server_id,
        "gpus": record.gpu_summary,
        "is_left_out": record.is_left_out,
        "state": record.state(now, memory),
        "lost_usd": record.lost_usd,
        "faults": [
            {"at": fault.at, "reason": fault.reason, "cost_usd": fault.cost_usd} for fault in record.faults
        ],
        "verdicts": [
            {"at": each.at, "verdict": each.verdict, "reason": each.reason} for each in record.verdicts
        ],
        "leases": [
            {
                "lease_id": lease.lease_id,
                "deployment_id": lease.deployment_id,
                "state": lease.state,
                "phase": lease.phase,
                "created_at": lease.created_at,
                "ended_at": lease.ended_at,
                "measured_tokens_per_s": lease.measured_tokens_per_s,
                "reason": lease.reason,
            }
            for lease in record.leases
        ],
    }


def _lines(
    record: HostHistory,
    measured: Mapping[LeaseId, NodeFacts | None],
    differing: Mapping[LeaseId, tuple[Discrepancy, ...]],
) -> list[tuple[datetime, str]]:
    lines = [
        (fault.at, f"fault: {fault.reason} (its lease had cost {usd(fault.cost_usd)})")
        for fault in record.faults
    ]
    lines += [
        (each.at, f"{each.verdict} by you{f': {each.reason}' if each.reason else ''}")
        for each in record.verdicts
    ]
    for lease in record.leases:
        speed = f", {lease.measured_tokens_per_s:.1f} tok/s measured" if lease.measured_tokens_per_s else ""
        lines.append((lease.created_at, f"rented for {lease.deployment_id}: {lease.phase}{speed}"))
        facts = measured[lease.lease_id]
        if facts is not None:
            lines.append((lease.created_at, f"  it has {_facts_line(facts)}"))
        lines += [
            (lease.created_at, f"  {each.code}: offered {each.offered}, found {each.found}")
            for each in differing[lease.lease_id]
        ]
        if lease.ended_at is not None:
            lines.append((lease.ended_at, f"given back: {lease.reason or 'no reason kept'}"))
    return lines


def _facts_line(facts: NodeFacts) -> str:
    parts = [f"{len(facts.gpus)}x {facts.gpus[0].name}" if facts.gpus else "no GPU"]
    parts.append(f"driver {facts.driver_version or '?'}")
    timed = facts.measured
    if timed is not None:
        parts += [
            f"{label} {value:.0f} {unit}"
            for label, value, unit in (
                ("memory", timed.memory_gb_s, "GB/s"),
                ("disk", timed.disk_read_mb_s, "MB/s"),
                ("line", timed.download_mbit_s, "Mbit/s"),
            )
            if value is not None
        ]
        parts += [f"not timed: {each}" for each in timed.skipped]
        parts += ["figures simulated"] if timed.is_simulated else []
    return ", ".join(parts)


def _give_verdict(server: int, verdict: str, reason: str) -> None:
    from clorefleet.config.profile import clock_of
    from clorefleet.domain.errors import BadInput
    from clorefleet.domain.host import HostVerdict, Verdict
    from clorefleet.domain.identity import ServerId
    from clorefleet.domain.text import clean_line

    if not 0 < server <= SERVER_MAX:
        raise BadInput(f"{server} is no server's number.", remedy="`clorefleet offers` shows them.")
    now = clock_of(options.profile()).now()
    words = clean_line(reason, max_chars=REASON_MAX_CHARS)
    with _store().write() as tx:
        tx.add_host_verdict(HostVerdict(ServerId(server), Verdict(verdict), now, words))


def _tell_verdict(server: int, verdict: str, sentence: str) -> None:
    with _store().read() as tx:
        running = [lease for lease in tx.open_leases() if lease.server_id == server]
    if options.as_json:
        names = sorted({lease.deployment_id for lease in running})
        print_json({"server_id": server, "verdict": verdict, "running": names})
        return
    say(sentence)
    for lease in running if verdict == "blocked" else ():
        note(
            f"{lease.deployment_id} runs on it and goes on; `clorefleet stop {lease.deployment_id}"
            f"{options.profile().flag}` ends that."
        )

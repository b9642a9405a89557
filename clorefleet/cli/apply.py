"""`clorefleet apply`: make the fleet what its file says, after showing what that costs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from clorefleet.cli.context import options
from clorefleet.cli.output import confirm, note, print_json, say, usd

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from clorefleet.cli.change import Priced
    from clorefleet.config.profile import Connection
    from clorefleet.domain.fleet_file import FleetFile
    from clorefleet.domain.identity import DeploymentId
    from clorefleet.fleet.change import Changes
    from clorefleet.store.database import Store

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def apply(
    file: Path | None = typer.Option(None, "--file", "-f", help="The fleet file; default: ./fleet.toml."),
    take: list[str] = typer.Option(
        [], "--take", metavar="NAME", help="Give a deployment that `clorefleet deploy` made to the file."
    ),
    yes: bool = typer.Option(False, "--yes", "-y", help="Do not ask."),
) -> None:
    """Make the fleet what its file says, after showing what that costs.

    Deployments that `clorefleet deploy` made are never touched without --take. The daemon follows later
    edits of the file by itself only where they spend less; the rest waits for the next `apply`.

    Examples:

      clorefleet apply

      clorefleet apply --file work.toml --yes --sandbox
    """
    from clorefleet.cli.change import (
        changes_in,
        check_budgets,
        document,
        file_path,
        priced,
        say_ceiling,
        show,
    )
    from clorefleet.config.fleet_file import load_fleet_file
    from clorefleet.config.profile import connect, store_url
    from clorefleet.store.database import open_store

    profile = options.profile()
    store = open_store(store_url(profile))
    with store.read() as tx:
        applied = tx.applied_file()
    path = file_path(file, applied).absolute()
    wanted = load_fleet_file(path)
    _check_taken(store, wanted, take)
    connection = connect(profile)
    now = connection.clock.now()
    with store.read() as tx:
        found = changes_in(tx, wanted, now=now, taken=frozenset(take))
    costs = priced(connection, store, found)
    doing = tuple(each for each in costs if each.change.kind != "conflict")
    if not options.as_json and costs:
        show(costs, now)
        say()
    check_budgets(doing)
    total = None if options.as_json else say_ceiling(found, store)
    question = _question(doing, total)
    # Simulated money needs no yes, and neither does a file that changes nothing.
    sleeping = _sleeping(store, wanted, now)
    for name in sleeping:
        note(f"{name} sleeps: applying its file wakes it, and a server is rented for it.")
    confirm(
        question if doing else f"Wake {', '.join(sleeping)}?",
        yes=yes or profile.is_sandbox or not (doing or sleeping),
        what="Applying the file",
        otherwise="Nothing was changed.",
    )
    _store(store, connection, wanted, found, doing, taken=frozenset(take), woken=sleeping)
    if options.as_json:
        print_json({"file": str(path), "applied": True} | document(costs, found, now))
    elif not doing and not sleeping:
        say(f"Everything is as {path} says.")
    _wake(connection, is_needed=bool(doing or sleeping))


def words_for(file: Path | None, take: Iterable[str] = ()) -> str:
    """What stands behind `clorefleet apply` or `diff` to mean the same file, as a shell reads it."""
    from shlex import quote

    words = [] if file is None or file == Path("fleet.toml") else ["--file", str(file)]
    words += [word for name in take for word in ("--take", name)]
    return "".join(f" {quote(word)}" for word in words)


def _sleeping(store: Store, wanted: FleetFile, now: datetime) -> tuple[DeploymentId, ...]:
    """The file's deployments that were scaled to zero because nobody used them."""
    from clorefleet.domain.deployment import Origin
    from clorefleet.fleet.wanted import asleep

    named = {wish.deployment_id for wish in wanted.deployments if wish.is_enabled}
    with store.read() as tx:
        last = tx.wanted()
        return tuple(
            each.deployment_id
            for each in tx.deployments()
            if each.deployment_id in named
            and each.origin is Origin.FILE
            and asleep(each, last.get(each.deployment_id), now)
        )


def _check_taken(store: Store, wanted: FleetFile, take: list[str]) -> None:
    from clorefleet.domain.errors import BadInput

    named = {wish.deployment_id for wish in wanted.deployments}
    for name in take:
        if name not in named:
            raise BadInput(
                f"“{name[:60]}” is not in {wanted.name}.",
                remedy="--take gives a deployment to the file that names it.",
                money="Nothing was changed.",
            )


def _question(doing: tuple[Priced, ...], total: object) -> str:
    from decimal import Decimal

    raises = [each for each in doing if not each.change.lowers and each.change.kind != "stop"]
    if not raises:
        return "Apply this? It spends less than before."
    most = f"up to {usd(total)} a day" if isinstance(total, Decimal) else "without a daily ceiling"
    return f"Apply this? The fleet may then spend {most}."


def _store(
    store: Store,
    connection: Connection,
    wanted: FleetFile,
    approved: Changes,
    doing: tuple[Priced, ...],
    *,
    taken: frozenset[str],
    woken: tuple[DeploymentId, ...],
) -> None:
    """All of it in one transaction, if the fleet is still what the user was shown.

    Raises:
        BadInput: something changed meanwhile; nothing was written.
    """
    from dataclasses import replace
    from pathlib import Path

    from clorefleet.cli.change import changes_in
    from clorefleet.domain.errors import BadInput
    from clorefleet.domain.fleet_file import AppliedFile

    now = connection.clock.now()
    with store.write() as tx:
        found = changes_in(tx, wanted, now=now, taken=taken)
        if _seen(found) != _seen(approved):
            raise BadInput(
                "The fleet changed while you were reading.",
                remedy="Type the same command again and look once more.",
                money="Nothing was changed by this.",
            )
        estimates = {
            each.change.deployment_id: each.change.after.start_up_estimate
            for each in doing
            if each.change.after is not None
        }
        for change in found.changes:
            if change.kind == "ceiling":
                tx.put_guard(replace(tx.guard(), per_day=found.fleet_budget))
            elif change.after is not None:
                estimate = estimates.get(change.deployment_id) or change.after.start_up_estimate
                tx.put_deployment(replace(change.after, start_up_estimate=estimate))
        for name in woken:
            deployment = tx.deployment(name)
            if deployment is not None:
                tx.put_deployment(replace(deployment, woken_at=now))
        tx.put_applied_file(AppliedFile(str(Path(wanted.name).absolute()), wanted.digest, now))


def _seen(found: Changes) -> list[object]:
    return [(each.kind, each.deployment_id, each.differences) for each in found.changes]


def _wake(connection: Connection, *, is_needed: bool) -> None:
    from clorefleet.daemon import process

    profile = connection.profile
    if not is_needed and process.running_pid(profile.state_dir) is None:
        return
    info, was_started = process.ensure_running(profile.name, profile.state_dir)
    if was_started:
        note(f"Started the daemon (pid {info.pid}); it guards the fleet and its budgets.")
    process.wake(profile.state_dir)
    if is_needed:
        note(f"Applied. `clorefleet status{profile.flag} --watch` shows how it goes on.")

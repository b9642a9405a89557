"""`clorefleet diff`: what a fleet file would change, and what that would cost. Changes nothing."""

from __future__ import annotations

from pathlib import Path

import typer

from clorefleet.cli.context import options
from clorefleet.cli.output import note, print_json, say

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def diff(
    file: Path | None = typer.Option(None, "--file", "-f", help="The fleet file; default: ./fleet.toml."),
    take: list[str] = typer.Option([], "--take", metavar="NAME", help="As if given to `apply`."),
) -> None:
    """Show what a fleet file would change, and what that would cost. Changes nothing.

    Examples:

      clorefleet diff

      clorefleet diff --file work.toml --sandbox
    """
    from clorefleet.cli.apply import words_for
    from clorefleet.cli.change import changes_in, document, file_path, priced, say_ceiling, show
    from clorefleet.config.fleet_file import load_fleet_file
    from clorefleet.config.profile import connect, store_url
    from clorefleet.store.database import open_store

    profile = options.profile()
    store = open_store(store_url(profile))
    with store.read() as tx:
        applied = tx.applied_file()
    path = file_path(file, applied)
    wanted = load_fleet_file(path)
    connection = connect(profile, needs_key=False)
    now = connection.clock.now()
    with store.read() as tx:
        found = changes_in(tx, wanted, now=now, taken=frozenset(take))
    costs = priced(connection, store, found)
    if options.as_json:
        print_json({"file": str(path)} | document(costs, found, now))
        return
    command = f"`clorefleet apply{words_for(file, take)}{profile.flag}`"
    if not costs:
        say(f"Everything is as {path} says.")
        if applied is None or applied.digest != wanted.digest:
            note(f"{command} makes it the file that the daemon follows.")
        return
    show(costs, now)
    say()
    say_ceiling(found, store)
    note(f"Nothing was changed. {command} does it, after asking.")

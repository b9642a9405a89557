"""`clorefleet db`: the store's schema and its backup."""

from __future__ import annotations

from pathlib import Path

import typer

from clorefleet.cli.context import options
from clorefleet.cli.output import note, print_json, say

app = typer.Typer(rich_markup_mode=None, add_completion=False, no_args_is_help=True)


@app.callback()
def db() -> None:
    """Look at, upgrade or back up the store.

    The store is an SQLite file in the state folder, or the PostgreSQL server that `store_url` in config.toml
    names. Every command upgrades an SQLite store by itself, after a copy; `db upgrade` is for servers, where
    you want to say when.
    """


@app.command()
def status() -> None:
    """Show where the store is and whether its schema is this program's.

    Example:

      clorefleet db status
    """
    from clorefleet.config.profile import store_url
    from clorefleet.store.database import connect_engine, shown_address
    from clorefleet.store.revision import current_revision, newest_revision

    engine, file = connect_engine(store_url(options.profile()))
    place = str(file) if file else shown_address(engine.url)
    found, wanted = current_revision(engine), newest_revision()
    engine.dispose()
    if options.as_json:
        print_json({"place": place, "revision": found, "wanted": wanted, "is_current": found == wanted})
        return
    say(f"{place}: revision {found or 'none'}, this program wants {wanted}.")
    if found != wanted:
        note(f"Type: clorefleet db upgrade{options.profile().flag}")


@app.command()
def upgrade() -> None:
    """Bring the schema up to this program's; an SQLite store is copied first.

    Example:

      clorefleet db upgrade
    """
    from clorefleet.config.profile import store_url
    from clorefleet.store.database import connect_engine
    from clorefleet.store.migrate import upgrade as run_missing
    from clorefleet.store.revision import current_revision

    engine, file = connect_engine(store_url(options.profile()))
    before = current_revision(engine)
    is_changed = run_missing(engine, sqlite_file=file)
    after = current_revision(engine)
    engine.dispose()
    if options.as_json:
        print_json({"from": before, "to": after, "is_changed": is_changed})
    elif is_changed:
        say(f"Upgraded from {before or 'nothing'} to {after}.")
    else:
        say(f"Nothing to do: revision {after}.")


@app.command()
def backup(
    to: str = typer.Option("", "--to", metavar="FILE", help="Where to; default: beside the store, dated."),
) -> None:
    """Copy the store, also while a daemon uses it.

    PostgreSQL is copied by `pg_dump` (restore: `pg_restore --clean --dbname URL FILE`). A backup that is
    restored later knows nothing of servers rented since: run `clorefleet sweep` after a restore.

    Examples:

      clorefleet db backup

      clorefleet db backup --to fleet-before.bak
    """
    from datetime import UTC, datetime

    from clorefleet.config.profile import store_url
    from clorefleet.domain.errors import BadInput
    from clorefleet.store.database import connect_engine
    from clorefleet.store.migrate import copy_sqlite, dump_postgres

    profile = options.profile()
    url = store_url(profile)
    engine, file = connect_engine(url)
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    target = Path(to) if to else profile.state_dir / f"clorefleet-{stamp}.bak"
    if target.exists():
        raise BadInput(f"{target} exists already.", remedy="Name another file with --to.")
    if not target.parent.is_dir():
        raise BadInput(f"There is no folder {target.parent}.", remedy="Make it, or name another with --to.")
    if file is None:
        dump_postgres(url, target)
    else:
        copy_sqlite(file, target)
    engine.dispose()
    if options.as_json:
        print_json({"file": str(target), "bytes": target.stat().st_size})
    else:
        say(f"{target}: {target.stat().st_size:,} bytes.")

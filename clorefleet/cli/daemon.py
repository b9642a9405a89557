"""`clorefleet daemon`: the process that watches the money."""

from __future__ import annotations

import typer

from clorefleet.cli.context import options
from clorefleet.cli.output import note, print_json, say

app = typer.Typer(
    rich_markup_mode=None,
    add_completion=False,
    no_args_is_help=True,
    help="Start, stop or look at the daemon.",
)


@app.command()
def start(
    foreground: bool = typer.Option(False, "--foreground", help="Stay, and log to this terminal."),
) -> None:
    """Start the daemon of this profile, if none runs."""
    profile = options.profile()
    if foreground:
        from clorefleet.daemon.service import run

        raise typer.Exit(run(profile, foreground=True))
    from clorefleet.config.profile import connect
    from clorefleet.daemon import process

    connect(profile)  # a missing key or sandbox shows here, not in a log
    info, was_started = process.ensure_running(profile.name, profile.state_dir)
    say(f"{'Started' if was_started else 'Already running'}: pid {info.pid}, gateway {info.gateway_url}/v1")


@app.command()
def stop() -> None:
    """End the daemon. What is rented goes on billing, and nothing watches it."""
    from clorefleet.daemon import process

    profile = options.profile()
    if not process.stop(profile.state_dir):
        say("No daemon runs.")
        return
    say("The daemon has ended.")
    note(
        "Orders that exist go on billing, unwatched. "
        f"`clorefleet stop --all{profile.flag}` ends them; `clorefleet daemon start{profile.flag}` goes on."
    )


@app.command()
def status() -> None:
    """Show whether the daemon runs, and what its last tick saw."""
    from clorefleet.config.profile import clock_of, store_url
    from clorefleet.daemon import process
    from clorefleet.store.database import open_store

    profile = options.profile()
    info = process.find(profile.state_dir)
    with open_store(store_url(profile)).read() as tx:
        tick = tx.last_tick()
    now = clock_of(profile).now()
    if options.as_json:
        print_json(
            {
                "running": info is not None,
                "pid": None if info is None else info.pid,
                "gateway_url": None if info is None else info.gateway_url,
                "ticks": 0 if tick is None else tick.count,
                "last_tick_at": None if tick is None else tick.finished_at,
                "orders_read_at": None if tick is None else tick.orders_read_at,
                "trouble": "" if tick is None else tick.trouble,
            }
        )
    elif info is None:
        say("No daemon runs.")
    else:
        say(f"Daemon pid {info.pid}, version {info.version}, since {info.started_at[:19]}")
        say(f"Gateway {info.gateway_url}/v1")
        if tick is not None:
            seconds = int((now - tick.finished_at).total_seconds())
            say(f"{tick.count} ticks, the last {seconds} s ago{': ' + tick.trouble if tick.trouble else ''}")
    if info is None:
        raise typer.Exit(10)

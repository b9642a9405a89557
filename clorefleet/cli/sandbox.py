"""`clorefleet sandbox`: the simulated market, hub and nodes on this machine."""

from __future__ import annotations

from typing import Any

import typer

from clorefleet.cli.context import options
from clorefleet.cli.output import confirm, note, print_json, say
from clorefleet.cli.progress import working

app = typer.Typer(
    rich_markup_mode=None,
    add_completion=False,
    no_args_is_help=True,
    help="Serve, look at, stop or reset the simulated market.",
)


@app.command()
def serve(
    seed: int = typer.Option(
        None, "--seed", help="Another seed is another market; default: as before, or 1."
    ),
    time_factor: float = typer.Option(
        None, "--time-factor", min=0.001, max=100_000, help="Simulated seconds per real second."
    ),
    show_key: bool = typer.Option(False, "--show-key", help="Print the API key, for other programs."),
) -> None:
    """Start the sandbox's server, if none runs, and print its addresses.

    It speaks the market's HTTP API: any client that follows the API can use it with the printed key.

    Examples:

      clorefleet sandbox serve --show-key

      clorefleet sandbox serve --seed 7 --time-factor 60
    """
    from clorefleet.config.profile import SANDBOX, find_profile
    from clorefleet.sandbox import process

    profile = find_profile(SANDBOX)
    with working("Starting the sandbox"):
        info = process.ensure_running(profile.sandbox_dir, seed=seed, time_factor=time_factor)
    if options.as_json:
        document = {
            "market_url": info.market_url,
            "hub_url": info.hub_url,
            "seed": info.seed,
            "time_factor": info.time_factor,
            "pid": info.pid,
            "simulated": True,
        }
        print_json(document | ({"api_key": info.api_key} if show_key else {}))
        return
    say(f"Simulated market {info.market_url} (seed {info.seed}, time x{info.time_factor:g})")
    say(f"Simulated hub    {info.hub_url}")
    if show_key:
        say(f"API key          {info.api_key}")
    if text := process.outdated(profile.sandbox_dir):
        note(text)
    if (seed or info.seed, time_factor or info.time_factor) != (info.seed, info.time_factor):
        note("It was running already, with its own seed and time. `clorefleet sandbox reset` starts anew.")


@app.command()
def status() -> None:
    """Show the sandbox's server and its orders.

    Ends with 10 when it does not run.

    Example:

      clorefleet sandbox status
    """
    from clorefleet.config.profile import SANDBOX, find_profile
    from clorefleet.sandbox import process

    found = process.status(find_profile(SANDBOX).sandbox_dir)
    if options.as_json:
        print_json({"running": found is not None} | ({} if found is None else dict(found)))
    elif found is None:
        say("The sandbox's server does not run; any command with --sandbox that needs it starts it.")
    else:
        _show(found)
    if found is None:
        raise typer.Exit(10)


def _show(found: dict[str, Any]) -> None:
    from datetime import UTC, datetime

    at = datetime.fromtimestamp(found["now_unix_s"], UTC)
    say(f"Simulated market {found['market_url']} (seed {found['seed']}, time x{found['time_factor']:g})")
    say(f"Simulated hub    {found['hub_url']}")
    say(f"Process          {found['pid']}, state in {found['state_dir']}")
    say(f"Its time         {at:%Y-%m-%d %H:%M:%S} UTC")
    say(
        f"Servers          {found['servers']:,}; {found['orders_live']} live order(s), "
        f"{found['orders_ended']} ended"
    )
    say(f"Wallets          {', '.join(f'{amount} {name}' for name, amount in found['wallets'].items())}")


@app.command()
def stop() -> None:
    """Stop the sandbox's server and its nodes; its orders wait for the next start.

    Example:

      clorefleet sandbox stop
    """
    from clorefleet.config.profile import SANDBOX, find_profile
    from clorefleet.daemon import process as daemon
    from clorefleet.sandbox import process

    profile = find_profile(SANDBOX)
    with working("Stopping the sandbox"):
        had_daemon = daemon.stop(profile.state_dir)
        was_running = process.stop(profile.sandbox_dir)
    if options.as_json:
        print_json({"was_running": was_running})
        return
    if had_daemon:
        say("The sandbox's daemon has ended.")
    say("Stopped." if was_running else "It was not running.")


@app.command()
def reset(yes: bool = typer.Option(False, "--yes", "-y", help="Do not ask.")) -> None:
    """Forget the sandbox: its market, orders, nodes and this profile's records.

    Example:

      clorefleet sandbox reset --yes
    """
    import shutil

    from clorefleet.config.profile import SANDBOX, find_profile
    from clorefleet.daemon import process as daemon
    from clorefleet.sandbox import process

    profile = find_profile(SANDBOX)
    confirm(
        "Forget the sandbox and its records? Its money is simulated.",
        yes=yes,
        what="Resetting the sandbox",
        otherwise="Nothing was changed.",
    )
    daemon.stop(profile.state_dir)
    process.reset(profile.sandbox_dir)
    shutil.rmtree(profile.state_dir, ignore_errors=True)
    if options.as_json:
        print_json({"is_reset": True})
    else:
        say("The sandbox is as new.")

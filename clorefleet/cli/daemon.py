"""`clorefleet daemon`: the process that watches the money."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING

import typer

from clorefleet.cli.context import options
from clorefleet.cli.output import note, print_json, say, say_verbatim, usd
from clorefleet.cli.progress import working

if TYPE_CHECKING:
    from clorefleet.config.profile import Profile

app = typer.Typer(
    rich_markup_mode=None,
    add_completion=False,
    no_args_is_help=True,
    help="Start, stop or look at the daemon.",
)


@app.command()
def start(
    foreground: bool = typer.Option(False, "--foreground", help="Stay, and log to this terminal."),
    log_format: str = typer.Option("", "--log-format", help="With --foreground: text or json."),
) -> None:
    """Start the daemon of this profile, if none runs.

    `clorefleet deploy` starts it by itself.

    Examples:

      clorefleet daemon start --sandbox

      clorefleet daemon start --foreground --log-format json
    """
    from clorefleet.domain.errors import BadInput

    profile = options.profile()
    if log_format not in ("", "text", "json") or (log_format and not foreground):
        raise BadInput(
            "--log-format is text or json, and goes with --foreground.",
            remedy='Put log_format = "json" into config.toml for a daemon in the background.',
        )
    if foreground:
        from clorefleet.daemon.service import run

        raise typer.Exit(run(profile, foreground=True, as_json=log_format == "json" if log_format else None))
    from clorefleet.config.profile import connect
    from clorefleet.daemon import process

    with working("Starting the daemon"):
        connect(profile)  # a missing key or sandbox shows here, not in a log
        info, was_started = process.ensure_running(profile.name, profile.state_dir)
    if options.as_json:
        print_json({"pid": info.pid, "gateway_url": info.gateway_url, "was_started": was_started})
        return
    say(f"{'Started' if was_started else 'Already running'}: pid {info.pid}, gateway {info.gateway_url}/v1")


@app.command()
def stop() -> None:
    """End the daemon. What is rented goes on billing, and nothing watches it: it says how much that is.

    Example:

      clorefleet daemon stop --sandbox
    """
    from clorefleet.daemon import process

    profile = options.profile()
    with working("Waiting for the daemon to end"):
        was_running = process.stop(profile.state_dir)
    bills = _billing(profile, has_run=was_running)
    if options.as_json:
        print_json({"was_running": was_running, "orders": bills.orders, "usd_per_hour": bills.usd_per_hour})
        return
    say("The daemon has ended." if was_running else "No daemon runs.")
    _say_what_bills(bills)


@dataclass(frozen=True, slots=True)
class _Billing:
    """What bills on without a daemon; both None where a look cannot tell."""

    orders: int | None
    """Those that may exist: rents in doubt, and orders that were not yet seen to end."""
    usd_per_hour: Decimal | None
    is_on_server: bool = False
    """The store is shared: a daemon of another machine may watch."""


_NOTHING = _Billing(0, Decimal(0))
_HOURLY_PLACES = Decimal("0.00000001")


def _billing(profile: Profile, *, has_run: bool) -> _Billing:
    """By this machine's records, as they are: the end of a daemon makes, migrates and awaits no store.

    `has_run`: a daemon has used the store, so that a missing one does not mean that there is nothing.
    """
    from clorefleet.config.profile import store_url
    from clorefleet.domain.errors import ClorefleetError
    from clorefleet.fleet.budget import committed_usd_per_day
    from clorefleet.store.address import sqlite_file
    from clorefleet.store.glance import NotForAGlance, glance

    is_on_server = False
    try:
        url = store_url(profile)
        file = sqlite_file(url)
        is_on_server = file is None
        if file is not None and not has_run and not file.exists():
            return _NOTHING
        with glance(url) as found:
            leases, rates = found.open_leases(), found.coin_rates()
    except (NotForAGlance, ClorefleetError, OSError):
        return _Billing(None, None, is_on_server)
    hourly = committed_usd_per_day(leases, rates) / 24
    return _Billing(len(leases), hourly.quantize(_HOURLY_PLACES))


def _say_what_bills(bills: _Billing) -> None:
    if bills.is_on_server:
        what = "The store is on a server, which was not asked: orders that exist go on billing, "
        watched = "unwatched by this machine"
    elif bills.orders is None or bills.usd_per_hour is None:
        what = "What bills is not known: the store is missing, unreadable or of another version. "
        watched = "Orders that exist go on billing, unwatched"
    elif bills.orders:
        what = f"{bills.orders} order(s) go on billing up to {usd(bills.usd_per_hour, 4)}/hour, "
        watched = "unwatched"
    else:
        return
    note(f"{what}{watched}. `clorefleet daemon start` watches them, `clorefleet stop --all` ends them.")


@app.command()
def status() -> None:
    """Show whether the daemon runs, and what its last tick saw.

    Ends with 10 when none runs.

    Example:

      clorefleet daemon status --sandbox
    """
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
                "metrics_url": None if info is None else info.metrics_url,
                "ticks": 0 if tick is None else tick.count,
                "last_tick_at": None if tick is None else tick.finished_at,
                "orders_read_at": None if tick is None else tick.orders_read_at,
                "trouble": "" if tick is None else tick.trouble,
            }
        )
    elif info is None:
        say("No daemon runs.")
    else:
        since = info.started_at[:16].replace("T", " ")
        say(f"Daemon pid {info.pid}, version {info.version}, since {since} UTC")
        say(f"Gateway {info.gateway_url}/v1")
        say(f"Metrics {info.metrics_url}/metrics, health {info.metrics_url}/healthz")
        if tick is not None:
            seconds = int((now - tick.finished_at).total_seconds())
            say(f"{tick.count} ticks, the last {seconds} s ago{': ' + tick.trouble if tick.trouble else ''}")
    if info is None:
        raise typer.Exit(10)


@app.command()
def install(
    print_: bool = typer.Option(False, "--print", help="Print the unit and change nothing."),
    start_now: bool = typer.Option(True, "--start/--no-start", help="Start it now as well."),
) -> None:
    """Let systemd start the daemon when you log in, and again whenever it ends.

    Writes a user unit; nothing runs as root.

    Examples:

      clorefleet daemon install --print

      clorefleet daemon install
    """
    import os
    import sys

    from clorefleet.config.places import config_root
    from clorefleet.config.profile import connect
    from clorefleet.daemon import process
    from clorefleet.daemon.unit import unit_name, unit_path, unit_text
    from clorefleet.domain.errors import DaemonError

    profile = options.profile()
    kept = ("CLOREFLEET_HOME", "CLORE_API_URL", "HF_ENDPOINT", "XDG_STATE_HOME", "XDG_CONFIG_HOME")
    environment = [(name, os.environ[name]) for name in kept if os.environ.get(name)]
    environment_file = config_root() / "daemon.env"
    try:
        text = unit_text(
            profile.name, sys.executable, environment=environment, environment_file=environment_file
        )
    except ValueError as error:
        raise DaemonError(f"The unit cannot be written: {error}.", remedy="Mend the environment.") from error
    if print_:
        if options.as_json:
            print_json({"unit": text, "file": str(unit_path(profile.name)), "is_installed": False})
        else:
            say_verbatim(text, end="")
        return
    connect(profile)  # a missing key shows here, not in a journal
    if "CLORE_API_KEY" in os.environ and not profile.is_sandbox:
        note(
            "Your API key is in this shell's environment, which systemd does not see: put api_key into "
            f"config.toml, or CLORE_API_KEY=... into {environment_file} (chmod 600)."
        )
    path = unit_path(profile.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
    if options.as_json:
        print_json({"unit": text, "file": str(path), "is_installed": True})
    else:
        say(f"Wrote {path}.")
    if not start_now:
        name = unit_name(profile.name)
        note(f"Start it: systemctl --user daemon-reload && systemctl --user enable --now {name}")
        return
    if process.stop(profile.state_dir):
        note("Ended the daemon that ran; systemd starts it from now on.")
    _systemctl("daemon-reload")
    _systemctl("enable", "--now", unit_name(profile.name))
    note(f"systemd keeps {unit_name(profile.name)} running.")
    note("So that it also runs while you are logged out: loginctl enable-linger")


@app.command()
def uninstall() -> None:
    """Take the systemd unit away again. What is rented goes on billing, and nothing watches it.

    Example:

      clorefleet daemon uninstall
    """
    from clorefleet.daemon.unit import unit_name, unit_path

    profile = options.profile()
    path = unit_path(profile.name)
    if options.as_json:
        print_json({"unit": "", "file": str(path), "is_installed": False})
    if not path.exists():
        note("No unit of this profile is installed.")
        return
    _systemctl("disable", "--now", unit_name(profile.name), is_needed=False)
    path.unlink(missing_ok=True)
    _systemctl("daemon-reload", is_needed=False)
    note(f"Removed {path}.")
    _say_what_bills(_billing(profile, has_run=True))


def _systemctl(*words: str, is_needed: bool = True) -> None:
    """
    Raises:
        DaemonError: systemd does not do it, and it is needed.
    """
    import subprocess

    from clorefleet.domain.errors import DaemonError
    from clorefleet.domain.text import clean_line

    try:
        done = subprocess.run(
            ["systemctl", "--user", *words], capture_output=True, text=True, timeout=60, check=False
        )
        why = "" if done.returncode == 0 else clean_line(done.stderr) or f"exit code {done.returncode}"
    except (OSError, subprocess.TimeoutExpired) as error:
        why = type(error).__name__
    if why and is_needed:
        raise DaemonError(
            f"systemctl --user {' '.join(words)} failed: {why}",
            remedy="Is systemd your user's manager here? `clorefleet daemon start` needs none.",
            money="The unit is written; no daemon was started by it.",
        )
    if why:
        note(f"systemctl --user {' '.join(words)}: {why}")

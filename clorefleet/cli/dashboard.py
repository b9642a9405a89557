"""`clorefleet dashboard`: the fleet in a browser on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from clorefleet.cli.context import options
from clorefleet.cli.output import note, print_json, say

if TYPE_CHECKING:
    from clorefleet.config.profile import Profile
    from clorefleet.dashboard.app import Dashboard
    from clorefleet.dashboard.reading import DaemonSeen

app = typer.Typer(rich_markup_mode=None, add_completion=False)
PORT, SANDBOX_PORT = 8430, 8431
"""Preferred; any free port is taken where they are not."""


@app.command()
def dashboard(
    port: int = typer.Option(0, "--port", min=0, max=65_535, help="Port on 127.0.0.1; default 8430, or any."),
) -> None:
    """Show the fleet in a browser on this machine, live; stop and scale there.

    Prints a link that works once, within ten minutes, and serves until Ctrl-C. The same command in another
    terminal prints a fresh link. Nobody but you on this machine can open it, and nothing depends on it: what
    runs goes on without it. From another machine: ssh -L 8430:127.0.0.1:8430 HOST.

    Example:

      clorefleet dashboard --sandbox
    """
    from clorefleet.clock import SystemClock
    from clorefleet.dashboard.server import DashboardServer, known_url, listen, only_one, tell_url
    from clorefleet.dashboard.sign_in import Links
    from clorefleet.domain.errors import DaemonError

    profile = options.profile()
    with only_one(profile.state_dir) as is_only:
        if not is_only:
            url = known_url(profile.state_dir)
            if url is None:
                raise DaemonError("Another dashboard is starting just now.", remedy="Try again in a moment.")
            code = Links(profile.state_dir, SystemClock().now).issue()
            _tell(f"{url}/sign-in#{code}", is_new=False)
            return
        usual = SANDBOX_PORT if profile.is_sandbox else PORT
        listener = listen(port or usual, or_any=not port)
        made = make(profile, listener.getsockname()[1])
        server = DashboardServer(made, listener)
        tell_url(profile.state_dir, made.url)
        _tell(made.link(), is_new=True)
        server.serve()
        note("The dashboard has ended. What runs goes on.")


def make(profile: Profile, port: int) -> Dashboard:
    """The dashboard of a profile, with its edges: the store, the daemon's files and signals."""
    from clorefleet.clock import SystemClock
    from clorefleet.config.profile import clock_of, store_url
    from clorefleet.daemon import process
    from clorefleet.dashboard.app import Dashboard
    from clorefleet.dashboard.reading import Sources
    from clorefleet.dashboard.sign_in import Links, Sessions
    from clorefleet.node.log_tails import read_log_tail
    from clorefleet.store.database import open_store

    real = SystemClock().now

    def wake() -> None:
        process.ensure_running(profile.name, profile.state_dir)
        process.wake(profile.state_dir)

    return Dashboard(
        store=open_store(store_url(profile)),
        sources=Sources(
            find_daemon=lambda: _find_daemon(profile),
            daemon_log=lambda lines: process.log_tail(profile.state_dir, lines),
            log_tail=lambda lease_id: read_log_tail(profile.state_dir, lease_id),
        ),
        now=lambda: clock_of(profile).now(),
        links=Links(profile.state_dir, real),
        sessions=Sessions(real),
        wake=wake,
        port=port,
        profile_name=profile.name,
        flag=profile.flag,
        is_sandbox=profile.is_sandbox,
    )


def _find_daemon(profile: Profile) -> DaemonSeen | None:
    from clorefleet.daemon import process
    from clorefleet.dashboard.reading import DaemonSeen

    info = process.find(profile.state_dir)
    return None if info is None else DaemonSeen(info.pid, info.gateway_url)


def _tell(link: str, *, is_new: bool) -> None:
    if options.as_json:
        print_json({"link": link, "is_new": is_new})
    else:
        say(link)
    note("The link works once, within ten minutes. " + ("Ctrl-C ends it." if is_new else "It runs already."))

"""`clorefleet doctor`: is everything there, and what to do where it is not. Changes nothing."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer

from clorefleet.cli.context import options
from clorefleet.cli.output import age, painted, print_json, say
from clorefleet.cli.progress import working
from clorefleet.domain.errors import ClorefleetError

if TYPE_CHECKING:
    from clorefleet.config.profile import Connection

app = typer.Typer(rich_markup_mode=None, add_completion=False)
CLOCK_SKEW_MAX_S = 30
SKEW_TOLD_S = 2
"""An answer's date has whole seconds and is some time on its way."""
FREE_BYTES_MIN = 200 << 20
"""The store, its write-ahead log and a copy before an upgrade."""


@dataclass(frozen=True, slots=True)
class Finding:
    name: str
    is_good: bool
    text: str
    remedy: str = ""


@app.command()
def doctor() -> None:
    """Check key, market, wallet, time, hub, store, daemon, SSH and versions, and say what would mend them.

    Reads only. Exit code 1 when something is wrong.

    Examples:

      clorefleet doctor

      clorefleet doctor --sandbox
    """
    checks: list[Callable[[], Finding]] = [
        _version, _key, _market, _wallet, _time, _hub, _store, _daemon, _money, _ssh,
    ]  # fmt: skip
    if options.profile().is_sandbox:
        checks.append(_sandbox)
    findings = []
    with working("Checking") as progress:
        for check in checks:
            progress.what = f"Checking the {check.__name__.strip('_')}"
            findings.append(_checked(check))
    is_good = all(finding.is_good for finding in findings)
    if options.as_json:
        from clorefleet.store.codec import encode

        print_json({"good": is_good, "findings": [encode(finding) for finding in findings]})
    else:
        for finding in findings:
            mark = painted("ok ", 32, sys.stdout) if finding.is_good else painted("BAD", 31, sys.stdout)
            say(f"{mark}  {finding.name:<8} {finding.text}", hanging=14)
            if finding.remedy and not finding.is_good:
                say(f"     remedy:  {finding.remedy}", hanging=9)
    if not is_good:
        raise typer.Exit(1)


def _checked(check: Callable[[], Finding]) -> Finding:
    try:
        return check()
    except ClorefleetError as error:
        return Finding(check.__name__.strip("_"), False, error.what, error.remedy)


def _version() -> Finding:
    from clorefleet import __version__
    from clorefleet.daemon import process

    python = ".".join(map(str, sys.version_info[:3]))
    profile = options.profile()
    info = process.find(profile.state_dir)
    if info is not None and info.version != __version__:
        return Finding(
            "version",
            False,
            f"this is clorefleet {__version__}, the daemon that runs is {info.version}",
            f"clorefleet daemon stop{profile.flag} && clorefleet daemon start{profile.flag}; "
            "what is rented goes on meanwhile",
        )
    return Finding("version", True, f"clorefleet {__version__}, Python {python}")


def _key() -> Finding:
    from clorefleet.config.profile import NO_KEY_REMEDY
    from clorefleet.config.settings import load_settings

    if options.profile().is_sandbox:
        return Finding("key", True, "the sandbox has its own key; no account is used")
    if load_settings().api_key is None:
        return Finding("key", False, "there is no API key", NO_KEY_REMEDY)
    return Finding("key", True, "an API key is set")


def _market() -> Finding:
    from clorefleet.config.reach import reach
    from clorefleet.wiring import make_market

    connection = _connection()
    if not connection.api_key.reveal():
        answer = reach(f"{connection.market_url}/marketplace")
        text = f"{connection.market_url} answers (status {answer.status})"
        return Finding("market", answer.status < 500, text, "Wait a little; nothing is rented meanwhile.")
    orders = make_market(connection).fetch_orders()
    return Finding("market", True, f"answers at {connection.market_url}; {len(orders.live())} live order(s)")


def _wallet() -> Finding:
    from clorefleet.wiring import make_market

    connection = _connection()
    if not connection.api_key.reveal():
        return Finding("wallet", True, "not asked: there is no key")
    held = [each.balance for each in make_market(connection).fetch_wallets() if each.balance is not None]
    filled = [balance for balance in held if balance.amount > 0]
    text = ", ".join(map(str, filled)) or "all wallets are empty"
    return Finding("wallet", bool(filled), text, "Add funds on clore.ai; a few dollars are enough to try.")


def _time() -> Finding:
    """Ours beside the market's, as its answers are dated. Budgets end at midnight UTC by our clock."""
    from clorefleet.config.profile import clock_of
    from clorefleet.config.reach import reach

    # Not one of the market's own calls, which are limited to one a second.
    answer = reach(_connection().market_url)
    if answer.server_time is None:
        return Finding("time", True, "the market's answers are not dated; nothing to compare with")
    skew_s = (clock_of(options.profile()).now() - answer.server_time).total_seconds()
    text = f"this machine is {abs(skew_s):.0f} s {'ahead of' if skew_s > 0 else 'behind'} the market"
    return Finding(
        "time",
        abs(skew_s) <= CLOCK_SKEW_MAX_S,
        text if abs(skew_s) > SKEW_TOLD_S else "agrees with the market's",
        "Set the clock: sudo timedatectl set-ntp true",
    )


def _hub() -> Finding:
    from clorefleet.config.reach import reach

    hub_url = _connection().hub_url
    answer = reach(hub_url)
    return Finding(
        "hub",
        answer.status < 500,
        f"{hub_url} answers (status {answer.status}); servers fetch weights from there themselves",
        "Wait, or name a mirror: hub_url in config.toml.",
    )


def _connection() -> Connection:
    from clorefleet.config.profile import connect

    return connect(options.profile(), needs_key=False)


def _store() -> Finding:
    from clorefleet.config.profile import store_url
    from clorefleet.store.database import open_store

    profile = options.profile()
    with open_store(store_url(profile)).read() as tx:
        count = len(tx.deployments())
    free = shutil.disk_usage(profile.state_dir).free
    return Finding(
        "store",
        free >= FREE_BYTES_MIN,
        f"readable, {count} deployment(s), {free / (1 << 30):.1f} GiB free beside it",
        f"Free some disk at {profile.state_dir}: an intent that cannot be written rents nothing.",
    )


def _daemon() -> Finding:
    from clorefleet.config.profile import clock_of, store_url
    from clorefleet.daemon import process
    from clorefleet.store.database import open_store

    profile = options.profile()
    info = process.find(profile.state_dir)
    with open_store(store_url(profile)).read() as tx:
        open_leases, tick = len(tx.open_leases()), tx.last_tick()
    if info is None:
        return Finding(
            "daemon",
            open_leases == 0,
            f"none runs; {open_leases} lease(s) open" + ("" if open_leases else ", so none is needed"),
            f"clorefleet daemon start{profile.flag}",
        )
    trouble = "" if tick is None else tick.trouble
    if trouble:
        return Finding(
            "daemon",
            False,
            f"runs, pid {info.pid}, but its last tick had trouble: {trouble}",
            f"clorefleet logs{profile.flag}; the daemon tries again by itself",
        )
    last = "" if tick is None else f", last tick {age(clock_of(profile).now() - tick.finished_at)} ago"
    return Finding("daemon", True, f"runs, pid {info.pid}, gateway {info.gateway_url}{last}")


def _money() -> Finding:
    from clorefleet.cli.status import guard_notes

    profile = options.profile()
    notes = guard_notes(profile)
    text = " ".join(notes) or "no ceiling stops renting; the wallets last"
    remedy = f"`clorefleet wallet{profile.flag}` and `clorefleet budget{profile.flag}` show the figures."
    return Finding("money", not notes, text, remedy)


def _ssh() -> Finding:
    found = shutil.which("ssh")
    text = found or "no OpenSSH client; only `clorefleet ssh` without a command needs one"
    return Finding("ssh", True, text)


def _sandbox() -> Finding:
    from clorefleet.config.profile import check_sandbox_parts

    check_sandbox_parts()
    return Finding("sandbox", True, "all parts are installed")

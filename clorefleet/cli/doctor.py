"""`clorefleet doctor`: is everything there, and what to do where it is not. Changes nothing."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass

import typer

from clorefleet.cli.context import options
from clorefleet.cli.output import note, print_json, say
from clorefleet.domain.errors import ClorefleetError

app = typer.Typer(rich_markup_mode=None, add_completion=False)
CLOCK_SKEW_MAX_S = 30


@dataclass(frozen=True, slots=True)
class Finding:
    name: str
    is_good: bool
    text: str
    remedy: str = ""


@app.command()
def doctor() -> None:
    """Check key, market, store, daemon and tools.

    Reads only. Exit code 1 when something is wrong.

    Example:

      clorefleet doctor --sandbox
    """
    checks: list[Callable[[], Finding]] = [
        _python, _settings, _store, _market, _daemon, _guard, _ssh_client,
    ]  # fmt: skip
    if options.profile().is_sandbox:
        checks.append(_sandbox_parts)
    findings = [_checked(check) for check in checks]
    is_good = all(finding.is_good for finding in findings)
    if options.as_json:
        from clorefleet.store.codec import encode

        print_json({"good": is_good, "findings": [encode(finding) for finding in findings]})
    else:
        for finding in findings:
            say(f"{'ok  ' if finding.is_good else 'BAD '} {finding.name:<9} {finding.text}")
            if finding.remedy and not finding.is_good:
                note(f"     remedy: {finding.remedy}")
    if not is_good:
        raise typer.Exit(1)


def _checked(check: Callable[[], Finding]) -> Finding:
    try:
        return check()
    except ClorefleetError as error:
        return Finding(check.__name__.strip("_"), False, error.what, error.remedy)


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    return Finding("python", sys.version_info >= (3, 11), f"Python {version}", "Use Python 3.11 or newer.")


def _settings() -> Finding:
    from clorefleet.config.profile import NO_KEY_REMEDY
    from clorefleet.config.settings import load_settings

    if options.profile().is_sandbox:
        return Finding("key", True, "the sandbox has its own key; no account is used")
    settings = load_settings()
    if settings.api_key is None:
        return Finding("key", False, "there is no API key", NO_KEY_REMEDY)
    return Finding("key", True, f"an API key is set; market {settings.api_url}")


def _store() -> Finding:
    from clorefleet.config.profile import store_url
    from clorefleet.store.database import open_store

    with open_store(store_url(options.profile())).read() as tx:
        count = len(tx.deployments())
    return Finding("store", True, f"readable, {count} deployment(s)")


def _market() -> Finding:
    from clorefleet.config.profile import connect
    from clorefleet.wiring import make_market

    connection = connect(options.profile())
    orders = make_market(connection).fetch_orders()
    return Finding("market", True, f"answers at {connection.market_url}; {len(orders.live())} live order(s)")


def _daemon() -> Finding:
    from clorefleet.config.profile import store_url
    from clorefleet.daemon import process
    from clorefleet.store.database import open_store

    profile = options.profile()
    info = process.find(profile.state_dir)
    if info is not None:
        return Finding("daemon", True, f"runs, pid {info.pid}, gateway {info.gateway_url}")
    with open_store(store_url(profile)).read() as tx:
        open_leases = len(tx.open_leases())
    return Finding(
        "daemon",
        open_leases == 0,
        f"none runs; {open_leases} lease(s) open" + ("" if open_leases else ", so none is needed"),
        f"clorefleet daemon start{profile.flag}",
    )


def _guard() -> Finding:
    from clorefleet.cli.status import guard_notes

    notes = guard_notes(options.profile())
    text = " ".join(notes) or "no ceiling stops renting; the wallets last"
    return Finding("money", not notes, text, "`clorefleet wallet` and `clorefleet budget` show the figures.")


def _ssh_client() -> Finding:
    found = shutil.which("ssh")
    text = found or "no OpenSSH client; only `clorefleet ssh` without a command needs one"
    return Finding("ssh", True, text)


def _sandbox_parts() -> Finding:
    from clorefleet.config.profile import check_sandbox_parts

    check_sandbox_parts()
    return Finding("sandbox", True, "all parts are installed")

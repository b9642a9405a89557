"""`python -m clorefleet.sandbox.drill --kills 200`: kill the real daemon at random, and count the money
after it.

The daemon, its market over HTTP with API faults on, its servers over SSH, weights and engine are the real
ones of the sandbox, each a process of its own. Three deployments are wished for and stopped by the command
line, again and again, so that servers are rented and given back all the time. Meanwhile the daemon is
killed with SIGKILL and started again: while it starts, at any time of its life, and right after it has set
out to rent or to cancel. Then the faults stop, and these must hold:

- running is wanted: exactly one order lives for each deployment, and it is the one that serves;
- stopped is wanted: no order lives;
- every order that was ever made is in the ledger, at the market's own bill to the last unit;
- no secret lies where it must not, raw, in base64 or URL-encoded;
- each fault of a rent and of a cancel has fired, on that call: one that never fired has shown nothing.

Prints what was done, what fired and what was found; the exit code is 1 when something does not hold. The seed
draws the moments; the machine's own timing is not seeded, so that a seed names a run and does not repeat it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

from clorefleet.sandbox import process as sandbox
from clorefleet.sandbox.canaries import Canaries

RENT, CANCEL = "create_order", "cancel_order"
_BOTH: dict[str, dict[str, Any]] = {
    "timeout_before": {"hold_real_s": 2},
    "timeout_after": {"hold_real_s": 2},
    "cut_body": {},
    "error_before": {},
    "error_after": {},
    "malformed": {},
    "rate_limited": {},
}
AIMED: dict[str, dict[str, dict[str, Any]]] = {
    RENT: _BOTH | {"code1_before": {}, "code1_after": {}, "late_order": {"polls": 2}, "create_refused": {}},
    CANCEL: _BOTH | {"cancel_ignored": {}, "cancel_reported_failed": {}},
}
"""Faults that must fire on each call that moves money. They are aimed one after the other: each is on until
it has fired there."""
ANYWHERE: dict[str, dict[str, Any]] = {
    "timeout_before": {"rate": 0.02, "hold_real_s": 2},
    "timeout_after": {"rate": 0.02, "hold_real_s": 2},
    "cut_body": {"rate": 0.03},
    "error_before": {"rate": 0.03},
    "error_after": {"rate": 0.03},
    "rate_limited": {"rate": 0.02},
    "malformed": {"rate": 0.03},
    "late_order": {"rate": 0.3, "polls": 2},
    "vanishing_order": {"rate": 0.05, "polls": 1},
    "duplicate_in_list": {"rate": 0.2},
    "id_as_string": {"rate": 0.3},
    "cancel_ignored": {"rate": 0.1},
}
"""On all along, with these chances. All faults here leave the market honest about its list and its bills."""
TIME_FACTOR = 30.0
"""Simulated seconds per second: a kill costs minutes of rent, so that bills are worth comparing."""
MODEL = "smollm2-135m"
NAMES = ("drill-a", "drill-b", "drill-c")
EARLY_DEATHS, AIMED_DEATHS = 0.15, 0.7
"""Shares of the daemons that die while they start, and after they set out to rent or cancel."""
EARLY_LIFE_S = (0.05, 2.0)
LIFE_S = (0.2, 6.0)
"""From when a daemon is ready to its death: in a tick, or between two."""
SET_OUT_S, ANSWERED_S = (0.0, 2.5), (0.0, 1.0)
"""From when it has decided to rent or cancel: the request waits for its turn and is sent. And from when that
was answered: the outcome is recorded, and more is done."""
SET_OUT_WITHIN_S, ANSWERED_WITHIN_S = 10.0, 8.0
READY_S_MAX = 60
KILLS_PER_WISH = 8
"""A wish is changed once it is fulfilled, or after this many kills."""
MORE_KILLS = 2.5
"""A fault that has not fired may have this many times the kills, until it has."""
COMMAND_S_MAX = 400
SETTLE_S_MAX = 240


@dataclass
class Report:
    kills: int = 0
    wishes: int = 0
    moments: Counter[str] = field(default_factory=Counter)
    """What the daemon was at when it was killed."""
    ready_s: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def check(self, claim: str, holds: bool, detail: object = "") -> None:
        print(f"{'ok  ' if holds else 'FAIL'} {claim}" + ("" if holds else f": {detail}"))  # noqa: T201
        if not holds:
            self.failures.append(claim)


@dataclass
class Wish:
    """What one deployment is meant to be, and the command that says so while it runs."""

    name: str
    is_running: bool = False
    kills: int = 0
    command: subprocess.Popen[bytes] | None = None


class Drill:
    def __init__(self, home: Path, seed: int) -> None:
        self._random = random.Random(seed)
        env = {name: value for name, value in os.environ.items() if not name.startswith(("CLORE", "HF_"))}
        self._env = env | {"CLOREFLEET_HOME": str(home), "NO_COLOR": "1"}
        self._state = home / "state" / "sandbox"
        self._log = self._state / "daemon.log"
        self._canaries = Canaries(home, self._state)
        self._wishes = tuple(map(Wish, NAMES))
        self._left_open: set[str] = set()
        self.report = Report()

    # -- the program, from outside

    def _start(self, *words: str) -> subprocess.Popen[bytes]:
        with (self._state / "drill-commands.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-c", _MAIN, *words, "--sandbox"],
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def _run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", _MAIN, *words, "--sandbox"],
            env=self._env,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=COMMAND_S_MAX,
            check=False,
        )

    def _json(self, *words: str) -> Any:
        return json.loads(self._run(*words, "--json").stdout)

    def _market(self, name: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        info = sandbox.find(self._state / "server")
        if info is None:
            raise SystemExit("the sandbox is gone: the drill killed what it must not")
        return sandbox.control(info, name, body)

    def _live(self) -> list[int]:
        return sorted(order["id"] for order in self._market("orders")["orders"] if order["live"])

    def _ask_store(self, query: str) -> list[tuple[Any, ...]]:
        """Read the program's own store beside it; nothing while there is none."""
        try:
            with closing(sqlite3.connect(f"file:{self._state / 'clorefleet.db'}?mode=ro", uri=True)) as store:
                return store.execute(query).fetchall()
        except sqlite3.OperationalError:
            return []

    # -- the daemon

    def _spawn_daemon(self) -> subprocess.Popen[bytes]:
        with (self._state / "drill-daemon.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "clorefleet.daemon", "--profile", "sandbox"],
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _wait_until_ready(self, daemon: subprocess.Popen[bytes]) -> None:
        began_s = time.monotonic()
        while time.monotonic() < began_s + READY_S_MAX and daemon.poll() is None:
            try:
                if json.loads((self._state / "daemon.json").read_text("utf-8"))["pid"] == daemon.pid:
                    self.report.ready_s.append(time.monotonic() - began_s)
                    return
            except (OSError, ValueError, KeyError):
                pass
            time.sleep(0.05)

    def _wait_for_an_effect(self, daemon: subprocess.Popen[bytes], place: int) -> None:
        """Until it has set out to rent or to cancel, by its own log from `place` on, or was answered."""
        ways = ((_SET_OUT, SET_OUT_WITHIN_S, SET_OUT_S), (_ANSWERED, ANSWERED_WITHIN_S, ANSWERED_S))
        for words, within_s, then_s in ways:
            is_seen = self._wait_for_words(daemon, place, words, within_s)
            if words is _ANSWERED or self._random.random() < 0.5:
                time.sleep(self._random.uniform(*then_s) if is_seen else 0.0)
                return

    def _wait_for_words(
        self, daemon: subprocess.Popen[bytes], place: int, words: tuple[bytes, ...], within_s: float
    ) -> bool:
        deadline_s = time.monotonic() + within_s
        while time.monotonic() < deadline_s and daemon.poll() is None:
            news = self._log.read_bytes()[place:] if self._log.exists() else b""
            if any(word in news for word in words):
                return True
            time.sleep(0.05)
        return False

    def _kill_other_daemon(self) -> bool:
        """The one that holds the profile's lock, by the pid inside it."""
        text = (self._state / "daemon.lock").read_text("ascii").strip()
        if not text.isdigit() or not _is_daemon(int(text)):
            return False
        os.kill(int(text), signal.SIGKILL)
        return True

    # -- the drill

    def run(self, kills: int) -> Report:
        started = self._run("sandbox", "serve", "--time-factor", str(TIME_FACTOR))
        if started.returncode:
            raise SystemExit(f"the sandbox does not start: {started.stderr}")
        try:
            self._kill_again_and_again(kills)
            self._check_fired(self._market("faults"))
            self._market("faults", {"clear": True})
            self._count()
        finally:
            for wish in self._wishes:
                if wish.command is not None:
                    wish.command.kill()
                    wish.command.wait()
            self._run("daemon", "stop")
            self._run("sandbox", "stop")
        return self.report

    def _kill_again_and_again(self, kills: int) -> None:
        report, began_s = self.report, time.monotonic()
        self._market("faults", ANYWHERE)
        while report.kills < kills or (
            report.kills < kills * MORE_KILLS and self._unfired(self._market("faults"))
        ):
            self._set_faults()
            self._wish()
            if not self._kill_one():
                return
            report.kills += 1
            if report.kills % 10 == 0:
                print(  # noqa: T201
                    f"{report.kills} kills in {time.monotonic() - began_s:.0f} s, "
                    f"{len(self._market('orders')['orders'])} orders so far, {len(self._live())} live",
                    flush=True,
                )
        ready_s = sorted(report.ready_s) or [0.0]
        typical_s = ready_s[len(ready_s) // 2]
        print(f"killed while: {dict(report.moments)}; a daemon is ready after {typical_s:.1f} s")  # noqa: T201

    def _kill_one(self) -> bool:
        """Start a daemon, kill it; false when it died by itself."""
        place = self._log.stat().st_size if self._log.exists() else 0
        daemon = self._spawn_daemon()
        way = self._random.random()
        if way < EARLY_DEATHS:
            time.sleep(self._random.uniform(*EARLY_LIFE_S))
        else:
            self._wait_until_ready(daemon)
            if way < EARLY_DEATHS + AIMED_DEATHS:
                self._wait_for_an_effect(daemon, place)
            else:
                time.sleep(self._random.uniform(*LIFE_S))
        self._canaries.note()
        if daemon.poll() is None:
            daemon.kill()
            daemon.wait()
        elif daemon.returncode == _STATE_EXIT and self._kill_other_daemon():
            pass  # one that a command had started was first
        else:
            self.report.check("a daemon dies only when it is killed", False, daemon.returncode)
            return False
        in_hand = dict(self._ask_store("SELECT intent_id, effect FROM intent WHERE state = 'open'"))
        # What an earlier one left open is that one's: a rent in doubt stays so for several kills.
        effects = {effect for intent_id, effect in in_hand.items() if intent_id not in self._left_open}
        self._left_open |= in_hand.keys()
        self.report.moments.update(
            [f"{effect} in hand" for effect in sorted(effects)]
            or ["it started" if way < EARLY_DEATHS else "nothing was in hand"]
        )
        return True

    # -- faults

    def _unfired(self, status: dict[str, Any]) -> dict[str, list[str]]:
        """By call, the faults that have not fired on it yet."""
        return {
            call: missing
            for call, faults in AIMED.items()
            if (missing := [name for name in faults if not status[name]["fired_on"].get(call)])
        }

    def _set_faults(self) -> None:
        board: dict[str, dict[str, Any]] = {name: {"rate": 0} for name in AIMED[RENT] | AIMED[CANCEL]}
        board |= ANYWHERE
        aimed: set[str] = set()
        for call, missing in self._unfired(self._market("faults")).items():
            # A switch has one aim: a fault that is out for a rent leaves another for the cancel.
            name = next((each for each in missing if each not in aimed), None)
            if name is not None:
                aimed.add(name)
                board[name] = AIMED[call][name] | {"endpoints": [call], "count": 1}
        self._market("faults", board)

    def _check_fired(self, status: dict[str, Any]) -> None:
        fired = {name: each["fired_on"] for name, each in status.items() if each["fired"]}
        for call in AIMED:
            on_it = {name: where[call] for name, where in fired.items() if call in where}
            print(f"fired on {call}: {json.dumps(on_it)}")  # noqa: T201
        print("fired in all:", json.dumps({name: sum(each.values()) for name, each in fired.items()}))  # noqa: T201
        missing = self._unfired(status)
        missing |= {"any call": idle} if (idle := [name for name in ANYWHERE if name not in fired]) else {}
        self.report.check("every fault has fired, on rents and on cancels", not missing, missing)

    # -- wishes

    def _wish(self) -> None:
        """Say something else of each deployment whose wish is fulfilled, or was waited for long enough."""
        open_leases = set(
            self._ask_store(
                "SELECT deployment_id, state FROM lease WHERE state IN ('intent', 'ordered', 'ending')"
            )
        )
        guards = [json.loads(text) for (text,) in self._ask_store("SELECT document FROM fleet_guard")]
        if any(guard["stopped_at"] for guard in guards):
            self._run("budget", "--resume")  # the circuit breaker counts what the drill rents
        desired = dict(self._ask_store("SELECT deployment_id, desired FROM deployment"))
        for wish in self._wishes:
            is_said = desired.get(wish.name, "stopped") == ("running" if wish.is_running else "stopped")
            if wish.command is not None:
                if not is_said and wish.command.poll() is None:
                    continue
                # `stop` watches until the end, which the next kill would not wait for: it is killed as well.
                wish.command.kill()
                wish.command.wait()
                wish.command = None
            wish.kills += 1
            if not is_said:
                self._say(wish)  # a fault had the command fail
                continue
            is_fulfilled = (
                (wish.name, "ordered") in open_leases
                if wish.is_running
                else all(name != wish.name for name, _ in open_leases)
            )
            if is_fulfilled or wish.kills > KILLS_PER_WISH:
                wish.is_running = not wish.is_running
                self._say(wish)

    def _say(self, wish: Wish) -> None:
        self.report.wishes += 1
        wish.kills = 0
        wish.command = (
            self._start("deploy", MODEL, "--name", wish.name, "--budget", "16/day", "--detach", "--yes")
            if wish.is_running
            else self._start("stop", wish.name, "--yes")
        )

    # -- after it

    def _count(self) -> None:
        report = self.report
        self._run("budget", "--resume")
        for name in NAMES:
            served = self._run("deploy", MODEL, "--name", name, "--budget", "16/day", "--yes")
            report.check(f"running is wanted: {name} serves", served.returncode == 0, served.stderr[-300:])
        replicas = [each for row in self._json("status")["deployments"] for each in row["replicas"]]
        serving, live = sorted(each["order_id"] or 0 for each in replicas), self._live()
        report.check("exactly the orders that serve live", live == serving and len(live) == len(NAMES), live)
        self._canaries.note()
        for name in NAMES:
            stopped = self._run("stop", name, "--yes")
            report.check(f"stopped is wanted: {name}", stopped.returncode == 0, stopped.stderr[-300:])
        deadline_s = time.monotonic() + SETTLE_S_MAX
        while time.monotonic() < deadline_s:
            segments = self._json("cost")["segments"]
            if segments and all(each["state"] == "settled" for each in segments):
                break
            time.sleep(1)
        bill = self._market("bill")
        report.check("no order lives", not any(order["live"] for order in bill["orders"]), bill)
        billed = {order["order_id"]: Decimal(order["total"]) for order in bill["orders"]}
        counted: dict[int, Decimal] = {}
        for each in segments:
            counted[each["order_id"]] = counted.get(each["order_id"], Decimal(0)) + Decimal(each["cost"])
        report.check("the ledger is the market's bill, order by order", counted == billed, (counted, billed))
        sums: dict[str, Decimal] = {}
        for order in bill["orders"]:
            sums[order["currency"]] = sums.get(order["currency"], Decimal(0)) + Decimal(order["total"])
        told = " + ".join(f"{amount} {currency}" for currency, amount in sums.items())
        print(  # noqa: T201
            f"{report.kills} kills, {report.wishes} wishes, {len(billed)} orders, {told} billed and counted"
        )
        found = self._canaries.found()
        report.check(f"none of {len(self._canaries)} secrets lies on disk", not found, found)
        kept = {file.parent.name for file in self._canaries.key_files()}
        awaited = {lease_id for (lease_id,) in self._ask_store(_MAY_NEED_KEY)} & kept
        report.check("the keys of ended orders are deleted", kept == awaited, kept - awaited)
        print(f"{len(awaited)} key(s) of dropped rents wait an hour for a late order")  # noqa: T201


_MAY_NEED_KEY = """
SELECT lease_id FROM lease WHERE ended_at IS NOT NULL AND json_extract(document, '$.cancel_asked_at') IS NULL
"""
"""`clorefleet.fleet.loop.may_need_key`, without its hour."""
_SET_OUT = (b" action rent ", b" action cancel ")
_ANSWERED = (b" rent_answered ", b" cancel_answered ")
_STATE_EXIT = 8
"""The exit code of a daemon that finds another at work (docs/exit-codes.md)."""
_MAIN = "from clorefleet.cli.main import main; raise SystemExit(main())"


def _is_daemon(pid: int) -> bool:
    try:
        return b"clorefleet.daemon" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m clorefleet.sandbox.drill", description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--keep", action="store_true", help="leave the state folder for a look")
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)  # noqa: T201
    began_s = time.monotonic()
    home = Path(tempfile.mkdtemp(prefix="clorefleet-drill-"))
    try:
        report = Drill(home, arguments.seed).run(arguments.kills)
    finally:
        if arguments.keep:
            print(f"kept: {home}")  # noqa: T201
        else:
            import shutil

            shutil.rmtree(home, ignore_errors=True)
    print(f"{time.monotonic() - began_s:.0f} s; {len(report.failures)} claim(s) broken")  # noqa: T201
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())

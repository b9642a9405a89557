"""`python -m clorefleet.sandbox.drill --kills 200`: kill the real daemon at random, and count the money
after it.

The daemon, its market over HTTP with API faults on, its servers over SSH, weights and engine are the real
ones of the sandbox, each a process of its own. The daemon is killed with SIGKILL at random moments, from its
very start on, and started again, while the wish changes between running and stopped. Then the faults stop,
and four things must hold:

- running is wanted: exactly one order lives, and it is the one that serves;
- stopped is wanted: no order lives;
- every order that was ever made is in the ledger, at the market's own bill to the last unit;
- no secret lies where it must not, raw, in base64 or URL-encoded.

Prints what was done, what fired and what was found; the exit code is 1 when something does not hold. The seed
draws the moments; the machine's own timing is not seeded, so that a seed names a run and does not repeat it.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import quote

from clorefleet.sandbox import process as sandbox

FAULTS: dict[str, dict[str, Any]] = {
    "timeout_before": {"rate": 0.04, "hold_real_s": 3},
    "timeout_after": {"rate": 0.04, "hold_real_s": 3},
    "cut_body": {"rate": 0.08},
    "error_before": {"rate": 0.06},
    "error_after": {"rate": 0.06},
    "code1_before": {"rate": 0.2},
    "code1_after": {"rate": 0.3},
    "rate_limited": {"rate": 0.05},
    "malformed": {"rate": 0.05},
    "late_order": {"rate": 0.5, "polls": 2},
    "vanishing_order": {"rate": 0.05, "polls": 1},
    "duplicate_in_list": {"rate": 0.2},
    "id_as_string": {"rate": 0.3},
    "create_refused": {"rate": 0.2},
    "cancel_ignored": {"rate": 0.3},
    "cancel_reported_failed": {"rate": 0.3},
}
"""API faults that leave the market honest about its list and bills."""
TIME_FACTOR = 30.0
"""Simulated seconds per second: a kill costs minutes of rent, so that bills are worth comparing."""
MODEL = "smollm2-135m"
LIFE_S = (0.2, 6.0)
"""From when a daemon is ready to its death: in a tick, or between two."""
EARLY_DEATHS = 0.25
"""Share of the daemons that die before they are ready: in imports, migrations, first connections."""
EARLY_LIFE_S = (0.1, 2.0)
READY_S_MAX = 60
KILLS_PER_WISH = 5
COMMAND_S_MAX = 400
SETTLE_S_MAX = 240


@dataclass
class Report:
    kills: int = 0
    wishes: int = 0
    secrets: set[bytes] = field(default_factory=set)
    failures: list[str] = field(default_factory=list)

    def check(self, claim: str, holds: bool, detail: object = "") -> None:
        print(f"{'ok  ' if holds else 'FAIL'} {claim}" + ("" if holds else f": {detail}"))  # noqa: T201
        if not holds:
            self.failures.append(claim)


class Drill:
    def __init__(self, home: Path, seed: int) -> None:
        self._home = home
        self._random = random.Random(seed)
        env = {name: value for name, value in os.environ.items() if not name.startswith(("CLORE", "HF_"))}
        self._env = env | {"CLOREFLEET_HOME": str(home), "NO_COLOR": "1"}
        self._state = home / "state" / "sandbox"
        self.report = Report()

    # -- the program, from outside

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
        deadline = time.monotonic() + READY_S_MAX
        while time.monotonic() < deadline and daemon.poll() is None:
            try:
                if json.loads((self._state / "daemon.json").read_text("utf-8"))["pid"] == daemon.pid:
                    return
            except (OSError, ValueError, KeyError):
                pass
            time.sleep(0.05)

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
            self._wish(is_running=True)
            self._market("faults", FAULTS)
            self._kill_again_and_again(kills)
            fired = {name: each["fired"] for name, each in self._market("faults").items() if each["fired"]}
            print("faults fired:", json.dumps(fired))  # noqa: T201
            self._market("faults", {"clear": True})
            self._count()
        finally:
            self._run("daemon", "stop")
            self._run("sandbox", "stop")
        return self.report

    def _kill_again_and_again(self, kills: int) -> None:
        is_running = True
        while self.report.kills < kills:
            if self.report.kills and self.report.kills % KILLS_PER_WISH == 0:
                is_running = not is_running
                self._wish(is_running=is_running)
            daemon = self._spawn_daemon()
            if self._random.random() < EARLY_DEATHS:
                time.sleep(self._random.uniform(*EARLY_LIFE_S))
            else:
                self._wait_until_ready(daemon)
                time.sleep(self._random.uniform(*LIFE_S))
            self._note_secrets()
            if daemon.poll() is None:
                daemon.kill()
                daemon.wait()
            elif daemon.returncode == _STATE_EXIT and self._kill_other_daemon():
                pass  # one that a killed command had started was first
            else:
                self.report.check("a daemon dies only when it is killed", False, daemon.returncode)
                return
            self.report.kills += 1
            if self.report.kills % 10 == 0:
                live = sum(order["live"] for order in self._market("orders")["orders"])
                print(f"{self.report.kills} kills, {live} order(s) live", flush=True)  # noqa: T201

    def _wish(self, *, is_running: bool) -> None:
        self.report.wishes += 1
        if is_running:
            self._run("deploy", MODEL, "--budget", "16/day", "--detach", "--yes")
            self._run("daemon", "stop")  # deploy started one; the drill starts and kills its own
            return
        # `stop` watches until the end, which the next kill would not wait for: it is killed as well.
        words = [sys.executable, "-c", _MAIN, "stop", MODEL, "--sandbox", "--yes"]
        with subprocess.Popen(
            words, env=self._env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as watching:
            deadline = time.monotonic() + COMMAND_S_MAX
            while watching.poll() is None and time.monotonic() < deadline:
                wishes = {each["desired"] for each in self._json("status")["deployments"]}
                if wishes == {"stopped"}:
                    break
            watching.kill()
        self._run("daemon", "stop")

    def _count(self) -> None:
        report = self.report
        served = self._run("deploy", MODEL, "--budget", "16/day", "--yes")
        report.check("running is wanted: it serves", served.returncode == 0, served.stderr[-300:])
        status = self._json("status")
        [replica] = [each for row in status["deployments"] for each in row["replicas"]] or [{}]
        live = [order["id"] for order in self._market("orders")["orders"] if order["live"]]
        report.check("exactly the order that serves lives", live == [replica.get("order_id")], live)
        self._note_secrets()
        stopped = self._run("stop", MODEL, "--yes")
        report.check("stopped is wanted: stop says so", stopped.returncode == 0, stopped.stderr[-300:])
        deadline = time.monotonic() + SETTLE_S_MAX
        while time.monotonic() < deadline:
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
        print(  # noqa: T201
            f"{report.kills} kills, {report.wishes} wishes, {len(billed)} orders, "
            f"${sum(billed.values(), Decimal(0))} billed and counted"
        )
        self._look_for_secrets()

    # -- secrets

    def _note_secrets(self) -> None:
        """What must not turn up elsewhere: read where each belongs, while it is there."""
        info = sandbox.find(self._state / "server")
        if info is not None:
            self.report.secrets.add(info.api_key.encode())
        for file in [self._state / "gateway.token", *self._state.glob("keys/*/*")]:
            try:
                content = file.read_bytes().strip()
            except OSError:
                continue
            if b"PRIVATE KEY" in content:
                # One line from the middle of the key: its head and tail are the same for all.
                lines = content.splitlines()
                self.report.secrets.add(lines[len(lines) // 2])
            elif file.name in ("gateway.token", "password"):
                self.report.secrets.add(content)

    def _look_for_secrets(self) -> None:
        needles = {form for secret in self.report.secrets for form in _forms(secret)}
        found = []
        for file in self._home.rglob("*"):
            place = file.relative_to(self._state) if file.is_relative_to(self._state) else file
            if not file.is_file() or place.parts[0] in ("server", "keys", "gateway.token"):
                continue
            content = file.read_bytes()
            found += [str(place) for needle in needles if needle in content]
        self.report.check(f"none of {len(self.report.secrets)} secrets lies on disk", not found, set(found))
        keys = [file for file in self._state.glob("keys/*/*") if file.is_file()]
        self.report.check("the keys of ended orders are deleted", not keys, keys)


_STATE_EXIT = 8
"""The exit code of a daemon that finds another at work (docs/exit-codes.md)."""
_MAIN = "from clorefleet.cli.main import main; raise SystemExit(main())"


def _forms(secret: bytes) -> set[bytes]:
    """Raw, URL-encoded, and in base64 at each of the three alignments."""
    forms = {secret, quote(secret, safe="").encode()}
    for shift in range(3):
        coded = base64.b64encode(b"\0" * shift + secret)
        # The letters at both ends also depend on the neighbours.
        forms.add(coded[4 if shift else 0 : -4])
    return {form for form in forms if len(form) >= 12}


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
        if not arguments.keep:
            import shutil

            shutil.rmtree(home, ignore_errors=True)
    print(f"{time.monotonic() - began_s:.0f} s; {len(report.failures)} claim(s) broken")  # noqa: T201
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())

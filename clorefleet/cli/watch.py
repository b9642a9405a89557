"""Watching a deployment come up or end: what the daemon writes down, as it writes it.

On a terminal one line moves; elsewhere a line is printed for each change. Watching changes nothing:
Ctrl-C ends the watching alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from decimal import Decimal
from typing import TYPE_CHECKING

from clorefleet.cli import progress
from clorefleet.cli.context import options
from clorefleet.cli.output import note, print_json, say, say_verbatim, usd
from clorefleet.domain.errors import ClorefleetError, DaemonError, ExitCode
from clorefleet.domain.identity import DeploymentId

if TYPE_CHECKING:
    from clorefleet.config.profile import Connection
    from clorefleet.report.status import DeploymentStatus, ReplicaStatus
    from clorefleet.store.database import Store

POLL_S = 0.25
QUIET_LINE_EVERY_S = 10
SILENT_S_MAX = 100
"""A daemon beats every 15 s, and whoever stands by takes over after 95 s without; after that, one that runs
here and guards nothing is ended."""


class NotServing(ClorefleetError):
    """The deployment gave up or was stopped while it was watched."""

    exit_code = ExitCode.NOT_READY


class Watcher:
    """Reads the store a few times a second and prints what is new."""

    def __init__(self, store: Store, connection: Connection, deployment_id: str) -> None:
        self._store = store
        self._connection = connection
        self._deployment_id = DeploymentId(deployment_id)
        self._started_s = time.monotonic()
        self._last_quiet_s = time.monotonic()
        self._beat: tuple[int, int] | None = None
        self._beat_seen_s = time.monotonic()
        with store.read() as tx:
            newest = tx.events(limit=1)
            self._seen_event = newest[-1][0] if newest else 0

    def follow(self, is_done: Callable[[DeploymentStatus], bool]) -> DeploymentStatus:
        """Print until `is_done`; the last status.

        Raises:
            DaemonError: the daemon died and could not be started again.
        """
        while True:
            status = self._look()
            if is_done(status):
                progress.clear_line()
                return status
            self._show(status)
            self._ensure_guarded()
            time.sleep(POLL_S)

    def _look(self) -> DeploymentStatus:
        from clorefleet.report.status import fleet_status

        with self._store.read() as tx:
            deployment = tx.deployment(self._deployment_id)
            leases = tx.open_leases()
            segments = tx.segments(self._deployment_id)
            events = tx.events(self._deployment_id, after_id=self._seen_event)
            leader = tx.leadership()
            wanted = tx.wanted()
        beat = None if leader is None else (leader.token, leader.beat)
        if beat != self._beat:
            self._beat, self._beat_seen_s = beat, time.monotonic()
        if deployment is None:
            raise NotServing(f"There is no deployment “{self._deployment_id}”.")
        for event_id, event in events:
            self._seen_event = max(self._seen_event, event_id)
            if event.name not in ("job_started", "cancel_done"):
                self._print(event.text)
        if deployment.schedule is None and deployment.scale is None and deployment.idle is None:
            wanted = {}  # as many as it says itself, also before the next tick has found that
        now = self._connection.clock.now()
        return fleet_status([deployment], leases, segments, now=now, wanted=wanted).deployments[0]

    def _print(self, text: str) -> None:
        if options.as_json:
            return
        elapsed = time.monotonic() - self._started_s
        stamp = f"{elapsed:6.1f} s  "
        note(stamp + text, hanging=len(stamp.lstrip()))

    def _show(self, status: DeploymentStatus) -> None:
        if options.as_json:
            return
        text = _progress_line(status)
        if progress.is_watched():
            progress.show_line(text)
        elif time.monotonic() - self._last_quiet_s > QUIET_LINE_EVERY_S:
            self._last_quiet_s = time.monotonic()
            note(f"{time.monotonic() - self._started_s:6.1f} s  … {text}")

    def _ensure_guarded(self) -> None:
        from clorefleet.daemon import process

        profile = self._connection.profile
        pid = process.running_pid(profile.state_dir)
        silent_s = time.monotonic() - self._beat_seen_s
        if pid is None:
            self._print("The daemon has died; starting it again. Nothing is lost: it looks and goes on.")
        elif silent_s > SILENT_S_MAX:
            self._print(
                f"The daemon (pid {pid}) has shown no sign of life for {silent_s:.0f} s; ending it and "
                "starting another. Nothing is lost: it looks and goes on."
            )
            process.kill(profile.state_dir)
        else:
            return
        process.ensure_running(profile.name, profile.state_dir)
        self._beat_seen_s = time.monotonic()


def watch_until_serving(store: Store, connection: Connection, deployment_id: str) -> None:
    """Until all replicas serve; prints how to use and how to stop it.

    Raises:
        NotServing: the deployment gave up.
        BudgetExceeded: renting is stopped and a replica is missing: nothing more would happen.
    """
    from clorefleet.cli.deployment import check_renting

    def is_done(status: DeploymentStatus) -> bool:
        serving = [each for each in status.replicas if each.phase == "serving"]
        # One that slept is wanted none of until the daemon's next tick; who watches has woken it.
        if len(serving) >= max(1, status.wanted_replicas) or status.state in ("gave up", "stopped"):
            return True
        if len(serving) == len(status.replicas):
            with store.read() as tx:
                check_renting(tx.guard(), money=_while_stopped(status))
        return False

    flag = connection.profile.flag
    try:
        status = Watcher(store, connection, deployment_id).follow(is_done)
    except KeyboardInterrupt:
        note("")
        note("Stopped watching; the daemon goes on, and so does the spending.")
        note(f"  see:  clorefleet status{flag} --watch")
        note(f"  stop: clorefleet stop {deployment_id}{flag}")
        raise
    if status.state != "serving":
        raise NotServing(
            f"{deployment_id} does not serve: {status.note or status.state}",
            remedy=f"`clorefleet logs {deployment_id}{flag}` shows what was tried.",
            money=f"It cost {usd(status.spent_usd, 4)} so far; nothing of it is rented now.",
        )
    _show_serving(status, connection)


def _while_stopped(status: DeploymentStatus) -> str:
    if not status.replicas:
        return "Nothing of it is rented now."
    return f"Nothing more is rented; {len(status.replicas)} of it serve, at {usd(status.usd_per_day)}/day."


def _show_serving(status: DeploymentStatus, connection: Connection) -> None:
    from clorefleet.daemon import process

    profile = connection.profile
    info = process.find(profile.state_dir)
    if info is None:
        raise DaemonError(
            "The daemon ended while I watched.",
            remedy=f"`clorefleet daemon start{profile.flag}`; the deployment goes on from where it is.",
        )
    token_file = profile.state_dir / "gateway.token"
    if options.as_json:
        from clorefleet.store.codec import encode

        print_json(encode(status) | {"gateway_url": info.gateway_url, "token_file": str(token_file)})
        return
    say()
    say(f"{status.model} answers at {info.gateway_url}/v1")
    say()
    say_verbatim(f"  curl {info.gateway_url}/v1/chat/completions \\")
    say_verbatim(f'    -H "Authorization: Bearer $(cat {token_file})" \\')
    say_verbatim("    -H 'Content-Type: application/json' \\")
    body = f'{{"model": "{status.model}", "messages": [{{"role": "user", "content": "Hello"}}]}}'
    say_verbatim(f"    -d '{body}'")
    say()
    for replica in status.replicas:
        _show_replica(replica, is_sandbox=profile.is_sandbox)
    say(f"Spent so far {usd(status.spent_usd, 4)}; budget {status.budget}.")
    say(f"Stop it and the spending: clorefleet stop {status.deployment_id}{profile.flag}")


def _show_replica(replica: ReplicaStatus, *, is_sandbox: bool) -> None:
    say(
        f"Server {replica.server_id} ({replica.gpus}), {replica.setup}: {usd(replica.usd_per_day)}/day, "
        f"fee included."
    )
    measured = replica.measured_tokens_per_s
    if measured is None:
        return
    if replica.engine_is_simulated:
        what = "on a simulated engine paced like the hardware; the words come from a small real model"
    elif is_sandbox:
        what = "by a real llama.cpp on this machine's processor; the GPU server is simulated"
    else:
        what = "in a short check"
    say(
        f"Speed for one stream: {replica.predicted_tokens_per_s:.1f} tok/s predicted, "
        f"{measured:.1f} measured {what}."
    )
    if replica.degraded:
        say(f"It is degraded: {replica.degraded}. It serves, and costs the same.")


def watch_until_stopped(store: Store, connection: Connection, deployment_id: str) -> Decimal:
    """Until the market's list shows nothing of it; what it cost in all, in USD."""
    status = Watcher(store, connection, deployment_id).follow(
        lambda status: not status.replicas and not _is_unsettled(store, deployment_id)
    )
    return status.spent_usd


def _is_unsettled(store: Store, deployment_id: str) -> bool:
    with store.read() as tx:
        return any(each.settled_at is None for each in tx.segments(DeploymentId(deployment_id)))


def _progress_line(status: DeploymentStatus) -> str:
    if not status.replicas:
        return status.note or "planning"
    parts = []
    for replica in status.replicas:
        text = "outbid" if replica.state == "outbid" else str(replica.phase)
        if replica.progress_fraction is not None:
            text += f" {progress.bar(replica.progress_fraction)}"
        if replica.progress:
            text += f" ({replica.progress})"
        text += f" {int(replica.in_phase.total_seconds())} s"
        parts.append(text)
    return f"{'; '.join(parts)} · {usd(status.spent_usd, 4)} so far"

"""`clorefleet logs`: what happened to a deployment, and what its engine said."""

from __future__ import annotations

import time

import typer

from clorefleet.cli.context import options
from clorefleet.cli.output import note, print_json, print_json_line, say, say_verbatim

app = typer.Typer(rich_markup_mode=None, add_completion=False)
STAMP_CHARS = 21
FOLLOWED_A_ROUND_MAX = 5_000
FOLLOW_EVERY_S = 0.5
FOLLOW_AGAIN_S = 3.0
FOLLOW_PER_SESSION = 20
"""Readings before the store is asked again which server it is, and which launch."""


@app.command()
def logs(
    name: str = typer.Argument("", help="A deployment; default: all."),
    lines: int = typer.Option(40, "--lines", "-n", min=1, max=5_000, help="How many, at most."),
    follow: bool = typer.Option(False, "--follow", "-f", help="Go on as more happens."),
    engine: bool = typer.Option(False, "--engine", help="The engine's own log, read from the server."),
) -> None:
    """Show what happened to a deployment, and its engine's log.

    Lines from a rented server are bounded and stripped of control characters. With --follow and --json each
    line is a document of its own.

    Examples:

      clorefleet logs glm-5.1 --follow

      clorefleet logs smollm2-135m --engine --follow --sandbox
    """
    from clorefleet.cli.deployment import find_deployment
    from clorefleet.config.profile import store_url
    from clorefleet.domain.identity import DeploymentId
    from clorefleet.store.database import open_store

    profile = options.profile()
    store = open_store(store_url(profile))
    deployment_id = DeploymentId(name) if name else None
    if deployment_id is not None:
        with store.read() as tx:
            find_deployment(tx, name)
    if engine and follow:
        _follow_engine(name)
        return
    if engine:
        _engine_log(name, lines)
        return
    seen = 0
    limit = lines
    while True:
        with store.read() as tx:
            events = tx.events(deployment_id, after_id=seen, limit=limit)
        limit = FOLLOWED_A_ROUND_MAX  # what comes is shown whole: one tick writes several
        if options.as_json and follow:
            for _, event in events:
                print_json_line(_plain(event))
        elif options.as_json:
            print_json({"events": [_plain(each) for _, each in events]})
        else:
            for _, event in events:
                say(f"{event.at:%Y-%m-%d %H:%M:%S}  {event.text}", hanging=STAMP_CHARS)
        seen = max([seen, *(event_id for event_id, _ in events)])
        if not follow:
            if not events:
                note("Nothing has happened yet.")
            return
        time.sleep(FOLLOW_EVERY_S)


def _plain(event: object) -> object:
    from clorefleet.store.codec import encode

    return encode(event)


def _follow_engine(name: str) -> None:
    """The engine's log from its end on, until Ctrl-C or until its server is given back. A relaunch of the
    engine is followed as well; a cut connection is made again."""
    from clorefleet.cli.replica import find_replica, open_session
    from clorefleet.domain.errors import NodeError
    from clorefleet.node.operator import EngineLogReader

    reader = EngineLogReader()
    trouble = ""
    while True:
        connection, lease = find_replica(name)
        try:
            with open_session(connection, lease) as session:
                trouble = ""
                for _ in range(FOLLOW_PER_SESSION):
                    for line in reader.read(session, lease):
                        _say_line(lease.lease_id, line)
                    time.sleep(FOLLOW_EVERY_S)
        except NodeError as error:
            if error.what != trouble:
                note(f"The server does not answer: {error.what} It is tried again.")
            trouble = error.what
            time.sleep(FOLLOW_AGAIN_S)


def _say_line(lease_id: str, line: str) -> None:
    if options.as_json:
        print_json_line({"lease_id": lease_id, "line": line})
    else:
        say_verbatim(line)


def _engine_log(name: str, lines: int) -> None:
    from clorefleet.cli.replica import find_replica, open_session
    from clorefleet.node.operator import read_engine_log

    connection, lease = find_replica(name)
    with open_session(connection, lease) as session:
        text = read_engine_log(session, lease, lines)
    if options.as_json:
        print_json({"lease_id": lease.lease_id, "lines": text})
        return
    for line in text:
        say_verbatim(line)

"""Finding the replica that a command is about, and a session on its server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clorefleet.cli.context import options

if TYPE_CHECKING:
    from clorefleet.config.profile import Connection
    from clorefleet.domain.lease import Lease
    from clorefleet.node.session import NodeSession


def find_replica(name: str) -> tuple[Connection, Lease]:
    """The open lease of a deployment that has a pinned host key; `name/1` is the one in slot 1 of `name`.

    Raises:
        BadInput: none, or more than one deployment could be meant.
    """
    from clorefleet.cli.deployment import find_deployment
    from clorefleet.config.profile import connect
    from clorefleet.domain.errors import BadInput
    from clorefleet.store.database import open_store

    connection = connect(options.profile())
    deployment, slash, slot = name.partition("/")
    with open_store(connection.store_url).read() as tx:
        if name:
            find_deployment(tx, deployment)
        leases = tx.open_leases()
    found = [
        lease
        for lease in leases
        if (not name or lease.deployment_id == deployment) and (not slash or str(lease.slot) == slot)
    ]
    reachable = [lease for lease in found if lease.host_key and lease.address]
    flag = connection.profile.flag
    if not reachable:
        what = f"“{name}” has" if name else "There is"
        raise BadInput(
            f"{what} no server that can be reached yet.", remedy=f"`clorefleet status{flag}` shows what runs."
        )
    if not name and len({lease.deployment_id for lease in reachable}) > 1:
        names = ", ".join(sorted({lease.deployment_id for lease in reachable}))
        raise BadInput("There is more than one deployment.", remedy=f"Name one of {names}.")
    return connection, reachable[0]


def open_session(connection: Connection, lease: Lease) -> NodeSession:
    """A session of this process's own, on the pinned host key."""
    from clorefleet.wiring import connect_node

    return connect_node(connection, lease)

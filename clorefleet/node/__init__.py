"""A rented server as seen over SSH. It is a stranger's machine: nothing it says is trusted unread.

    keys       the lease's own key pair and nonce, on our disk
    session    one SSH connection: host key pinned, commands bounded in time and output
    probe      what the machine is, in one round trip; and how it differs from its offer
    jobs       detached, idempotent work on the node
    weights    what to download (manifest from the hub) and the job that does it
    tunnel     a UNIX socket on our side in front of a port on the node's loopback
    operator   all of it put together for the fleet: one look, one start, one way in

Rules: every command has a time limit and an output limit; every word that goes into a shell is quoted;
text that comes back is bounded and cleaned before anybody sees it.
"""

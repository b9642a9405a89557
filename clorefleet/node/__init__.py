"""A rented server as seen over SSH. It is a stranger's machine: nothing it says is trusted unread.

    keys       the lease's own key pair and nonce, on our disk
    session    one SSH connection: host key pinned, commands bounded in time and output
    pool       one kept session per lease, opened again with growing pauses
    probe      what the machine is, in one round trip; and how it differs from its offer
    jobs       detached, idempotent work on the node
    install    the engine on a base image: pinned packages, by a job
    weights    what to download (manifest from the hub) and the job that does it
    tunnel     a UNIX socket on our side in front of a port on the node's loopback
    bootstrap  what each phase of a replica asks of a node: one look or one start each
    operator   all of it put together for the fleet: one look, one start, one way in
    payload/   programs that run on nodes, with whatever Python 3 is there

The fleet needs `operator.NodeOperator` alone (the `Nodes` of `clorefleet.fleet.edges`):

    prepare(lease_id) -> Credentials
    look(lease, order) -> NodeView                      troubles are in the view
    start_work(lease, phase, attempt) -> None           raises NodeError; safe to repeat
    backend(lease) -> Backend | None
    forget(lease_id), close()

What is built on a session directly (`clorefleet ssh`, `logs`, checks) uses

    NodeSession.connect(address, private_key_file, *, pinned_host_key="", allow_loopback=False, timeout_s)
        .host_key  .is_alive  .home()  .check_nonce(nonce)  .close()
        .run(words, *, timeout_s, max_output_bytes, stdin) -> CommandResult
        .run_ok(...) -> str                 .run_raw(...) -> (status, out, err)
        .write_file(path, data, *, mode)    .read_file(path, *, max_bytes) -> bytes
        .open_tunnel_channel(port, *, timeout_s)
    jobs.start(session, spec) -> bool       jobs.read(session, job_id, *, log_bytes, log_lines) -> JobReport
    jobs.stop(session, job_id, *, signal_name)
    jobs.read_log(session, job_id, *, offset, max_bytes) -> (lines, next_offset)
    jobs.read_log_tail(session, job_id, *, lines) -> lines

Rules: every command has a time limit and an output limit; every word that goes into a shell is quoted;
a cut connection is never read as an end; text that comes back is bounded and cleaned before anybody sees it.
"""

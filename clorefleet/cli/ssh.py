"""`clorefleet ssh`: a shell on a replica's server, with the order's own key and the pinned host key."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import typer

SSH_PORT = 22

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command(context_settings={"ignore_unknown_options": True})
def ssh(
    name: str = typer.Argument("", help="A deployment, or DEPLOYMENT/1 for its replica 1; may be left out."),
    command: list[str] = typer.Argument(None, help="A command to run instead of a shell."),
) -> None:
    """Open a shell on a replica's server.

    Uses the OpenSSH client where there is one, with a known-hosts file of this order alone; nothing in
    ~/.ssh is read or written. With a command and no OpenSSH client, runs the command itself.

    Examples:

      clorefleet ssh glm-5.1

      clorefleet ssh smollm2-135m nvidia-smi --sandbox
    """
    from clorefleet.cli.replica import find_replica, open_session
    from clorefleet.domain.errors import ConfigError

    connection, lease = find_replica(name)
    client = shutil.which("ssh")
    if client is None:
        if not command:
            raise ConfigError(
                "There is no OpenSSH client on this machine.",
                remedy="Install one (Debian: apt install openssh-client), or give a command to run.",
            )
        with open_session(connection, lease) as session:
            result = session.run(command, timeout_s=600, max_output_bytes=16_000_000)
        sys.stdout.write(result.stdout)
        sys.stderr.write(result.stderr)
        raise typer.Exit(result.exit_status)
    from clorefleet.node.keys import private_key_path

    address = lease.address
    if address is None:  # find_replica returns only leases that have one
        raise ConfigError("The market has not published an address yet.", remedy="Try again in a minute.")
    host = address.hosts[0]
    with tempfile.TemporaryDirectory() as folder:
        known_hosts = Path(folder) / "known_hosts"
        known_hosts.write_text(f"{known_as(host, address.port)} {lease.host_key}\n")
        arguments = [
            client,
            "-F", "none",
            "-i", str(private_key_path(connection.profile.state_dir, lease.lease_id)),
            "-p", str(address.port),
            "-o", "IdentitiesOnly=yes",
            "-o", "IdentityAgent=none",
            "-o", "StrictHostKeyChecking=yes",
            "-o", f"UserKnownHostsFile={known_hosts}",
            "-o", "GlobalKnownHostsFile=none",
            "-o", "ForwardAgent=no",
            "-o", "ForwardX11=no",
            "--",
            f"root@{host}",
            *([shlex.join(command)] if command else []),
        ]  # fmt: skip
        raise typer.Exit(subprocess.call(arguments))


def known_as(host: str, port: int) -> str:
    """The name under which OpenSSH looks for a server's key: the bare one for its own port."""
    return host if port == SSH_PORT else f"[{host}]:{port}"

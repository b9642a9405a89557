"""What an order is given so that only we can log in, and so that we know the machine again.

    key pair    ed25519, ours: the only thing we log in with
    host key    ed25519, the server's: made here and put in place by the order's start-up script, so that the
                first byte already comes from a known server
    nonce       what the machine must know where the image does not take our host key
    password    the market asks for one; it opens the server for a person in need and never leaves the market
                and this folder: our client does not know how to send it

All are made fresh for each order. They live in `<state>/keys/<lease>/` (0700, files 0600) and nowhere else,
and are deleted when the order has ended. The market's key never goes to a node, and what is here opens
nothing but that node.
"""

from __future__ import annotations

import re
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from clorefleet.config.places import make_private_dir, write_private_file
from clorefleet.domain.identity import LeaseId
from clorefleet.domain.node import Credentials
from clorefleet.domain.secret import Secret

NONCE_BYTES = 16
PASSWORD_BYTES = 18
"""144 bits, 24 letters: nobody types it but from a copy."""
PLACE_BYTES = 8
_PLACE_FILE = "key-place"
_LEASE_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_HOST_KEY_TEXT = re.compile(
    r"-----BEGIN OPENSSH PRIVATE KEY-----\n[A-Za-z0-9+/=\n]{1,2000}-----END OPENSSH PRIVATE KEY-----\n"
)


@dataclass(frozen=True, slots=True)
class LeaseKeys:
    private_key_file: Path
    public_key: str
    """One line in authorized_keys form."""
    nonce: str
    """Given to the order's environment; only the machine that the market started knows it."""
    host_public_key: str
    """`ssh-ed25519 AAAA...`: what the server shows where the image takes the key we made for it."""
    host_private_key: Secret
    password: Secret

    @property
    def credentials(self) -> Credentials:
        return Credentials(self.public_key, self.nonce, self.password, self.host_private_key)


def _folder(state_dir: Path, lease_id: LeaseId) -> Path:
    if not _LEASE_ID.fullmatch(lease_id):
        raise ValueError(f"{lease_id!r} cannot name a folder")
    return state_dir / "keys" / lease_id


def private_key_path(state_dir: Path, lease_id: LeaseId) -> Path:
    return _folder(state_dir, lease_id) / "id_ed25519"


def make_keys(state_dir: Path, lease_id: LeaseId) -> LeaseKeys:
    """The lease's keys, made at the first call and found again at every later one."""
    found = load_keys(state_dir, lease_id)
    if found is not None:
        return found
    folder = make_private_dir(_folder(state_dir, lease_id))
    write_private_file(folder / "nonce", secrets.token_hex(NONCE_BYTES).encode())
    write_private_file(folder / "password", secrets.token_urlsafe(PASSWORD_BYTES).encode())
    _write_pair(folder, "host_key")
    # Last, since its presence means that the others are complete.
    _write_pair(folder, "id_ed25519")
    keys = load_keys(state_dir, lease_id)
    if keys is None:
        raise OSError(f"the keys of lease {lease_id} were written and cannot be read")
    return keys


def _write_pair(folder: Path, name: str) -> None:
    private = Ed25519PrivateKey.generate()
    public = private.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    secret = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    write_private_file(folder / f"{name}.pub", public + b" clorefleet\n")
    write_private_file(folder / name, secret)


def load_keys(state_dir: Path, lease_id: LeaseId) -> LeaseKeys | None:
    """None where there are none, or not all of them: a lease of an older version is given back."""
    folder = _folder(state_dir, lease_id)
    private = folder / "id_ed25519"
    if not private.exists():
        return None
    try:
        return LeaseKeys(
            private_key_file=private,
            public_key=(folder / "id_ed25519.pub").read_text("ascii").strip(),
            nonce=(folder / "nonce").read_text("ascii"),
            host_public_key=" ".join((folder / "host_key.pub").read_text("ascii").split()[:2]),
            host_private_key=Secret((folder / "host_key").read_text("ascii")),
            password=Secret((folder / "password").read_text("ascii")),
        )
    except FileNotFoundError:
        return None


def delete_keys(state_dir: Path, lease_id: LeaseId) -> None:
    """Forget them; a second call changes nothing."""
    shutil.rmtree(_folder(state_dir, lease_id), ignore_errors=True)


def key_place(state_dir: Path) -> str:
    """The name of this key folder, drawn when it is first asked for. What it holds, no other machine has."""
    file = make_private_dir(state_dir) / _PLACE_FILE
    if not file.exists():
        write_private_file(file, secrets.token_hex(PLACE_BYTES).encode())
    return file.read_text("ascii")


def kept_keys(state_dir: Path) -> frozenset[LeaseId]:
    """The leases whose keys are in the state folder."""
    folder = state_dir / "keys"
    if not folder.is_dir():
        return frozenset()
    return frozenset(LeaseId(path.name) for path in folder.iterdir() if _LEASE_ID.fullmatch(path.name))


# No ampersand anywhere: the market is known to choke on one in another field of an order.
_STARTUP = """#!/bin/sh
umask 077
d=/etc/ssh
mkdir -p "$d"
cat > "$d/clorefleet.new" <<'KEY'
{host_key}KEY
mv -f "$d/clorefleet.new" "$d/ssh_host_ed25519_key"
rm -f "$d/ssh_host_ed25519_key.pub"
for p in /run/sshd.pid /var/run/sshd.pid; do
  if [ -s "$p" ]; then kill -HUP "$(cat "$p")"; break; fi
done
f="${{HOME:-/root}}/.clorefleet-nonce"
printf %s {nonce} > "$f.tmp"
mv -f "$f.tmp" "$f"
"""


def startup_command(credentials: Credentials) -> str:
    """The order's start-up script: gives the SSH server our host key, then leaves the nonce in a file.

    Whether it runs before the image's SSH server starts is not documented; a server that runs already is told
    to read its keys again. The nonce comes last: whoever can read it talks to a machine where the rest is
    done. Containers differ in whether a session inherits the order's environment; the file is in all of them.

    Raises:
        ValueError: what would go into the script is not what `make_keys` makes.
    """
    host_key = credentials.host_private_key.reveal()
    if not re.fullmatch(r"[0-9a-f]{32}", credentials.nonce):
        raise ValueError("a nonce is 32 hexadecimal digits")
    if not _HOST_KEY_TEXT.fullmatch(host_key):
        raise ValueError("a host key is an OpenSSH private key")
    return _STARTUP.format(host_key=host_key, nonce=credentials.nonce)

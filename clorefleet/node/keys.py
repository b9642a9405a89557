"""The lease's own credentials: an ed25519 key pair and a nonce, made fresh for each order.

They live in `<state>/keys/<lease>/` (0700, files 0600) and nowhere else, and are deleted when the order
has ended. The market's key never goes to a node, and a node's key opens nothing but that node.
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

NONCE_BYTES = 16
_LEASE_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True, slots=True)
class LeaseKeys:
    private_key_file: Path
    public_key: str
    """One line in authorized_keys form."""
    nonce: str
    """Given to the order's environment; only the machine that the market started knows it."""


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
    private = Ed25519PrivateKey.generate()
    public = private.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    secret = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    write_private_file(folder / "nonce", secrets.token_hex(NONCE_BYTES).encode())
    write_private_file(folder / "id_ed25519.pub", public + b" clorefleet\n")
    # Last, since its presence means that the others are complete.
    write_private_file(folder / "id_ed25519", secret)
    keys = load_keys(state_dir, lease_id)
    if keys is None:
        raise OSError(f"the keys of lease {lease_id} were written and cannot be read")
    return keys


def load_keys(state_dir: Path, lease_id: LeaseId) -> LeaseKeys | None:
    folder = _folder(state_dir, lease_id)
    private = folder / "id_ed25519"
    if not private.exists():
        return None
    return LeaseKeys(
        private_key_file=private,
        public_key=(folder / "id_ed25519.pub").read_text("ascii").strip(),
        nonce=(folder / "nonce").read_text("ascii"),
    )


def delete_keys(state_dir: Path, lease_id: LeaseId) -> None:
    """Forget them; a second call changes nothing."""
    shutil.rmtree(_folder(state_dir, lease_id), ignore_errors=True)


def startup_command(nonce: str) -> str:
    """The order's start-up script: leaves the nonce where an SSH session can read it.

    Containers differ in whether an SSH session inherits the order's environment; this file is there in
    all of them. The nonce is hexadecimal, so that no quoting can go wrong on the way.
    """
    if not re.fullmatch(r"[0-9a-f]{32}", nonce):
        raise ValueError("a nonce is 32 hexadecimal digits")
    return (
        "#!/bin/sh\n"
        "umask 077\n"
        'f="${HOME:-/root}/.clorefleet-nonce"\n'
        f'printf %s {nonce} > "$f.tmp" && mv "$f.tmp" "$f"\n'
    )

"""The sandbox's state directory: which files it has, its lock, and how they are written privately.

Standard library only: command line programs import this to find a running sandbox.

    sandbox.json   how to reach the running server, its key included; only while one runs
    sandbox.lock   held with flock by the one server of this directory; names its pid
    market.db      orders, wallets, clock
    nodes/         one folder per rented node
    sandbox.log    what the detached server printed
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_LOCK_TEXT_MAX_BYTES = 64
_LOCK_ATTEMPTS = 5
_LOCK_PAUSE_S = 0.02


class StateDirBusy(Exception):
    """Another sandbox server holds the directory."""


@dataclass(frozen=True, slots=True)
class StateDir:
    path: Path

    @property
    def info_file(self) -> Path:
        return self.path / "sandbox.json"

    @property
    def lock_file(self) -> Path:
        return self.path / "sandbox.lock"

    @property
    def database_file(self) -> Path:
        return self.path / "market.db"

    @property
    def nodes_dir(self) -> Path:
        return self.path / "nodes"

    @property
    def log_file(self) -> Path:
        return self.path / "sandbox.log"

    def create(self) -> None:
        """Make the directory, readable by its owner alone."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path.chmod(0o700)

    def lock(self) -> int:
        """Take the directory for this process; returns the descriptor that holds the lock.

        Raises `StateDirBusy` when another process has it. A few quick attempts are made, since `is_held`
        in another process takes the lock for a moment to look.
        """
        descriptor = os.open(self.lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        for attempt in range(_LOCK_ATTEMPTS):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if attempt == _LOCK_ATTEMPTS - 1:
                    os.close(descriptor)
                    raise StateDirBusy(f"another sandbox runs in {self.path}") from error
                time.sleep(_LOCK_PAUSE_S)
        os.ftruncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
        return descriptor

    def is_held(self) -> bool:
        """A server of this directory is alive. The kernel's lock says so, and no stale pid can."""
        try:
            descriptor = os.open(self.lock_file, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
        finally:
            os.close(descriptor)
        return False

    def holder_pid(self) -> int | None:
        """The pid of the living server, or None when there is none or it has not yet written it."""
        if not self.is_held():
            return None
        text = self.lock_file.read_bytes()[:_LOCK_TEXT_MAX_BYTES].decode(errors="replace")
        return int(text) if text.isdigit() else None

    def write_info(self, info: dict[str, Any]) -> None:
        """Replace `sandbox.json` atomically, mode 0600 from its first byte."""
        temporary = self.info_file.with_name(f".sandbox.json.{os.getpid()}.tmp")
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(info, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.info_file)

    def read_info(self) -> dict[str, Any] | None:
        try:
            info = json.loads(self.info_file.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None
        return info if isinstance(info, dict) else None

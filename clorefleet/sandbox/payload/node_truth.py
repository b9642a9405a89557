"""What the simulated server really has, for the programs that run on it, and who holds its VRAM.

`SANDBOX_HOME` is the hidden folder that the sandbox wrote (`/opt/sandbox`). Programs that claim VRAM leave a
file under `/run/gpu`, named by their process id; a claim whose process is gone counts no more.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

MIB = 1 << 20
HOME = Path(os.environ.get("SANDBOX_HOME", "/opt/sandbox"))
ROOT = HOME.parents[1]
"""The node's `/` as this program names it."""
_CLAIMS = ROOT / "run/gpu"


def load() -> dict:
    return json.loads((HOME / "truth.json").read_text("utf-8"))


def claim(used_mib: list[int], name: str) -> None:
    """Say that this process holds so much of each GPU, until it ends."""
    _CLAIMS.mkdir(parents=True, exist_ok=True)
    draft = _CLAIMS / f".{os.getpid()}"
    draft.write_text(json.dumps({"mib": used_mib, "name": name}), "utf-8")
    draft.replace(_CLAIMS / f"{os.getpid()}.json")


def claims(*, of_others: bool = False) -> dict[int, dict]:
    """Claims of live processes by process id."""
    found = {}
    for file in _CLAIMS.glob("*.json") if _CLAIMS.is_dir() else ():
        pid = int(file.stem)
        if of_others and pid == os.getpid():
            continue
        try:
            os.kill(pid, 0)
            found[pid] = json.loads(file.read_text("utf-8"))
        except (ProcessLookupError, FileNotFoundError):
            file.unlink(missing_ok=True)
    return found


def used_mib(count: int, *, of_others: bool = False) -> list[int]:
    """VRAM in use on each of `count` GPUs."""
    sums = [0] * count
    for held in claims(of_others=of_others).values():
        for index, mib in enumerate(held["mib"][:count]):
            sums[index] += mib
    return sums

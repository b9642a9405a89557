"""Orders that the market keeps refusing to end, where every command sees them. Standard library only.

A small private file in the state folder: written by whoever asks for the cancels (daemon, `stop --all`,
`sweep`), read by each command as it ends, and gone when the market's list shows the last of them gone.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

_NAME = "unending.json"
_BYTES_MAX = 65_536
_ORDERS_MAX = 50


@dataclass(frozen=True, slots=True)
class UnendingOrder:
    order_id: int
    per_hour: str
    """What it bills, as shown to people: `$0.0140/hour`."""
    attempts: int
    why: str


def note(state_dir: Path, orders: Iterable[UnendingOrder]) -> None:
    """These orders, and no others, still bill against our will."""
    file, kept = state_dir / _NAME, tuple(orders)[:_ORDERS_MAX]
    if not kept:
        file.unlink(missing_ok=True)
        return
    text = json.dumps([asdict(each) for each in kept])
    if file.exists() and file.read_text("utf-8") == text:
        return
    fresh = file.with_suffix(f".{os.getpid()}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as out:
        out.write(text)
    fresh.replace(file)


def known(state_dir: Path) -> tuple[UnendingOrder, ...]:
    """What was noted last; empty where the file is missing or not ours."""
    try:
        with (state_dir / _NAME).open("rb") as file:
            return tuple(UnendingOrder(**each) for each in json.loads(file.read(_BYTES_MAX)))
    except (OSError, ValueError, TypeError):
        return ()

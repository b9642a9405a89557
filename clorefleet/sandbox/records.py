"""What the sandbox must not forget when it is killed: orders, credits, clock, and odd events.

One SQLite file, written with full sync at each change, so that a `kill -9` between two calls loses
nothing that a client was told. Values are JSON; the shapes belong to `orders` and `market`.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from clorefleet.sandbox.orders import SandboxOrder

_SCHEMA = """
CREATE TABLE IF NOT EXISTS orders (id INTEGER PRIMARY KEY, body TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""


@dataclass(frozen=True, slots=True)
class Remembered:
    """What a start without options takes from the last one."""

    seed: int = 1
    server_count: int = 3200
    time_factor: float = 1.0

    @classmethod
    def of(cls, path: Path) -> Remembered:
        """The defaults when there was no last start."""
        if not path.exists():
            return cls()
        records = Records(path)
        try:
            return cls(**records.load_fact("settings", {}))
        finally:
            records.close()


class Records:
    """The open file. `path` None keeps everything in memory, for tests of the market alone."""

    def __init__(self, path: Path | None = None) -> None:
        if path is not None:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        self._db = sqlite3.connect(path or ":memory:", isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.executescript(_SCHEMA)

    def close(self) -> None:
        self._db.close()

    def save_orders(self, orders: Iterable[SandboxOrder], *, settled_s: float) -> None:
        """The orders and the instant they are true for: all or none, durable on return."""
        rows = [(order.id, json.dumps(order.to_json())) for order in orders]
        self._db.execute("BEGIN IMMEDIATE")
        self._db.executemany("INSERT OR REPLACE INTO orders VALUES (?, ?)", rows)
        self.save_fact("settled_s", settled_s)
        self._db.execute("COMMIT")

    def load_orders(self) -> list[SandboxOrder]:
        rows = self._db.execute("SELECT body FROM orders ORDER BY id").fetchall()
        return [SandboxOrder.from_json(json.loads(body)) for (body,) in rows]

    def save_fact(self, name: str, value: Any) -> None:
        self._db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, json.dumps(value)))

    def load_fact(self, name: str, default: Any = None) -> Any:
        row = self._db.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return default if row is None else json.loads(row[0])

    def save_credits(self, credits: dict[str, Decimal]) -> None:
        self.save_fact("credits", {coin: str(amount) for coin, amount in credits.items()})

    def load_credits(self) -> dict[str, Decimal] | None:
        stored = self.load_fact("credits")
        return None if stored is None else {coin: Decimal(amount) for coin, amount in stored.items()}

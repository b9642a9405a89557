"""A store's address, for what looks at a SQLite file without the whole store's machinery."""

from __future__ import annotations

from pathlib import Path

_SQLITE = "sqlite:///"


def sqlite_file(store_url: str) -> Path | None:
    """Where the file is, which need not exist; None where the store is on a server."""
    return Path(store_url.removeprefix(_SQLITE)) if store_url.startswith(_SQLITE) else None

"""A store's address, for what looks at a SQLite file without the whole store's machinery."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import unquote_to_bytes

from clorefleet.config.places import SQLITE


def sqlite_file(store_url: str) -> Path | None:
    """Where the file is, which need not exist; None where the store is on a server."""
    if not store_url.startswith(SQLITE):
        return None
    path, _, _ = store_url.removeprefix(SQLITE).partition("?")
    return Path(os.fsdecode(unquote_to_bytes(path)))

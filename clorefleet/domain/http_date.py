"""The time that a service's answer was dated with."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime


def http_date(header: str | None) -> datetime | None:
    """Of a Date header, which has whole seconds; None where there is none that can be read."""
    try:
        found = None if header is None else parsedate_to_datetime(header)
    except ValueError:
        return None
    return found.replace(tzinfo=UTC) if found is not None and found.tzinfo is None else found

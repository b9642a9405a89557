"""Points in time as people type them: `7d` (ago), `2026-11-01`, `2026-11-01 08:30`, `today`, `month`."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, tzinfo

from clorefleet.domain.duration import parse_duration
from clorefleet.domain.errors import BadInput


def parse_moment(text: str, *, now: datetime, zone: tzinfo) -> datetime:
    """In UTC; dates and clock times are those of `zone`.

    Raises:
        BadInput: it is none of these.
    """
    from clorefleet.report.charges import midnight

    word, today = text.strip().lower(), now.astimezone(zone).date()
    days = {
        "now": None,
        "today": today,
        "yesterday": today - timedelta(days=1),
        "week": today - timedelta(days=today.weekday()),
        "month": today.replace(day=1),
    }
    if word in days:
        day = days[word]
        return now if day is None else midnight(day, zone)
    try:
        found = datetime.fromisoformat(text.strip())
        return (found if found.tzinfo else found.replace(tzinfo=zone)).astimezone(UTC)
    except (ValueError, OverflowError):  # the ends of the calendar lie outside it elsewhere
        pass
    try:
        return now - parse_duration(word)
    except BadInput as error:
        raise BadInput(
            f"“{text[:40]}” is not a point in time.",
            remedy="Write 7d (ago), today, yesterday, week, month, 2026-11-01 or 2026-11-01T08:30.",
        ) from error

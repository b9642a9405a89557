"""Time zones by their names."""

from __future__ import annotations

UTC = "UTC"


def parse_zone(text: str) -> str:
    """
    Raises:
        BadInput: there is no such time zone on this machine.
    """
    if text == UTC:
        return text  # most are, and the list of all takes a while to make
    from zoneinfo import ZoneInfo, available_timezones

    from clorefleet.config.toml_file import nearest
    from clorefleet.domain.errors import BadInput

    known = available_timezones()
    if text in known:
        ZoneInfo(text)
        return text
    folded = {each.lower(): each for each in known}
    near = folded.get(nearest(text, list(folded)), "")
    hint = f"Did you mean “{near}”?" if near else 'Use an IANA name such as "Europe/Berlin" or "UTC".'
    raise BadInput(f"There is no time zone “{text[:40]}”.", remedy=hint)

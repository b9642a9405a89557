"""The `[report]` part of `fleet.toml`: which cost report is sent when, by which channels of `[notify]`."""

from __future__ import annotations

from collections.abc import Callable

from clorefleet.config.toml_file import Section, nearest
from clorefleet.domain.alert import Email, NotifyPolicy
from clorefleet.domain.dimension import GROUPS_MAX, parse_dimension
from clorefleet.domain.report_policy import ReportFormat, ReportPeriod, ReportPolicy
from clorefleet.domain.schedule import CronTimes, parse_cron

REPORTS_A_DAY_MAX = 24


def read_report(
    section: Section, notify: NotifyPolicy, *, fleet_zone: str, parse_zone: Callable[[str], str]
) -> ReportPolicy | None:
    """None where the file cannot say one; complaints go to the file of `section`."""
    section.needs("schedule", 'when, as cron says it: "0 7 * * mon"')
    section.needs("to", "names of [notify] channels")
    times = section.parsed("schedule", parse_cron)
    if times is not None and _times_a_day(times) > REPORTS_A_DAY_MAX:
        section.complain("schedule", f"at most {REPORTS_A_DAY_MAX} reports a day")
    names = [each.name for each in notify.channels]
    to = section.words("to", str)
    for index, name in enumerate(to):
        if name not in names:
            near = nearest(name, names)
            hint = f"did you mean “{near}”?" if near else "give one a name in [notify]"
            section.complain_at(("to", index), f"no channel is called “{name[:40]}”; {hint}")
    form = section.choice("format", ReportFormat, ReportFormat.TEXT)
    mails = {each.name for each in notify.channels if isinstance(each, Email)}
    if form is not ReportFormat.TEXT and to and not mails & set(to):
        section.complain("format", f"only mail carries {form}, and none of these channels is mail")
    zone = section.parsed("timezone", parse_zone) or fleet_zone or "UTC"
    period = section.choice("period", ReportPeriod, ReportPeriod.WEEK)
    by = tuple(dict.fromkeys(section.words("by", parse_dimension)))
    if len(by) > GROUPS_MAX:
        section.complain("by", f"at most {GROUPS_MAX} things to group by")
    section.done()
    return None if times is None or not to else ReportPolicy(times, zone, to, period, form, by)


def _times_a_day(times: CronTimes) -> int:
    return len(times.minutes) * len(times.hours)

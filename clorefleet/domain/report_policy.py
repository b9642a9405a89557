"""When cost reports are sent by themselves, of which time, how grouped, and by which ways. Values only."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from clorefleet.domain.dimension import Dimension
from clorefleet.domain.schedule import CronTimes


class ReportPeriod(StrEnum):
    """The last whole one is reported."""

    DAY = "day"
    WEEK = "week"
    MONTH = "month"


class ReportFormat(StrEnum):
    TEXT = "text"
    HTML = "html"
    """The text, and the page as an attachment of mail."""
    CSV = "csv"
    """The text, and the groups as an attachment of mail."""


@dataclass(frozen=True, slots=True)
class ReportPolicy:
    """The `[report]` part of a fleet file."""

    times: CronTimes
    zone: str
    to: tuple[str, ...]
    """Names of `[notify]` channels."""
    period: ReportPeriod = ReportPeriod.WEEK
    form: ReportFormat = ReportFormat.TEXT
    by: tuple[Dimension, ...] = ()
    """What spending is grouped by; (): what suits the period."""

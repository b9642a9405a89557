"""Read `fleet.toml`: what the user wants kept, and how they want to be told. docs/fleet-toml.md describes
each key.

Nothing is guessed: an unknown key, a value of another kind or a window without an end is a complaint with
its line and column, and a file with complaints changes nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path

from clorefleet.config.model_name import ModelChoice, find_model
from clorefleet.config.notify_file import read_notify
from clorefleet.config.recipes import load_recipes
from clorefleet.config.report_file import read_report
from clorefleet.config.toml_file import FILE_BYTES_MAX, Section, parse_toml
from clorefleet.config.zone import parse_zone
from clorefleet.domain.alert import NotifyPolicy
from clorefleet.domain.deployment import ConsolidatePolicy, IdlePolicy, ScalePolicy, parse_deployment_name
from clorefleet.domain.duration import in_words, parse_duration
from clorefleet.domain.errors import BadInput, ConfigError
from clorefleet.domain.fleet_file import DeploymentWish, FleetFile
from clorefleet.domain.money import parse_budget
from clorefleet.domain.plan import Objective, Requirement
from clorefleet.domain.recipe import Precision
from clorefleet.domain.schedule import (
    MINUTES_A_DAY,
    WINDOW_LENGTH_MAX,
    Bounds,
    CronTimes,
    DateException,
    Schedule,
    Window,
    daily_at,
    parse_clock_time,
    parse_cron,
    parse_weekdays,
)

DEFAULT_NAME = "fleet.toml"
REPLICAS_MAX = 64
DEPLOYMENTS_MAX = 200
STARTS_A_DAY_MAX = 96
"""A window that begins oftener than every quarter of an hour is no window."""
DATES = (date(2000, 1, 1), date(2200, 1, 1))
"""An exception lies within these: a calendar ends, and nobody means its last day."""
_CONTEXT_MAX = 100_000_000

SPOT_ONLY = "only"

CheckModel = Callable[[str], ModelChoice]


def load_fleet_file(path: Path, *, check_model: CheckModel | None = None) -> FleetFile:
    """
    Raises:
        BadTomlFile: with every complaint, each with its line and column.
        ConfigError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        hint = "`clorefleet init` writes one" if isinstance(error, FileNotFoundError) else "Mend that"
        raise ConfigError(
            f"{path} cannot be read: {error.strerror or error}.",
            remedy=f"{hint}, or name another: --file PATH.",
            money="Nothing was changed; what runs goes on.",
        ) from error
    return read_fleet_file(str(path), data, check_model=check_model)


def read_fleet_file(name: str, data: bytes, *, check_model: CheckModel | None = None) -> FleetFile:
    """
    Raises:
        BadTomlFile: with every complaint, each with its line and column.
    """
    file = parse_toml(name, data)
    top = Section(file, (), file.values)
    check = check_model or _known_model
    budget, zone = None, ""
    fleet = top.section("fleet")
    if fleet is not None:
        budget = fleet.parsed("budget", parse_budget)
        zone = fleet.parsed("timezone", parse_zone) or ""
        fleet.done()
    deployments = top.section("deployments")
    wishes = []
    if deployments is not None:
        for index, key in enumerate(deployments.keys):
            section = deployments.section(key)
            if index >= DEPLOYMENTS_MAX:
                deployments.complain(key, f"there are more than {DEPLOYMENTS_MAX} deployments")
                break
            if section is not None:
                wishes.append(_deployment(deployments, key, section, check, zone))
    notify = top.section("notify")
    policy = NotifyPolicy() if notify is None else read_notify(notify)
    reporting = top.section("report")
    report = (
        None if reporting is None else read_report(reporting, policy, fleet_zone=zone, parse_zone=parse_zone)
    )
    top.done()
    file.check()
    return FleetFile(
        name, hashlib.sha256(data).hexdigest(), budget, tuple(each for each in wishes if each), policy, report
    )


def _known_model(name: str) -> ModelChoice:
    return find_model(name, load_recipes())


def _deployment(
    parent: Section, key: str, section: Section, check_model: CheckModel, fleet_zone: str
) -> DeploymentWish | None:
    try:
        deployment_id = parse_deployment_name(key)
    except BadInput as error:
        parent.complain(key, f"{error.what} {error.remedy}", at_value=False)
        return None
    section.needs("model", "a name from `clorefleet models`")
    section.needs("budget", 'a ceiling such as "16/day"; nothing is rented without one')
    spot, spot_only = _spot(section)
    choice = section.parsed("model", check_model) or ModelChoice("")
    requirement = Requirement(
        model=choice.model,
        checkpoints=choice.checkpoints,
        budget=section.parsed("budget", parse_budget),
        objective=section.choice("prefer", Objective, Objective.COST),
        precisions=section.words("precisions", _precision),
        min_context_tokens=section.whole("min_context", 0, least=1, most=_CONTEXT_MAX) or None,
        min_decode_tokens_per_s=_float(section.number("min_speed", least=Decimal(0), most=Decimal(100_000))),
        min_reliability=section.number("min_reliability", least=Decimal(0), most=Decimal(1)),
        countries=section.words("countries", _country),
        gpu=section.text("gpu"),
        spot=spot,
        spot_only=spot_only,
    )
    bounds = _bounds(section, "replicas") or Bounds(1, 1)
    scale = section.section("scale")
    idle = section.section("idle")
    consolidate = section.section("consolidate")
    schedule = section.section("schedule")
    if scale is not None and bounds.replicas_min == bounds.replicas_max and schedule is None:
        section.complain(
            "scale", "load has nothing to choose: write replicas = { min = 1, max = 4 }", at_value=False
        )
    wish = DeploymentWish(
        deployment_id=deployment_id,
        requirement=requirement,
        replicas=bounds.replicas_min,
        replicas_max=bounds.replicas_max if bounds.replicas_max > bounds.replicas_min else None,
        schedule=None if schedule is None else _schedule(schedule, fleet_zone),
        scale=None if scale is None else _scale(scale),
        idle=None if idle is None else _idle(idle, bounds),
        consolidate=None if consolidate is None else _consolidate(consolidate),
        is_enabled=section.flag("enabled", True),
    )
    section.done()
    return wish


def _spot(section: Section) -> tuple[bool, bool]:
    """`spot = true`, `false` or `"only"`: whether spot offers are taken, and whether no others are."""
    if isinstance(section.peek("spot"), str):
        word = section.text("spot")
        if word != SPOT_ONLY:
            section.complain("spot", f'write true, false or "{SPOT_ONLY}"')
        return True, word == SPOT_ONLY
    return section.flag("spot", False), False


def _float(value: Decimal | None) -> float | None:
    return None if value is None else float(value)


def _precision(word: str) -> Precision:
    known = [each.value for each in Precision]
    if word.lower() not in known:
        raise BadInput(f"“{word[:20]}” is not a precision.", remedy=f"Use {', '.join(known)}.")
    return Precision(word.lower())


def _country(word: str) -> str:
    if not (len(word) == 2 and word.isascii() and word.isalpha()):
        raise BadInput(
            f"“{word[:20]}” is not a country.", remedy='Use ISO codes of two letters such as "DE".'
        )
    return word.upper()


def _bounds(section: Section, key: str) -> Bounds | None:
    """`replicas = 2`, or `replicas = { min = 1, max = 4 }`."""
    if not section.has(key):
        return None
    if not section.is_table(key):
        count = section.whole(key, 1, least=0, most=REPLICAS_MAX)
        return Bounds(count, count)
    table = section.section(key)
    assert table is not None  # noqa: S101 - is_table
    table.needs("max", "the most that load may scale up to")
    least = table.whole("min", 0, least=0, most=REPLICAS_MAX)
    most = table.whole("max", max(1, least), least=1, most=REPLICAS_MAX)
    table.done()
    if most < least:
        table.complain("max", f"max must be at least min ({least})")
        most = least
    return Bounds(least, most)


# -- schedule


def _schedule(section: Section, fleet_zone: str) -> Schedule:
    zone = section.parsed("timezone", parse_zone) or fleet_zone
    if not zone:
        section.needs("timezone", 'clock times need one, such as timezone = "Europe/Berlin"')
    lead = section.parsed("lead", parse_duration)
    windows = tuple(filter(None, (_window(each) for each in section.sections("windows"))))
    exceptions = tuple(filter(None, (_exception(each) for each in section.sections("exceptions"))))
    section.done()
    return Schedule(zone or "UTC", windows, exceptions, lead)


def _window(section: Section) -> Window | None:
    name = section.text("name", "window")[:40]
    starts, start_minute = _starts(section)
    until = section.parsed("end", parse_clock_time)
    length = section.parsed("length", parse_duration)
    section.needs("replicas", "how many to keep in this window")
    bounds = _bounds(section, "replicas")
    priority = section.whole("priority", 0, least=-1000, most=1000)
    section.done()
    if section.has("end") == section.has("length"):
        section.complain("end", 'a window needs one of end = "18:00" and length = "10h"')
        return None
    if length is not None and length > WINDOW_LENGTH_MAX:
        section.complain("length", f"a window lasts at most {in_words(WINDOW_LENGTH_MAX)}")
        return None
    if until == 0:
        until = MINUTES_A_DAY
    if starts is None or bounds is None or (until is None and length is None):
        return None
    if start_minute is None and until is not None:
        section.complain("end", 'a window with cron ends after a length: length = "10h"')
        return None
    return Window(name, starts, bounds, until_minute=until, length=length, priority=priority)


def _starts(section: Section) -> tuple[CronTimes | None, int | None]:
    """When it begins, and the clock time where there is exactly one."""
    cron = section.parsed("cron", parse_cron)
    days = section.parsed("days", parse_weekdays)
    start = section.parsed("start", parse_clock_time)
    if section.has("cron"):
        for key in ("days", "start"):
            if section.has(key):
                section.complain(key, f"cron says when the window begins; leave out {key}", at_value=False)
        if cron is not None and len(cron.minutes) * len(cron.hours) > STARTS_A_DAY_MAX:
            section.complain("cron", f"it begins more than {STARTS_A_DAY_MAX} times a day")
            return None, None
        return cron, None
    section.needs("start", 'a clock time such as "08:00", or cron = "0 8 * * mon-fri"')
    if start == MINUTES_A_DAY:
        section.complain("start", 'a window begins before 24:00; write "00:00" and the next day')
        return None, None
    if start is None:
        return None, None
    return daily_at(start, frozenset(range(7)) if days is None else days), start


def _day(section: Section, key: str) -> date | None:
    day = section.take(key, date)
    earliest, latest = DATES
    if day is not None and not earliest <= day <= latest:
        section.complain(key, f"{key} must be from {earliest} to {latest}, not {day}")
        return None
    return day


def _exception(section: Section) -> DateException | None:
    name = section.text("name", "exception")[:40]
    day, first, last = _day(section, "date"), _day(section, "from"), _day(section, "to")
    section.needs("replicas", "how many to keep on these dates, for instance 0")
    bounds = _bounds(section, "replicas")
    section.done()
    if section.has("date") == (section.has("from") or section.has("to")):
        section.complain("date", "an exception needs date = 2026-12-24, or from = and to =")
        return None
    if day is not None:
        first = last = day
    if first is None or last is None:
        if section.has("from") != section.has("to"):
            section.complain("from", "an exception with from needs to as well, and the other way round")
        return None
    if last < first:
        section.complain("to", f"it lies before from ({first})")
        return None
    return None if bounds is None else DateException(name, first, last, bounds)


# -- load and idleness


def _scale(section: Section) -> ScalePolicy:
    default = ScalePolicy()
    policy = ScalePolicy(
        target=section.number("target", least=Decimal("0.1"), most=Decimal(1)) or default.target,
        time_to_first_token_max=section.parsed("max_first_token", parse_duration),
        up_after=section.parsed("up_after", parse_duration) or default.up_after,
        down_after=section.parsed("down_after", parse_duration) or default.down_after,
        forecast=section.flag("forecast", default.forecast),
    )
    section.done()
    return policy


def _consolidate(section: Section) -> ConsolidatePolicy:
    default = ConsolidatePolicy()
    margin = section.number("margin", least=Decimal(0), most=Decimal(100))
    saving = section.number("saving", least=Decimal(0), most=Decimal("0.9"))
    policy = ConsolidatePolicy(
        margin=default.margin if margin is None else margin,
        saving_least=default.saving_least if saving is None else saving,
        cooldown=section.parsed("cooldown", parse_duration) or default.cooldown,
    )
    section.done()
    return policy


IDLE_AFTER_MIN = timedelta(minutes=1)


def _idle(section: Section, bounds: Bounds) -> IdlePolicy:
    section.needs("after", 'for instance after = "30 min"')
    after = section.parsed("after", parse_duration) or timedelta(hours=1)
    if after < IDLE_AFTER_MIN:
        section.complain("after", f"it must be at least {in_words(IDLE_AFTER_MIN)}")
    floor = section.whole("floor", 0, least=0, most=REPLICAS_MAX)
    if floor > bounds.replicas_min:
        section.complain("floor", f"it is above the least that is kept ({bounds.replicas_min})")
    section.done()
    return IdlePolicy(after, floor)

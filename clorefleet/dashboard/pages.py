"""Templates and their environment: the one place where values become HTML.

Every expression of a template goes through `harmless`, then through autoescaping: text from a rented host is
stripped of control characters, bounded, and inert, also where a template forgets about it. Numbers and markup
that our own macros made pass.
"""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from clorefleet.domain.money import Money
from clorefleet.domain.text import clean_line
from clorefleet.report.commands import for_profile
from clorefleet.report.words import age, gib

FOLDER = Path(__file__).parent
TEMPLATES, STATIC = FOLDER / "templates", FOLDER / "static"
TEXT_CHARS_MAX = 400


def harmless(value: Any, flag: str = "") -> Any:
    """What an expression prints: foreign text cleaned and bounded, everything else as it is.

    A command in it is one for the profile of `flag`.
    """
    if isinstance(value, Markup) or not isinstance(value, str):
        return "" if value is None else value
    return for_profile(clean_line(value, max_chars=TEXT_CHARS_MAX), flag)


def environment(flag: str = "") -> Environment:
    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=partial(harmless, flag=flag),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(
        age=age, money=_money, gib=gib, instant=_instant, clock=_clock, brief=_brief, kind=_kind
    )
    return made


def _money(amount_usd: Decimal) -> str:
    return str(Money.usd(amount_usd))


def _instant(value: datetime) -> str:
    """For `<time datetime>`."""
    return value.isoformat(timespec="seconds")


def _clock(value: datetime) -> str:
    return f"{value:%Y-%m-%d %H:%M:%S}"


def _brief(value: object, chars: int) -> str:
    return clean_line(value, max_chars=chars)


def _kind(value: object) -> str:
    """A word of ours as a class name: `syncing weights` becomes `syncing-weights`."""
    return str(value).replace(" ", "-").lower()

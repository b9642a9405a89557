"""What spending can be grouped by. Values only."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from enum import StrEnum

from clorefleet.domain.errors import BadInput

GROUPS_MAX = 4


class Dimension(StrEnum):
    DAY = "day"
    WEEK = "week"
    """As ISO 8601 counts them, from Monday."""
    MONTH = "month"
    DEPLOYMENT = "deployment"
    MODEL = "model"
    REPLICA = "replica"
    HOST = "host"
    """The market's number of the server."""
    GPU = "gpu"
    PHASE = "phase"
    """The stage: bootstrap, serving, idle, draining."""
    KIND = "kind"
    """Spot or on demand."""
    CURRENCY = "currency"
    ORDER = "order"


def parse_dimensions(text: str) -> tuple[Dimension, ...]:
    """Read `day,model`.

    Raises:
        BadInput: a word is none of the dimensions, or there are too many.
    """
    return grouped_by(parse_dimension(word) for word in text.split(",") if word.strip())


def parse_dimension(text: str) -> Dimension:
    """
    Raises:
        BadInput: it is none.
    """
    word, known = text.strip().lower(), [each.value for each in Dimension]
    if word not in known:
        near = get_close_matches(word, known, n=1)
        hint = f"Did you mean “{near[0]}”? " if near else ""
        raise BadInput(f"I cannot group by “{word[:30]}”.", remedy=f"{hint}Use {', '.join(known)}.")
    return Dimension(word)


def grouped_by(dimensions: Iterable[Dimension]) -> tuple[Dimension, ...]:
    """Each once.

    Raises:
        BadInput: none, or too many.
    """
    found = tuple(dict.fromkeys(dimensions))
    if not 1 <= len(found) <= GROUPS_MAX:
        raise BadInput(f"Group by one to {GROUPS_MAX} things.", remedy="For instance --by day,model.")
    return found

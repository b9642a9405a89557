"""The envelope of every answer: a JSON object with an integer `code`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Wire = dict[str, Any]
"""A JSON object of the market; `Any` because odd answers are the point."""


class Code:
    OK = 0
    DATABASE = 1
    INVALID_INPUT = 2
    BAD_TOKEN = 3
    BAD_ENDPOINT = 4
    RATE_LIMIT = 5
    FIELD = 6


@dataclass(frozen=True, slots=True)
class Reply:
    """The JSON object of an answer, `code` included."""

    payload: Wire

    @property
    def code(self) -> int:
        return int(self.payload["code"])


def ok(**fields: Any) -> Reply:
    return Reply({**fields, "code": Code.OK})


def refusal(error: str, **extra: Any) -> Reply:
    return Reply({"code": Code.FIELD, "error": error, **extra})


def failure(code: int) -> Reply:
    return Reply({"code": code})

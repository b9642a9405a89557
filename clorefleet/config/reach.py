"""Whether a service answers at all, and what time it believes it is. Sends no key and reads no body."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from clorefleet.domain.errors import MarketUnreachable
from clorefleet.domain.http_date import http_date
from clorefleet.domain.text import clean_line

TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Reached:
    status: int
    server_time: datetime | None
    """By the answer's Date header."""


def reach(url: str) -> Reached:
    """
    Raises:
        MarketUnreachable: no answer of any kind came in time.
    """
    import httpx

    try:
        with (
            httpx.Client(timeout=TIMEOUT_S, follow_redirects=False) as client,
            client.stream("GET", url) as got,
        ):
            return Reached(got.status_code, http_date(got.headers.get("date")))
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise MarketUnreachable(
            f"{url} does not answer: {clean_line(error) or type(error).__name__}.",
            remedy="Check this machine's network, proxy and DNS.",
        ) from error
